/* Requests: the slots that Open MPI gets, and their completion. */
#ifndef KAWARIMI_NATIVE_UCP_SLOTS_H
#define KAWARIMI_NATIVE_UCP_SLOTS_H

#include "objects.h"

/* What the application wants in its part of each request. */
void kw_slots_begin(size_t application_size, ucp_request_init_callback_t init,
                    ucp_request_cleanup_callback_t cleanup);

/* Give all memory back; nothing may be in use. */
void kw_slots_end(void);

/* The slots of the pool that are not in use, linked by `next` only. */
extern struct kw_ring *kw_slots_unused;

/* Make more of them. Returns false if memory is out. */
bool kw_slots_more(void);

/* Take a slot for an operation with these parameters: it lies in the caller's memory, or comes from
 * the pool; NULL if memory is out. */
static inline struct kw_slot *kw_slot_take(const ucp_request_param_t *param) {
    struct kw_ring *link = kw_slots_unused;

    if ((param->op_attr_mask & UCP_OP_ATTR_FIELD_REQUEST) != 0) {
        return (struct kw_slot *)param->request - 1;
    }
    if (KW_UNLIKELY(link == NULL)) {
        if (!kw_slots_more()) {
            return NULL;
        }
        link = kw_slots_unused;
    }
    kw_slots_unused = link->next;
    return KW_OF(struct kw_slot, link, link);
}

/* It is no longer in use; it is of the pool. */
static inline void kw_slot_free(struct kw_slot *slot) {
    slot->state = KW_FREE;
    slot->link.next = kw_slots_unused;
    kw_slots_unused = &slot->link;
}

/* It was taken, and is not needed. */
static inline void kw_slot_return(struct kw_slot *slot, const ucp_request_param_t *param) {
    if ((param->op_attr_mask & UCP_OP_ATTR_FIELD_REQUEST) == 0) {
        kw_slot_free(slot);
    }
}

/* The caller's flags that UCX gets, each time that it is given the operation. */
#define KW_SLOT_FLAGS (UCP_OP_ATTR_FLAG_FAST_CMPL | UCP_OP_ATTR_FLAG_MULTI_SEND)

/* Make a slot that was taken into an active request, as the parameters have it. */
static inline void kw_slot_begin(struct kw_slot *slot, const ucp_request_param_t *param,
                                 enum kw_slot_kind kind) {
    uint32_t mask = param->op_attr_mask;

    slot->mark = KW_MARK_SLOT;
    slot->kind = kind;
    slot->state = KW_ACTIVE;
    slot->owned = (mask & UCP_OP_ATTR_FIELD_REQUEST) == 0;
    slot->released = false;
    slot->posting = false;
    slot->eager_callback = (mask & UCP_OP_ATTR_FLAG_NO_IMM_CMPL) != 0;
    slot->op_flags = mask & KW_SLOT_FLAGS;
    slot->callback.send = (mask & UCP_OP_ATTR_FIELD_CALLBACK) != 0 ? param->cb.send : NULL;
    slot->user_data = (mask & UCP_OP_ATTR_FIELD_USER_DATA) != 0 ? param->user_data : NULL;
}

/* The datatype that parameters name, or UCX's default. */
static inline ucp_datatype_t kw_slot_datatype(const ucp_request_param_t *param) {
    return (param->op_attr_mask & UCP_OP_ATTR_FIELD_DATATYPE) != 0 ? param->datatype
                                                                   : ucp_dt_make_contig(1);
}

/* What the caller of a receive is to get, which may be done already. */
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
