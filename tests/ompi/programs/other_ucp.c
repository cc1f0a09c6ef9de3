/* A libucp that says other things of itself than the one behind it, which does the work:
 *
 *   cc -shared -DKW_OLDER … -o libucp-other.so other_ucp.c -lucp
 *
 * With KW_OLDER, that it is 1.12; with KW_GPU, that it takes buffers in the memory of a GPU. With
 * KW_SLOW, it takes long to make an endpoint in another thread than the program's, as rc does in an
 * emulated guest, and says of each flush whether it was waited for. With KW_DEAF, the last flush
 * never ends, as if the peer did not answer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

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

#if defined KW_SLOW || defined KW_DEAF
static ucs_status_ptr_t flush; /* of the one thread that flushes, the last one */

ucs_status_ptr_t ucp_ep_flush_nbx(ucp_ep_h endpoint, const ucp_request_param_t *param) {
    ucs_status_ptr_t (*behind)(ucp_ep_h, const ucp_request_param_t *);
    ucs_status_ptr_t result;

    *(void **)&behind = dlsym(RTLD_NEXT, "ucp_ep_flush_nbx");
    result = behind(endpoint, param);
    if (UCS_PTR_IS_PTR(result)) {
        flush = result; /* others have ended at once */
    }
    return result;
}
#endif

#ifdef KW_DEAF
ucs_status_t ucp_request_check_status(void *request) {
    ucs_status_t (*behind)(void *);

    *(void **)&behind = dlsym(RTLD_NEXT, "ucp_request_check_status");
    return request == flush ? UCS_INPROGRESS : behind(request);
}
#endif

#ifdef KW_SLOW
ucs_status_t ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params, ucp_ep_h *result) {
    ucs_status_t (*behind)(ucp_worker_h, const ucp_ep_params_t *, ucp_ep_h *);

    *(void **)&behind = dlsym(RTLD_NEXT, "ucp_ep_create");
    if (gettid() != getpid()) {
        sleep(1);
    }
    return behind(worker, params, result);
}

void ucp_request_free(void *request) {
    void (*behind)(void *);

    *(void **)&behind = dlsym(RTLD_NEXT, "ucp_request_free");
    if (request == flush) {
        printf("FLUSHED %d\n", ucp_request_check_status(request) == UCS_OK);
        fflush(stdout);
        flush = NULL;
    }
    behind(request);
}
#endif
