#include "sends.h"

#include "datatype.h"
#include "slots.h"

/* UCX has sent it; not called for what was complete in place. */
static void on_sent(void *request, ucs_status_t status, void *unused) {
    (void)unused;
    kw_worker.sending--;
    kw_send_complete(request, status);
}

/* Give a send to UCX, and return what it returns. The slot is UCX's from then on only if that is a
 * request: nothing of it is read before. */
static inline ucs_status_ptr_t real_send(struct kw_slot *slot, struct kw_endpoint *endpoint,
                                         const void *buffer, size_t count, ucp_datatype_t datatype,
                                         ucp_tag_t tag, uint32_t flags, bool synchronous) {
    ucp_request_param_t param; /* no more of it is set than its mask says: it is in every message */
    ucs_status_ptr_t result;

    param.op_attr_mask = UCP_OP_ATTR_FIELD_REQUEST | UCP_OP_ATTR_FIELD_CALLBACK |
                         UCP_OP_ATTR_FIELD_DATATYPE | flags;
    param.request = slot;
    param.cb.send = on_sent;
    param.datatype = datatype;
    result = (synchronous ? kw_real.ucp_tag_send_sync_nbx : kw_real.ucp_tag_send_nbx)(
        endpoint->real, buffer, count, tag, &param);
    kw_worker.sent += !UCS_PTR_IS_ERR(result);
    kw_worker.sending += UCS_PTR_IS_PTR(result);
    return result;
}

static ucs_status_ptr_t wait_with(struct kw_slot *slot) {
    slot->state = KW_WAITING;
    slot->pin = NULL;
    kw_ring_insert(&kw_worker.waiting, &slot->link);
    kw_datatype_pin(slot);
    return kw_slot_application(slot);
}

static inline ucs_status_ptr_t send_on(ucp_ep_h handle, const void *buffer, size_t count,
                                       ucp_tag_t tag, const ucp_request_param_t *param,
                                       bool synchronous) {
    struct kw_endpoint *endpoint = kw_endpoint_of(handle);
    struct kw_slot *slot;
    ucs_status_ptr_t result;

    if (KW_UNLIKELY(endpoint == NULL)) {
        return (synchronous ? kw_real.ucp_tag_send_sync_nbx : kw_real.ucp_tag_send_nbx)(
            handle, buffer, count, tag, param);
    }
    slot = kw_slot_take(param);
    if (KW_UNLIKELY(slot == NULL)) {
        return UCS_STATUS_PTR(UCS_ERR_NO_MEMORY);
    }
    if (KW_UNLIKELY(kw_worker.sends_wait)) {
        kw_slot_begin(slot, param, KW_SEND);
        slot->buffer = (void *)buffer;
        slot->count = count;
        slot->datatype = kw_slot_datatype(param);
        slot->tag = tag;
        slot->endpoint = endpoint;
        slot->synchronous = synchronous;
        return wait_with(slot);
    }
    result = real_send(slot, endpoint, buffer, count, kw_slot_datatype(param), tag,
                       param->op_attr_mask & KW_SLOT_FLAGS, synchronous);
    if (UCS_PTR_IS_PTR(result)) {
        kw_slot_begin(slot, param, KW_SEND);
        return kw_slot_application(slot);
    }
    if (KW_UNLIKELY((param->op_attr_mask & UCP_OP_ATTR_FLAG_NO_IMM_CMPL) != 0)) {
        kw_slot_begin(slot, param, KW_SEND);
        kw_send_complete(slot, UCS_PTR_RAW_STATUS(result));
        return kw_slot_application(slot);
    }
    kw_slot_return(slot, param);
    return result;
}

void kw_sends_release(void) {
    while (!kw_ring_is_empty(&kw_worker.waiting)) {
        struct kw_slot *slot = KW_OF(struct kw_slot, link, kw_worker.waiting.next);
        ucs_status_ptr_t result;

        kw_ring_remove(&slot->link);
        slot->state = KW_ACTIVE;
        result = real_send(slot, slot->endpoint, slot->buffer, slot->count, slot->datatype,
                           slot->tag, slot->op_flags, slot->synchronous);
        kw_datatype_unpin(slot);
        if (!UCS_PTR_IS_PTR(result)) {
            kw_send_complete(slot, UCS_PTR_RAW_STATUS(result));
        }
    }
    kw_worker.sends_wait = false;
}

KW_EXPORT ucs_status_ptr_t ucp_tag_send_nbx(ucp_ep_h endpoint, const void *buffer, size_t count,
                                            ucp_tag_t tag, const ucp_request_param_t *param) {
    return send_on(endpoint, buffer, count, tag, param, false);
}

KW_EXPORT ucs_status_ptr_t ucp_tag_send_sync_nbx(ucp_ep_h endpoint, const void *buffer,
                                                 size_t count, ucp_tag_t tag,
                                                 const ucp_request_param_t *param) {
    return send_on(endpoint, buffer, count, tag, param, true);
}

static ucp_request_param_t param_of(ucp_datatype_t datatype, ucp_send_callback_t callback) {
    return (ucp_request_param_t){
        .op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_CALLBACK,
        .datatype = datatype,
        .cb.send = (ucp_send_nbx_callback_t)(void (*)(void))callback,
    };
}

KW_EXPORT ucs_status_ptr_t ucp_tag_send_nb(ucp_ep_h endpoint, const void *buffer, size_t count,
                                           ucp_datatype_t datatype, ucp_tag_t tag,
                                           ucp_send_callback_t callback) {
    const ucp_request_param_t param = param_of(datatype, callback);

    return send_on(endpoint, buffer, count, tag, &param, false);
}

KW_EXPORT ucs_status_ptr_t ucp_tag_send_sync_nb(ucp_ep_h endpoint, const void *buffer, size_t count,
                                                ucp_datatype_t datatype, ucp_tag_t tag,
                                                ucp_send_callback_t callback) {
    const ucp_request_param_t param = param_of(datatype, callback);

    return send_on(endpoint, buffer, count, tag, &param, true);
}

KW_EXPORT ucs_status_t ucp_tag_send_nbr(ucp_ep_h endpoint, const void *buffer, size_t count,
                                        ucp_datatype_t datatype, ucp_tag_t tag, void *request) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE | UCP_OP_ATTR_FIELD_REQUEST |
                        UCP_OP_ATTR_FLAG_FAST_CMPL,
        .datatype = datatype,
        .request = request,
    };
    ucs_status_ptr_t result = send_on(endpoint, buffer, count, tag, &param, false);

    return UCS_PTR_IS_PTR(result) ? UCS_INPROGRESS : UCS_PTR_RAW_STATUS(result);
}
