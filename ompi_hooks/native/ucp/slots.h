/* Requests: the slots that Open MPI gets, and their completion. */
#ifndef KAWARIMI_NATIVE_UCP_SLOTS_H
#define KAWARIMI_NATIVE_UCP_SLOTS_H

#include "objects.h"

/* What the application wants in its part of each request. */
void kw_slots_begin(size_t application_size, ucp_request_init_callback_t init,
                    ucp_request_cleanup_callback_t cleanup);

/* Give all memory back; nothing may be in use. */
void kw_slots_end(void);

/* A slot of the pool, or NULL if memory is out. It stays free until its state is set: one that was
 * not used needs no giving back. */
struct kw_slot *kw_slot_peek(void);

/* The slot that was peeked at is in use from now on; and is no longer. */
void kw_slot_use(struct kw_slot *slot);
void kw_slot_free(struct kw_slot *slot);

/* A slot for an operation with these parameters: in the caller's memory, or kw_slot_peek(). */
struct kw_slot *kw_slot_for(const ucp_request_param_t *param, enum kw_slot_kind kind);

/* The datatype that parameters name, or UCX's default. */
static inline ucp_datatype_t kw_slot_datatype(const ucp_request_param_t *param) {
    return (param->op_attr_mask & UCP_OP_ATTR_FIELD_DATATYPE) != 0 ? param->datatype
                                                                   : ucp_dt_make_contig(1);
}

/* What UCX returned for `real` parameters that named this slot, which the operation may have
 * completed in place, as our caller is to see it. */
ucs_status_ptr_t kw_slot_posted(struct kw_slot *slot, const ucp_request_param_t *param);

/* It is done: tell the application, or the call that posts it. */
void kw_send_complete(struct kw_slot *slot, ucs_status_t status);
void kw_receive_complete(struct kw_slot *slot, ucs_status_t status,
                         const ucp_tag_recv_info_t *info);

static inline void *kw_slot_application(struct kw_slot *slot) {
    return slot + 1;
}

/* The slot of a request, or NULL if that is UCX's own. */
static inline struct kw_slot *kw_slot_of(void *request) {
    struct kw_slot *slot = (struct kw_slot *)request - 1;

    return slot->mark == KW_MARK_SLOT ? slot : NULL;
}

#endif
