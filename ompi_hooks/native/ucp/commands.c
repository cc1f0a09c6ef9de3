/* The kind `ucp`: what it can be told, and how it is tended. */
#include <stdio.h>

#include "hold.h"
#include "kawarimi_program.h"
#include "kind.h"
#include "receives.h"
#include "shim.h"
#include "spare.h"
#include "swap.h"

const char kw_kind_name[] = "ucp";

/* The rank was held by HOLD, and not by a switch. */
static bool quiet;

/* One component, which carries everything, and every rank of the job as a peer. */
static enum kw_outcome status(const struct kw_incoming *incoming, struct kw_result *result) {
    struct kw_component component = {
        .sent = kw_worker.sent,
        .received = kw_worker.received,
        .outstanding = kw_worker.sending + kw_worker.fetching,
        .counted = 1,
        .modules = 1,
    };
    struct kw_reply *reply;
    uint32_t told = 0;

    (void)incoming;
    snprintf(component.name, sizeof component.name, "%s", kw_swap_transport());
    if (!kw_message_append(result->message, &component, sizeof component)) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    for (uint32_t i = 0; i < kw_shim_ranks(); i++) {
        const struct kw_peer peer = {
            .jobid = kw_shim_jobid(), .vpid = i, .eager = 1, .send = 1, .rdma = 1};

        if (i != kw_shim_vpid() && kw_message_append(result->message, &peer, sizeof peer)) {
            told++;
        }
    }
    reply = (struct kw_reply *)(void *)result->message->bytes;
    reply->components = 1;
    reply->peers = told;
    reply->peers_total = kw_shim_ranks() - 1;
    return KW_OK;
}

/* A parked rank sends nothing; but what has arrived for nobody counts only once it is kept. */
enum kw_outcome kw_kind_quiesce(const struct kw_incoming *incoming, struct kw_result *result) {
    if (!kw_swap_quiesce()) {
        return kw_not_in_this_state(result);
    }
    quiet = true;
    return kw_swap_drain(incoming, result);
}

const struct kw_entry kw_kind_entries[] = {
    {KW_STATUS, KW_NEITHER, 0, false, "status", status},
    {KW_RESUME, KW_NEITHER, 0, false, "resume", kw_hold_resume},
    {KW_ABORT, KW_NEITHER, 0, false, "abort", kw_swap_abort},
    {KW_UCP_INIT_FALLBACK, KW_LEAVE, KW_STEP_GATHER, true, "init", kw_swap_init_fallback},
    {KW_UCP_MODEX, KW_LEAVE, KW_STEP_SCATTER, false, "modex", kw_swap_modex},
    {KW_UCP_HOLD, KW_LEAVE, 0, true, "hold", kw_swap_hold},
    {KW_UCP_DRAIN, KW_LEAVE, KW_STEP_WAVES, false, "drain", kw_swap_drain},
    {KW_UCP_DISCONNECT, KW_LEAVE, KW_STEP_COMMIT, false, "disconnect", kw_swap_disconnect},
    {KW_UCP_RESTORE, KW_LEAVE, 0, false, "restore", kw_swap_restore},
    {KW_UCP_ENABLE, KW_LEAVE, 0, false, "enable", kw_swap_enable},
    {KW_UCP_CLOSE, KW_LEAVE, 0, false, "close", kw_swap_close},
    {KW_UCP_INIT_FABRIC, KW_TAKE, KW_STEP_GATHER, true, "init", kw_swap_init_fabric},
    {KW_UCP_MODEX, KW_TAKE, KW_STEP_SCATTER, false, "modex", kw_swap_modex},
    {KW_UCP_HOLD, KW_TAKE, 0, true, "hold", kw_swap_hold},
    {KW_UCP_DRAIN, KW_TAKE, KW_STEP_WAVES, false, "drain", kw_swap_drain},
    {KW_UCP_DISCONNECT, KW_TAKE, KW_STEP_COMMIT, false, "disconnect", kw_swap_disconnect},
    {KW_UCP_RESTORE, KW_TAKE, 0, false, "restore", kw_swap_restore},
    {KW_UCP_ENABLE, KW_TAKE, 0, false, "enable", kw_swap_enable},
    {KW_UCP_CLOSE, KW_TAKE, 0, false, "close", kw_swap_close},
    {KW_HOLD, KW_HOLDING, 0, true, "park", kw_hold_park},
    {KW_QUIESCE, KW_HOLDING, KW_STEP_WAVES, false, "quiesce", kw_hold_quiesce},
};
const size_t kw_kind_entries_len = sizeof kw_kind_entries / sizeof kw_kind_entries[0];

void kw_kind_measure(const struct kw_result *result, struct kw_reply *reply) {
    (void)result;
    reply->sent = kw_worker.sent;
    reply->received = kw_worker.received;
    reply->outstanding = kw_worker.sending + kw_worker.fetching;
    if (kw_worker.receives_wait) {
        reply->outstanding += kw_receives_active();
    }
    reply->kept = kw_worker.kept_bytes;
}

bool kw_kind_is_safe(void) {
    return kw_worker.callbacks == 0;
}

void kw_kind_progress(void) {
    ucp_worker_progress((ucp_worker_h)(void *)&kw_worker);
}

/* While a rank is held, what arrives is to be kept, so that its senders get on; and the endpoints of
 * a spare transport connect to each other. */
bool kw_kind_wants_tending(void) {
    return kw_worker.receives_wait || quiet || kw_spare_worker() != NULL;
}

void kw_kind_tend(void) {
    if (quiet && !kw_hold_lasts() && kw_swap_back_part()) {
        quiet = false;
    }
    (void)kw_swap_tend();
}

bool kw_kind_needs_tending(void) {
    return kw_kind_wants_tending();
}

int kw_kind_peers(struct kawarimi_peer *peers, int capacity) {
    int len = 0;

    for (uint32_t i = 0; i < kw_shim_ranks(); i++) {
        if (i == kw_shim_vpid()) {
            continue;
        }
        if (len < capacity) {
            peers[len] = (struct kawarimi_peer){.rank = (int32_t)i, .transports = 1};
            snprintf(peers[len].names[0], KAWARIMI_NAME, "%s", kw_swap_transport());
        }
        len++;
    }
    return len;
}
