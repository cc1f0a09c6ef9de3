#include "swap.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "connect.h"
#include "endpoints.h"
#include "kept.h"
#include "kind.h"
#include "program.h"
#include "receives.h"
#include "sends.h"
#include "shim.h"
#include "spare.h"
#include "stall.h"

/* How long HOLD waits for what MODEX has not seen connected. */
#define CONNECTED_LATE_NS (3 * 1000000000ull)

/* The side in use, or last used; of the states ATTACHED and DETACHED it is what they say. */
static enum kw_ucp_side side;

/* In the state KW_CROSSING: since the last INIT, the transports have been exchanged. */
static bool exchanged;

static bool is_held(void) {
    return kw_state() == KW_HELD || kw_state() == KW_CROSSING;
}

static bool is_settled(void) {
    return kw_state() == KW_ATTACHED || kw_state() == KW_DETACHED;
}

static enum kw_ucp_side current_side(void) {
    if (is_settled()) {
        side = kw_state() == KW_ATTACHED ? KW_UCP_FABRIC : KW_UCP_FALLBACK;
    }
    return side;
}

static enum kw_state settled_state(void) {
    return side == KW_UCP_FABRIC ? KW_ATTACHED : KW_DETACHED;
}

/* There is another transport than the one in use, or will be. */
static enum kw_state prepared_state(void) {
    return side == KW_UCP_FABRIC ? KW_PREPARED : KW_OPENED;
}

const char *kw_swap_transport(void) {
    return kw_side_name(current_side());
}

/* Append the spare worker's address to the reply. */
static enum kw_outcome publish(struct kw_result *result) {
    struct kw_blob blob = {.jobid = kw_shim_jobid(), .vpid = kw_shim_vpid(), .key = "ucp.worker"};
    struct kw_address *address;
    ucp_address_t *bytes;
    size_t size;
    bool told;

    if (kw_real.ucp_worker_get_address(kw_spare_worker(), &bytes, &size) != UCS_OK) {
        result->text = "UCX does not tell the address of its worker";
        return KW_FAILED;
    }
    address = kw_address_make(blob.jobid, blob.vpid, bytes, size);
    kw_real.ucp_worker_release_address(kw_spare_worker(), bytes);
    if (address != NULL) {
        blob.size = (uint32_t)kw_address_length(address);
    }
    told = address != NULL && kw_message_append_blob(result->message, &blob, address);
    free(address);
    if (!told) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    result->blobs = 1;
    return KW_OK;
}

/* The thread has ended: tell the address, or why there is none. */
static enum kw_outcome made(enum kw_ucp_side next, struct kw_result *result) {
    static char text[128];
    bool present;
    ucs_status_t status = kw_spare_outcome(&present);

    if (kw_spare_worker() != NULL) {
        return publish(result);
    }
    if (!is_held()) {
        kw_state_set(settled_state());
    }
    if (status != UCS_OK) {
        snprintf(text, sizeof text, "UCX makes no worker on %s: its status is %d",
                 kw_side_name(next), status);
        result->text = text;
        return next == KW_UCP_FABRIC ? KW_NO_DEVICE : KW_FAILED;
    }
    result->text = "UCX finds no device for these transports";
    return KW_NO_DEVICE;
}

/* Always another one: the peers' endpoints may be closed, or were made for an operation that was
 * broken off. */
static enum kw_outcome init(enum kw_ucp_side next, const struct kw_incoming *incoming,
                            struct kw_result *result) {
    static bool begun;
    const char *refusal = incoming->visits > 0 || is_held() ? NULL : kw_kind_refusal();

    if (refusal != NULL) {
        return kw_refused(result, refusal);
    }
    begun = begun && incoming->visits > 0;
    if (!kw_spare_is_idle()) {
        result->unfinished = true;
    } else if (!begun) {
        side = current_side();
        if (is_settled()) {
            kw_state_set(prepared_state());
        }
        exchanged = false;
        kw_spare_make(next);
        begun = true;
        result->unfinished = true;
    } else {
        return made(next, result);
    }
    return KW_OK;
}

enum kw_outcome kw_swap_init_fallback(const struct kw_incoming *incoming,
                                      struct kw_result *result) {
    return init(KW_UCP_FALLBACK, incoming, result);
}

enum kw_outcome kw_swap_init_fabric(const struct kw_incoming *incoming, struct kw_result *result) {
    return init(KW_UCP_FABRIC, incoming, result);
}

