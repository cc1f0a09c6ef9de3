#include "swap.h"

#include <stdio.h>
#include <string.h>

#include "address.h"
#include "context.h"
#include "endpoints.h"
#include "kept.h"
#include "kind.h"
#include "program.h"
#include "receives.h"
#include "sends.h"
#include "shim.h"

/* The side that the worker is on, or was. */
static enum kw_ucp_side side;

/* In the states KW_CROSSING: what has been done of the steps. */
static bool restored;

static bool is_held(void) {
    return kw_state() == KW_HELD || kw_state() == KW_CROSSING;
}

/* Only a switch sets `side`. */
static enum kw_ucp_side current_side(void) {
    switch (kw_state()) {
    case KW_ATTACHED:
        return KW_UCP_FABRIC;
    case KW_DETACHED:
        return KW_UCP_FALLBACK;
    default:
        return side;
    }
}

const char *kw_swap_transport(void) {
    return kw_side_name(current_side());
}

static void hold(void) {
    if (kw_state() == KW_ATTACHED || kw_state() == KW_DETACHED) {
        side = current_side();
        kw_state_set(KW_HELD);
    }
    kw_worker.sends_wait = true;
    restored = false;
    if (kw_worker.real != NULL) {
        kw_receives_withdraw();
    }
}

enum kw_outcome kw_swap_hold(const struct kw_incoming *incoming, struct kw_result *result) {
    const char *refusal = is_held() ? NULL : kw_kind_refusal();

    (void)incoming;
    if (refusal != NULL) {
        return kw_refused(result, refusal);
    }
    hold();
    return KW_OK;
}

/* Asked before anything is touched: without it the ranks would come back from between the sides. */
enum kw_outcome kw_swap_hold_for_fabric(const struct kw_incoming *incoming,
                                        struct kw_result *result) {
    ucp_context_h trial;
    bool present = false;

    if (!is_held()) {
        if (kw_side_open(KW_UCP_FABRIC, &trial, &present) == UCS_OK) {
            kw_real.ucp_cleanup(trial);
        }
        if (!present) {
            result->text = "UCX finds no device for the fabric's transports";
            return KW_NO_DEVICE;
        }
    }
    return kw_swap_hold(incoming, result);
}

bool kw_swap_tend(void) {
    if (kw_worker.real == NULL) {
        return true;
    }
    kw_real.ucp_worker_progress(kw_worker.real);
    return kw_kept_pull();
}

bool kw_swap_quiesce(void) {
    if (kw_state() == KW_CROSSING) {
        return false;
    }
    hold();
    return true;
}

/* The reply's counters are this step's product. */
enum kw_outcome kw_swap_drain(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (!is_held()) {
        return kw_not_in_this_state(result);
    }
    if (!kw_swap_tend()) {
        result->text = "more has arrived that nobody receives than may be kept";
        return KW_NO_ROOM;
    }
    return KW_OK;
}

enum kw_outcome kw_swap_disconnect(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (!is_held()) {
        return kw_not_in_this_state(result);
    }
    if (kw_state() == KW_HELD &&
        (kw_worker.sending > 0 || kw_worker.fetching > 0 || kw_receives_active() > 0)) {
        result->text = "messages are still under way";
        return KW_BUSY;
    }
    kw_state_set(KW_CROSSING);
    result->unfinished = kw_worker.real != NULL && !kw_endpoints_close_part();
    return KW_OK;
}

enum kw_outcome kw_swap_close(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() != KW_CROSSING) {
        return kw_not_in_this_state(result);
    }
    kw_context_close();
    return KW_OK;
}

/* Append the worker's address to the reply. */
static enum kw_outcome publish(struct kw_result *result) {
    struct kw_blob blob = {.jobid = kw_shim_jobid(), .vpid = kw_shim_vpid(), .key = "ucp.worker"};
    ucp_address_t *address;
    size_t size;
    bool told;

