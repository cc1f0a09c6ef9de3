#include "receives.h"

#include "datatype.h"
#include "kept.h"
#include "slots.h"

static bool withdrawing; /* inside kw_receives_withdraw(): a cancellation is not to be told */
static bool cancelled;   /* UCX has said so since this was cleared */

static void forget(struct kw_slot *slot, ucs_status_t status, const ucp_tag_recv_info_t *info) {
    kw_ring_remove(&slot->link);
    kw_receive_complete(slot, status, info);
}

/* UCX has received it, has cancelled it for the application, or gives it back to us. */
static void on_received(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info,
                        void *unused) {
    struct kw_slot *slot = request;

    (void)unused;
    if (status == UCS_ERR_CANCELED) {
        cancelled = true;
        if (withdrawing) {
            slot->state = KW_WAITING;
            return;
        }
    } else {
        kw_worker.received++;
    }
    forget(slot, status, info);
}

/* UCX 1.13 leaves the caller's recv_info as it is when a receive completes in place: so it is made
 * not to, and the callback tells. */
static inline void real_receive(struct kw_slot *slot) {
    bool generic = kw_datatype_is_generic(slot->datatype);
    ucp_request_param_t param; /* as in real_send() */
    ucs_status_ptr_t result;

    param.op_attr_mask = UCP_OP_ATTR_FIELD_REQUEST | UCP_OP_ATTR_FIELD_CALLBACK |
                         UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL | slot->op_flags;
    param.request = slot;
    param.cb.recv = on_received;
    param.datatype = slot->datatype;
    slot->state = KW_ACTIVE;
    if (KW_UNLIKELY(generic)) {
        kw_datatype_expect(slot);
    }
    result = kw_real.ucp_tag_recv_nbx(kw_worker.real, slot->buffer, slot->count, slot->tag,
                                      slot->mask, &param);
    if (KW_UNLIKELY(generic)) {
        kw_datatype_expect(NULL);
    }
    if (UCS_PTR_IS_ERR(result)) {
        forget(slot, UCS_PTR_STATUS(result), &slot->info);
    }
}

/* A message that is kept came before everything that UCX has. */
static bool kept_receive(struct kw_slot *slot) {
    struct kw_slot *kept = kw_kept_find(slot->tag, slot->mask);

    if (kept == NULL) {
        return false;
    }
    kw_ring_remove(&slot->link);
    kw_ring_remove(&kept->link);
    kw_kept_deliver(kept, slot);
    return true;
}

static inline ucs_status_ptr_t receive_on(ucp_worker_h worker, void *buffer, size_t count,
                                          ucp_tag_t tag, ucp_tag_t mask,
                                          const ucp_request_param_t *param) {
    struct kw_slot *slot;

    if (KW_UNLIKELY(!kw_is_worker(worker))) {
        return kw_real.ucp_tag_recv_nbx(worker, buffer, count, tag, mask, param);
    }
    slot = kw_slot_take(param);
    if (KW_UNLIKELY(slot == NULL)) {
        return UCS_STATUS_PTR(UCS_ERR_NO_MEMORY);
    }
    kw_slot_begin(slot, param, KW_RECEIVE);
    slot->posting = true;
    slot->buffer = buffer;
    slot->count = count;
    slot->datatype = kw_slot_datatype(param);
    slot->pin = NULL;
    slot->tag = tag;
    slot->mask = mask;
    kw_ring_insert(&kw_worker.posted, &slot->link);
    if (KW_UNLIKELY(kw_worker.receives_wait)) {
        slot->state = KW_WAITING;
        kw_datatype_pin(slot);
    } else if (kw_ring_is_empty(&kw_worker.kept) || !kept_receive(slot)) {
        real_receive(slot);
    }
    return kw_slot_posted(slot, param);
}