static enum kw_outcome addresses_keep(const struct kw_command *command, struct kw_result *result) {
    for (const struct kw_blob *blob = kw_blob_next(command, NULL); blob != NULL;
         blob = kw_blob_next(command, blob)) {
        const struct kw_address *address = kw_address_check(blob + 1, blob->size);

        if (address == NULL || address->vpid != blob->vpid || address->jobid != kw_shim_jobid() ||
            address->vpid >= kw_shim_ranks()) {
            result->text = "a peer's address is malformed";
            return KW_BAD_MESSAGE;
        }
        if (!kw_addresses_keep_new(address, kw_shim_ranks())) {
            result->text = "out of memory";
            return KW_FAILED;
        }
    }
    return KW_OK;
}

enum kw_outcome kw_swap_modex(const struct kw_incoming *incoming, struct kw_result *result) {
    enum kw_outcome outcome = KW_OK;
    uint64_t ends;

    if (incoming->visits == 0) {
        outcome = kw_spare_worker() != NULL && !exchanged
                      ? addresses_keep(&incoming->command, result)
                      : kw_not_in_this_state(result);
    }
    if (outcome != KW_OK) {
        return outcome;
    }
    ends = incoming->received_ns + incoming->command.deadline_ms * 1000000ull;
    result->unfinished = !kw_connect_part(ends, &result->text);
    return result->text == NULL ? KW_OK : KW_NO_PATH;
}

static void hold(void) {
    side = current_side();
    if (kw_state() != KW_CROSSING) {
        kw_state_set(KW_HELD);
    }
    kw_worker.sends_wait = true;
    kw_receives_withdraw();
}

enum kw_outcome kw_swap_hold(const struct kw_incoming *incoming, struct kw_result *result) {
    const char *refusal = is_held() ? NULL : kw_kind_refusal();
    uint64_t patience = incoming->command.deadline_ms * 500000ull;

    if (refusal != NULL) {
        return kw_refused(result, refusal);
    }
    if (kw_spare_worker() == NULL || exchanged) {
        return kw_not_in_this_state(result);
    }
    /* Every peer has made its endpoints by now, and others may be held already: where one is not
     * connected, messages would never arrive. */
    if (!kw_connect_is_done(&result->text)) {
        patience = patience < CONNECTED_LATE_NS ? patience : CONNECTED_LATE_NS;
        result->unfinished = kw_clock() - incoming->received_ns < patience;
    }
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    hold();
    return KW_OK;
}

bool kw_swap_tend(void) {
    kw_real.ucp_worker_progress(kw_worker.real);
    kw_spare_progress();
    return !kw_worker.receives_wait || kw_kept_pull();
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
    if (!is_held() || kw_spare_worker() == NULL || exchanged) {
        return kw_not_in_this_state(result);
    }
    if (kw_worker.sending > 0 || kw_worker.fetching > 0 || kw_receives_active() > 0) {
        result->text = "messages are still under way";
        return KW_BUSY;
    }
    kw_state_set(KW_CROSSING);
    result->unfinished = !kw_endpoints_close_part();
    return KW_OK;
}

enum kw_outcome kw_swap_restore(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() != KW_CROSSING || (!exchanged && kw_spare_worker() == NULL)) {
        return kw_not_in_this_state(result);
    }
    if (!exchanged) {
        side = kw_spare_exchange(side);
        exchanged = true;
    }
    /* Those that the program has made since. */
    result->text = kw_endpoints_open();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_receives_release();
    return KW_OK;
}

enum kw_outcome kw_swap_enable(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() != KW_CROSSING || !exchanged || kw_worker.receives_wait) {
        return kw_not_in_this_state(result);
    }
    result->text = kw_endpoints_open();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_sends_release();
    return KW_OK;
}

enum kw_outcome kw_swap_close(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (is_settled()) {
        return KW_OK;
    }
    if (kw_state() != KW_CROSSING || !exchanged || kw_worker.sends_wait) {
        return kw_not_in_this_state(result);
    }
    result->unfinished = !kw_spare_unmake_part();
    if (!result->unfinished) {
        kw_state_set(settled_state());
        kw_program_switched(kw_side_name(side));
    }
    return KW_OK;
}

bool kw_swap_back_part(void) {
    if (is_settled() || kw_state() == KW_CROSSING) {
        return true;
    }
    if (kw_state() == KW_HELD) {
        kw_state_set(prepared_state());
        kw_receives_release();
        kw_sends_release();
    }
    if (!kw_spare_unmake_part()) {
        return false;
    }
    kw_state_set(settled_state());
    return true;
}

enum kw_outcome kw_swap_abort(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_CROSSING) {
        return kw_refused(result, "the rank is between two transports: the steps lead on");
    }
    result->unfinished = !kw_swap_back_part();
    return KW_OK;
}
