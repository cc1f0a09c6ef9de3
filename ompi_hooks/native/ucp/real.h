/* The functions of the libucp that the process has loaded: those behind our own of the same names.
 *
 * We do not link libucp: mpirun, which is preloaded too, would then load it for nothing. RTLD_NEXT
 * finds nothing where libucp was loaded with RTLD_LOCAL, so the loaded library is looked up by name. */
#ifndef KAWARIMI_NATIVE_UCP_REAL_H
#define KAWARIMI_NATIVE_UCP_REAL_H

#include <stdbool.h>

#include <ucp/api/ucp.h>

#define KW_REAL_FUNCTIONS(X)                                                                      \
    X(ucp_get_version)                                                                            \
    X(ucp_config_read)                                                                            \
    X(ucp_config_modify)                                                                          \
    X(ucp_config_release)                                                                         \
    X(ucp_init_version)                                                                           \
    X(ucp_cleanup)                                                                                \
    X(ucp_context_query)                                                                          \
    X(ucp_context_print_info)                                                                     \
    X(ucp_worker_create)                                                                          \
    X(ucp_worker_destroy)                                                                         \
    X(ucp_worker_query)                                                                           \
    X(ucp_worker_get_address)                                                                     \
    X(ucp_worker_release_address)                                                                 \
    X(ucp_worker_progress)                                                                        \
    X(ucp_ep_create)                                                                              \
    X(ucp_ep_close_nbx)                                                                           \
    X(ucp_ep_flush_nbx)                                                                           \
    X(ucp_ep_query)                                                                               \
    X(ucp_disconnect_nb)                                                                          \
    X(ucp_tag_send_nbx)                                                                           \
    X(ucp_tag_send_sync_nbx)                                                                      \
    X(ucp_tag_recv_nbx)                                                                           \
    X(ucp_tag_probe_nb)                                                                           \
    X(ucp_tag_msg_recv_nbx)                                                                       \
    X(ucp_dt_create_generic)                                                                      \
    X(ucp_dt_destroy)                                                                             \
    X(ucp_request_cancel)                                                                         \
    X(ucp_request_check_status)                                                                   \
    X(ucp_request_free)                                                                           \
    X(ucp_request_is_completed)                                                                   \
    X(ucp_request_release)                                                                        \
    X(ucp_request_test)                                                                           \
    X(ucp_tag_recv_request_test)

#define KW_REAL_MEMBER(name) __typeof__(&name) name;

extern struct kw_real {
    KW_REAL_FUNCTIONS(KW_REAL_MEMBER)
} kw_real;

/* Find them, the first time. To be called in every function of ours that may be the first of a
 * process to be called: those that make something out of nothing. What this libucp does not have
 * is NULL: its callers cannot have been linked against it. */
void kw_real_find(void);

/* Is this a UCX whose public interface is the one that we were written for? */
bool kw_real_is_known(void);

#endif
