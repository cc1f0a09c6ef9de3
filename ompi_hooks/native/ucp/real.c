#include "real.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kw_real kw_real;

/* Python wheels carry libraries under names of their own, such as libucp-1a2b3c.so.0.0.0. */
static int is_libucp(struct dl_phdr_info *info, size_t size, void *found) {
    const char *slash = strrchr(info->dlpi_name, '/');
    const char *name = slash != NULL ? slash + 1 : info->dlpi_name;

    (void)size;
    if (strncmp(name, "libucp.so", 9) != 0 && strncmp(name, "libucp-", 7) != 0) {
        return 0;
    }
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    return 1;
}

void kw_real_find(void) {
    void *library = NULL;

    if (kw_real.ucp_init_version != NULL) {
        return;
    }
    dl_iterate_phdr(is_libucp, &library);
    if (library == NULL) {
        fprintf(stderr, "kawarimi: UCX is called, and libucp is not loaded\n");
        abort(); /* nothing could be handed through */
    }
#define KW_REAL_FIND(name) *(void **)&kw_real.name = dlsym(library, #name);
    KW_REAL_FUNCTIONS(KW_REAL_FIND)
#undef KW_REAL_FIND
}

bool kw_real_is_known(void) {
    unsigned major, minor, release;

    kw_real.ucp_get_version(&major, &minor, &release);
    return major == 1 && minor >= 13;
}