    if (ucp_worker_get_address((ucp_worker_h)(void *)&kw_worker, &address, &size) != UCS_OK) {
        result->text = "UCX does not tell the address of its worker";
        return KW_FAILED;
    }
    blob.size = (uint32_t)size;
    told = kw_message_append_blob(result->message, &blob, address);
    ucp_worker_release_address((ucp_worker_h)(void *)&kw_worker, address);
    if (!told) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    result->blobs = 1;
    return KW_OK;
}

static enum kw_outcome init(enum kw_ucp_side next, struct kw_result *result) {
    static char text[128];
    bool present = false;
    ucs_status_t status;

    if (kw_state() != KW_CROSSING) {
        return kw_not_in_this_state(result);
    }
    if (kw_worker.real == NULL) {
        status = kw_context_open(next, &present);
        if (status != UCS_OK) {
            snprintf(text, sizeof text, "UCX makes no worker on %s: its status is %d",
                     kw_side_name(next), status);
            result->text = text;
            return next == KW_UCP_FABRIC ? KW_NO_DEVICE : KW_FAILED;
        }
        if (!present) {
            kw_context_close();
            result->text = "UCX finds no device for these transports";
            return KW_NO_DEVICE;
        }
        side = next;
    } else if (side != next) {
        return kw_not_in_this_state(result);
    }
    return publish(result);
}

enum kw_outcome kw_swap_init_fallback(const struct kw_incoming *incoming,
                                      struct kw_result *result) {
    (void)incoming;
    return init(KW_UCP_FALLBACK, result);
}

enum kw_outcome kw_swap_init_fabric(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    return init(KW_UCP_FABRIC, result);
}

enum kw_outcome kw_swap_modex(const struct kw_incoming *incoming, struct kw_result *result) {
    if (kw_state() != KW_CROSSING || kw_worker.real == NULL) {
        return kw_not_in_this_state(result);
    }
    for (const struct kw_blob *blob = kw_blob_next(&incoming->command, NULL); blob != NULL;
         blob = kw_blob_next(&incoming->command, blob)) {
        const struct kw_address *address = kw_address_check(blob + 1, blob->size);

        if (address == NULL || address->vpid != blob->vpid || address->jobid != kw_shim_jobid() ||
            address->vpid >= kw_shim_ranks()) {
            result->text = "a peer's address is malformed";
            return KW_BAD_MESSAGE;
        }
        if (!kw_addresses_keep(address, kw_shim_ranks())) {
            result->text = "out of memory";
            return KW_FAILED;
        }
    }
    return KW_OK;
}

enum kw_outcome kw_swap_restore(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() != KW_CROSSING || kw_worker.real == NULL) {
        return kw_not_in_this_state(result);
    }
    result->text = kw_endpoints_open();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_receives_release();
    restored = true;
    return KW_OK;
}

enum kw_outcome kw_swap_enable(const struct kw_incoming *incoming, struct kw_result *result) {
    enum kw_state goal = side == KW_UCP_FABRIC ? KW_ATTACHED : KW_DETACHED;

    (void)incoming;
    if (kw_state() == goal) {
        return KW_OK;
    }
    if (kw_state() != KW_CROSSING || !restored) {
        return kw_not_in_this_state(result);
    }
    /* Those that the program has made since. */
    result->text = kw_endpoints_open();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_state_set(goal);
    kw_sends_release();
    kw_program_switched(kw_side_name(side));
    return KW_OK;
}

void kw_swap_let_go(void) {
    if (kw_state() == KW_HELD) {
        kw_state_set(side == KW_UCP_FABRIC ? KW_ATTACHED : KW_DETACHED);
        kw_receives_release();
        kw_sends_release();
    }
}

enum kw_outcome kw_swap_abort(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_CROSSING) {
        return kw_refused(result, "the rank is between two transports: only the fallback leads on");
    }
    kw_swap_let_go();
    return KW_OK;
}
