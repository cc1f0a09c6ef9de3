#include "slots.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 /* slots that are made at once */ };

static size_t application_size;
static ucp_request_init_callback_t application_init;
static ucp_request_cleanup_callback_t application_cleanup;

/* All memory that was ever made. */
static struct chunk {
    struct chunk *next;
    char *bytes;
} *chunks;

struct kw_ring *kw_slots_unused;

static size_t stride(void) {
    return (kw_request_size + sizeof(struct kw_slot) + application_size + 63) & ~(size_t)63;
}

static struct kw_slot *slot_at(char *bytes, size_t index) {
    return (struct kw_slot *)(void *)(bytes + index * stride() + kw_request_size);
}

void kw_slots_begin(size_t size, ucp_request_init_callback_t init,
                    ucp_request_cleanup_callback_t cleanup) {
    application_size = size;
    application_init = init;
    application_cleanup = cleanup;
}

void kw_slots_end(void) {
    while (chunks != NULL) {
        struct chunk *next = chunks->next;

        for (size_t i = 0; i < CHUNK; i++) {
            struct kw_slot *slot = slot_at(chunks->bytes, i);

            slot->mark = 0; /* the memory may become a foreign request */
            if (application_cleanup != NULL) {
                application_cleanup(kw_slot_application(slot));
            }
        }
        free(chunks->bytes);
        free(chunks);
        chunks = next;
    }
    kw_slots_unused = NULL;
}

bool kw_slots_more(void) {
    struct chunk *chunk = malloc(sizeof *chunk);
    char *bytes = aligned_alloc(64, CHUNK * stride());

    if (chunk == NULL || bytes == NULL) {
        free(chunk);
        free(bytes);
        return false;
    }
    memset(bytes, 0, CHUNK * stride());
    *chunk = (struct chunk){chunks, bytes};
    chunks = chunk;
    for (size_t i = 0; i < CHUNK; i++) {
        struct kw_slot *slot = slot_at(bytes, i);

        slot->mark = KW_MARK_SLOT;
        if (application_init != NULL) {
            application_init(kw_slot_application(slot));
        }
        kw_slot_free(slot);
    }
    return true;
}

ucs_status_ptr_t kw_slot_posted(struct kw_slot *slot, const ucp_request_param_t *param) {
    ucs_status_t status = slot->status;

    slot->posting = false;
    if (slot->state != KW_DONE || slot->eager_callback) {
        return kw_slot_application(slot);
    }
    if ((param->op_attr_mask & UCP_OP_ATTR_FIELD_RECV_INFO) != 0) {
        *param->recv_info.tag_info = slot->info;
    }
    if (slot->owned) {
        kw_slot_free(slot);
    }
    return UCS_STATUS_PTR(status);
}

/* The application may do whatever it likes in a callback, and free the request. */
static void done(struct kw_slot *slot, ucs_status_t status) {
    slot->status = status;
    slot->state = KW_DONE;
}

static bool callback_wanted(const struct kw_slot *slot) {
    return slot->callback.send != NULL && (!slot->posting || slot->eager_callback);
}

void kw_send_complete(struct kw_slot *slot, ucs_status_t status) {
    bool released = slot->released;

    done(slot, status);
    if (callback_wanted(slot)) {
        kw_worker.callbacks++;
        slot->callback.send(kw_slot_application(slot), status, slot->user_data);
        kw_worker.callbacks--;
    }
    if (released) {
        kw_slot_free(slot);
    }
}

void kw_receive_complete(struct kw_slot *slot, ucs_status_t status,
                         const ucp_tag_recv_info_t *info) {
    bool released = slot->released;

    slot->info = *info;
    done(slot, status);
    if (callback_wanted(slot)) {
        kw_worker.callbacks++;
        slot->callback.receive(kw_slot_application(slot), status, &slot->info, slot->user_data);
        kw_worker.callbacks--;
    }
    if (released) {
        kw_slot_free(slot);
    }
}