KW_EXPORT ucs_status_ptr_t ucp_tag_recv_nbx(ucp_worker_h worker, void *buffer, size_t count,
                                            ucp_tag_t tag, ucp_tag_t mask,
                                            const ucp_request_param_t *param) {
    return receive_on(worker, buffer, count, tag, mask, param);
}

KW_EXPORT ucs_status_ptr_t ucp_tag_recv_nb(ucp_worker_h worker, void *buffer, size_t count,
                                           ucp_datatype_t datatype, ucp_tag_t tag, ucp_tag_t mask,
                                           ucp_tag_recv_callback_t callback) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .datatype = datatype,
        .cb.recv = (ucp_tag_recv_nbx_callback_t)(void (*)(void))callback,
    };

    return receive_on(worker, buffer, count, tag, mask, &param);
}

KW_EXPORT ucs_status_t ucp_tag_recv_nbr(ucp_worker_h worker, void *buffer, size_t count,
                                        ucp_datatype_t datatype, ucp_tag_t tag, ucp_tag_t mask,
                                        void *request) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_REQUEST |
                        UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .datatype = datatype,
        .request = request,
    };
    ucs_status_ptr_t result = receive_on(worker, buffer, count, tag, mask, &param);

    return UCS_PTR_IS_ERR(result) ? UCS_PTR_STATUS(result) : UCS_OK;
}

/* The slot may be gone after it. */
static void real_cancel(struct kw_slot *slot) {
    void *state = kw_datatype_watch(slot);

    cancelled = false;
    kw_real.ucp_request_cancel(kw_worker.real, slot);
    if (cancelled) {
        kw_datatype_drop(state);
    }
}

void kw_receives_withdraw(void) {
    kw_worker.receives_wait = true;
    withdrawing = true;
    for (struct kw_ring *link = kw_worker.posted.next, *next; link != &kw_worker.posted;
         link = next) {
        struct kw_slot *slot = KW_OF(struct kw_slot, link, link);

        next = link->next;
        if (slot->state != KW_ACTIVE) {
            continue;
        }
        /* Before UCX drops it. */
        kw_datatype_pin(slot);
        real_cancel(slot);
        if (slot->state != KW_WAITING) {
            kw_datatype_unpin(slot);
        }
    }
    withdrawing = false;
}

uint64_t kw_receives_active(void) {
    uint64_t active = 0;

    for (struct kw_ring *link = kw_worker.posted.next; link != &kw_worker.posted;
         link = link->next) {
        active += KW_OF(struct kw_slot, link, link)->state == KW_ACTIVE;
    }
    return active;
}

/* A place in the ring goes on from one to the next: what the application does in its callbacks may
 * remove any of them, and adds to the end. */
void kw_receives_release(void) {
    struct kw_ring place;

#ifdef KW_ABLATE_ORDER
    struct kw_ring *link = &kw_worker.posted;

    do {
        struct kw_ring *next = link->next;

        link->next = link->prev;
        link->prev = next;
        link = next;
    } while (link != &kw_worker.posted);
#endif
    kw_ring_insert(kw_worker.posted.next, &place);
    while (place.next != &kw_worker.posted) {
        struct kw_slot *slot = KW_OF(struct kw_slot, link, place.next);
        struct kw_slot pinned = *slot;

        kw_ring_remove(&place);
        kw_ring_insert(slot->link.next, &place);
        if (slot->state != KW_WAITING) {
            continue;
        }
        slot->pin = NULL;
        if (!kept_receive(slot)) {
            real_receive(slot);
        }
        /* The slot itself may be gone. */
        kw_datatype_unpin(&pinned);
    }
    kw_ring_remove(&place);
    kw_worker.receives_wait = false;
}

void kw_receive_cancel(struct kw_slot *slot) {
    const ucp_tag_recv_info_t nothing = {0};

    if (slot->state == KW_WAITING) {
        kw_datatype_unpin(slot);
        forget(slot, UCS_ERR_CANCELED, &nothing);
    } else if (slot->state == KW_ACTIVE) {
        real_cancel(slot);
    }
}
