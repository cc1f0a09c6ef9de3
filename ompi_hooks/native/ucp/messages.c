/* Probes, and messages that a probe took out of the matching. */
#include <stdlib.h>

#include "kept.h"
#include "slots.h"

static ucp_tag_message_h message_make(ucp_tag_message_h real, struct kw_slot *kept,
                                      const ucp_tag_recv_info_t *info) {
    struct kw_probed *message = malloc(sizeof *message);

    if (message == NULL) {
        abort(); /* UCX has no way to say it here, and would lose the message */
    }
    *message = (struct kw_probed){
        .mark = KW_MARK_PROBED, .real = real, .kept = kept, .info = *info};
    if (real != NULL) {
        kw_ring_insert(&kw_worker.messages, &message->link);
    }
    return (ucp_tag_message_h)(void *)message;
}

KW_EXPORT ucp_tag_message_h ucp_tag_probe_nb(ucp_worker_h worker, ucp_tag_t tag, ucp_tag_t mask,
                                             int take, ucp_tag_recv_info_t *info) {
    ucp_tag_message_h real;
    struct kw_slot *kept;

    if (KW_UNLIKELY(!kw_is_worker(worker))) {
        return kw_real.ucp_tag_probe_nb(worker, tag, mask, take, info);
    }
    /* A receive that waits may be first in line for whatever there is. */
    if (KW_UNLIKELY(kw_worker.receives_wait)) {
        return NULL;
    }
    kept = kw_kept_find(tag, mask);
    if (KW_UNLIKELY(kept != NULL)) {
        *info = (ucp_tag_recv_info_t){.sender_tag = kept->tag, .length = kept->count};
        if (!take) {
            return (ucp_tag_message_h)(void *)kept;
        }
        kw_ring_remove(&kept->link);
        return message_make(NULL, kept, info);
    }
    real = kw_real.ucp_tag_probe_nb(kw_worker.real, tag, mask, take, info);
    return real != NULL && take ? message_make(real, NULL, info) : real;
}

static void on_fetched(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info,
                       void *unused) {
    (void)unused;
    kw_worker.received++;
    kw_worker.fetching--;
    kw_receive_complete(request, status, info);
}

static void real_fetch(struct kw_slot *slot, ucp_tag_message_h message) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_REQUEST | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL | slot->op_flags,
        .request = slot,
        .cb.recv = on_fetched,
        .datatype = slot->datatype,
    };
    ucs_status_ptr_t result;

    kw_worker.fetching++;
    result = kw_real.ucp_tag_msg_recv_nbx(kw_worker.real, slot->buffer, slot->count, message,
                                          &param);
    if (UCS_PTR_IS_ERR(result)) {
        const ucp_tag_recv_info_t nothing = {0};

        kw_worker.fetching--;
        kw_receive_complete(slot, UCS_PTR_STATUS(result), &nothing);
    }
}

KW_EXPORT ucs_status_ptr_t ucp_tag_msg_recv_nbx(ucp_worker_h worker, void *buffer, size_t count,
                                                ucp_tag_message_h handle,
                                                const ucp_request_param_t *param) {
    struct kw_probed *message = (void *)handle;
    struct kw_slot *slot;

    if (KW_UNLIKELY(!kw_is_worker(worker))) {
        return kw_real.ucp_tag_msg_recv_nbx(worker, buffer, count, handle, param);
    }
    slot = kw_slot_take(param);
    if (KW_UNLIKELY(slot == NULL)) {
        return UCS_STATUS_PTR(UCS_ERR_NO_MEMORY);
    }
    kw_slot_begin(slot, param, KW_FETCH);
    slot->posting = true;
    slot->buffer = buffer;
    slot->count = count;
    slot->datatype = kw_slot_datatype(param);
    slot->pin = NULL;
    if (message->real != NULL) {
        kw_ring_remove(&message->link);
        real_fetch(slot, message->real);
    } else {
        kw_kept_deliver(message->kept, slot);
    }
    free(message);
    return kw_slot_posted(slot, param);
}

KW_EXPORT ucs_status_ptr_t ucp_tag_msg_recv_nb(ucp_worker_h worker, void *buffer, size_t count,
                                               ucp_datatype_t datatype, ucp_tag_message_h message,
                                               ucp_tag_recv_callback_t callback) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .datatype = datatype,
        .cb.recv = (ucp_tag_recv_nbx_callback_t)(void (*)(void))callback,
    };

    return ucp_tag_msg_recv_nbx(worker, buffer, count, message, &param);
}
