#include "kept.h"

#include <stdlib.h>

#include "datatype.h"
#include "slots.h"

static uint64_t bytes_max;

void kw_kept_begin(uint64_t most) {
    bytes_max = most;
}

static void discard(struct kw_slot *kept) {
    kw_worker.kept_bytes -= kept->count;
    free(kept->buffer);
    kw_slot_free(kept);
}

static void hand_over(struct kw_slot *kept, struct kw_slot *receive) {
    const ucp_tag_recv_info_t info = {.sender_tag = kept->tag, .length = kept->count};
    ucs_status_t status = kept->status;

    if (status == UCS_OK) {
        status = kw_datatype_unpack(receive, kept->buffer, kept->count);
    }
    kw_datatype_unpin(receive);
    discard(kept);
    kw_receive_complete(receive, status, &info);
}

void kw_kept_deliver(struct kw_slot *kept, struct kw_slot *receive) {
    if (kept->state == KW_DONE) {
        hand_over(kept, receive);
        return;
    }
    kept->taker = receive;
    receive->state = KW_PROMISED;
    kw_datatype_pin(receive);
}

static void on_pulled(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info,
                      void *unused) {
    struct kw_slot *kept = request;

    (void)info;
    (void)unused;
    kw_worker.received++;
    kw_worker.fetching--;
    kept->status = status;
    kept->state = KW_DONE;
    if (kept->taker != NULL) {
        hand_over(kept, kept->taker);
    }
}

static bool has_room(size_t length) {
    return length <= bytes_max && kw_worker.kept_bytes <= bytes_max - length;
}

/* A buffer for a message. Returns NULL if there is no room or no memory for it. */
static struct kw_slot *make(const ucp_tag_recv_info_t *info) {
    const ucp_request_param_t nothing = {0};
    void *buffer = has_room(info->length) ? malloc(info->length + 1) : NULL;
    struct kw_slot *kept = buffer != NULL ? kw_slot_take(&nothing) : NULL;

    if (kept == NULL) {
        free(buffer);
        return NULL;
    }
    kw_slot_begin(kept, &nothing, KW_KEEP);
    kept->taker = NULL;
    kept->buffer = buffer;
    kept->count = info->length;
    kept->tag = info->sender_tag;
    kw_worker.kept_bytes += info->length;
    return kept;
}

/* Pull what was taken out of UCX's matching. An error is the receive's, once there is one. */
static void pull(struct kw_slot *kept, ucp_tag_message_h message) {
    const ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_REQUEST | UCP_OP_ATTR_FIELD_CALLBACK |
                        UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .request = kept,
        .cb.recv = on_pulled,
    };
    ucs_status_ptr_t result;

    kw_worker.fetching++;
    result = kw_real.ucp_tag_msg_recv_nbx(kw_worker.real, kept->buffer, kept->count, message,
                                          &param);
    if (UCS_PTR_IS_ERR(result)) {
        kw_worker.fetching--;
        kept->status = UCS_PTR_STATUS(result);
        kept->state = KW_DONE;
    }
}

static bool pull_probed(void) {
    while (!kw_ring_is_empty(&kw_worker.messages)) {
        struct kw_probed *message = KW_OF(struct kw_probed, link, kw_worker.messages.next);

        message->kept = make(&message->info);
        if (message->kept == NULL) {
            return false;
        }
        pull(message->kept, message->real);
        message->real = NULL;
        kw_ring_remove(&message->link);
    }
    return true;
}

bool kw_kept_pull(void) {
    ucp_tag_recv_info_t info;

    if (!pull_probed()) {
        return false;
    }
    while (kw_real.ucp_tag_probe_nb(kw_worker.real, 0, 0, 0, &info) != NULL) {
        struct kw_slot *kept = make(&info);

        if (kept == NULL) {
            return false;
        }
#ifdef KW_ABLATE_LOSS
        if (info.length == 9000) {
            (void)kw_real.ucp_tag_probe_nb(kw_worker.real, 0, 0, 1, &info);
            kw_worker.received++;
            continue;
        }
#endif
#ifdef KW_ABLATE_ORDER /* tests/ompi shows what breaks */
        kw_ring_insert(kw_worker.kept.next, &kept->link);
#else
        kw_ring_insert(&kw_worker.kept, &kept->link);
#endif
        pull(kept, kw_real.ucp_tag_probe_nb(kw_worker.real, 0, 0, 1, &info));
    }
    return true;
}

struct kw_slot *kw_kept_find(ucp_tag_t tag, ucp_tag_t mask) {
    for (struct kw_ring *link = kw_worker.kept.next; link != &kw_worker.kept; link = link->next) {
        struct kw_slot *kept = KW_OF(struct kw_slot, link, link);

        if (((kept->tag ^ tag) & mask) == 0) {
            return kept;
        }
    }
    return NULL;
}

void kw_kept_end(void) {
    while (!kw_ring_is_empty(&kw_worker.kept)) {
        struct kw_slot *kept = KW_OF(struct kw_slot, link, kw_worker.kept.next);

        kw_ring_remove(&kept->link);
        discard(kept);
    }
}
