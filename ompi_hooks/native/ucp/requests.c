/* UCX's functions on requests, in front of the real ones. */
#include "receives.h"
#include "slots.h"

KW_EXPORT void ucp_request_cancel(ucp_worker_h worker, void *request) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL || !kw_is_worker(worker)) {
        kw_real.ucp_request_cancel(kw_is_worker(worker) ? kw_worker.real : worker, request);
    } else if (slot->kind == KW_RECEIVE) {
        kw_receive_cancel(slot);
    }
}

KW_EXPORT ucs_status_t ucp_request_check_status(void *request) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL) {
        return kw_real.ucp_request_check_status(request);
    }
    if (slot->kind == KW_DISCONNECT && slot->state == KW_ACTIVE) {
        slot->status = kw_real.ucp_request_check_status(slot->foreign);
        if (slot->status != UCS_INPROGRESS) {
            kw_real.ucp_request_free(slot->foreign);
            slot->state = KW_DONE;
        }
    }
    return slot->state == KW_DONE ? slot->status : UCS_INPROGRESS;
}

KW_EXPORT int ucp_request_is_completed(void *request) {
    if (kw_slot_of(request) == NULL) {
        return kw_real.ucp_request_is_completed(request);
    }
    return ucp_request_check_status(request) != UCS_INPROGRESS;
}

KW_EXPORT ucs_status_t ucp_tag_recv_request_test(void *request, ucp_tag_recv_info_t *info) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL) {
        return kw_real.ucp_tag_recv_request_test(request, info);
    }
    if (slot->state != KW_DONE) {
        return UCS_INPROGRESS;
    }
    *info = slot->info;
    return slot->status;
}

KW_EXPORT ucs_status_t ucp_request_test(void *request, ucp_tag_recv_info_t *info) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL) {
        return kw_real.ucp_request_test(request, info);
    }
    if (slot->kind != KW_RECEIVE && slot->kind != KW_FETCH) {
        return ucp_request_check_status(request);
    }
    if (slot->state != KW_DONE) {
        return UCS_INPROGRESS;
    }
    if (info != NULL) {
        *info = slot->info;
    }
    return slot->status;
}

/* What was freed before it was done is completed without the application, and freed then. */
KW_EXPORT void ucp_request_free(void *request) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL) {
        kw_real.ucp_request_free(request);
        return;
    }
    if (slot->kind == KW_DISCONNECT && slot->state == KW_ACTIVE) {
        kw_real.ucp_request_free(slot->foreign);
        slot->state = KW_DONE;
    }
    if (slot->state == KW_DONE) {
        kw_slot_free(slot);
    } else {
        slot->callback.send = NULL;
        slot->released = true;
    }
}

KW_EXPORT void ucp_request_release(void *request) {
    struct kw_slot *slot = kw_slot_of(request);

    if (slot == NULL) {
        kw_real.ucp_request_release(request);
    } else if (slot->state == KW_DONE || slot->kind == KW_DISCONNECT) {
        ucp_request_free(request);
    } else {
        slot->released = true;
    }
}
