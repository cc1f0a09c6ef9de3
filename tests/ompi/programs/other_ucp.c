/* A libucp that says other things of itself than the one behind it, which does the work:
 *
 *   cc -shared -DKW_OLDER … -o libucp-other.so other_ucp.c -lucp
 *
 * With KW_OLDER, that it is 1.12; with KW_GPU, that it takes buffers in the memory of a GPU. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <ucp/api/ucp.h>

#ifdef KW_OLDER
void ucp_get_version(unsigned *major, unsigned *minor, unsigned *release) {
    *major = 1;
    *minor = 12;
    *release = 0;
}
#endif

#ifdef KW_GPU
ucs_status_t ucp_context_query(ucp_context_h context, ucp_context_attr_t *attributes) {
    ucs_status_t (*behind)(ucp_context_h, ucp_context_attr_t *);
    ucs_status_t status;

    *(void **)&behind = dlsym(RTLD_NEXT, "ucp_context_query");
    status = behind(context, attributes);
    if ((attributes->field_mask & UCP_ATTR_FIELD_MEMORY_TYPES) != 0) {
        attributes->memory_types |= UCS_BIT(UCS_MEMORY_TYPE_CUDA);
    }
    return status;
}
#endif
