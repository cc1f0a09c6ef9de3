/* The kind `btl`: what it can be told, and how it is tended. */
#include "ompi_config.h"

#include "btl_steps.h"
#include "counters.h"
#include "drain.h"
#include "fabric.h"
#include "hold.h"
#include "kind.h"
#include "opal/runtime/opal_progress.h"
#include "routes.h"
#include "status.h"

static bool switched; /* routes other than r2's own have been published */

void kw_side_select(enum kw_side side) {
    kw_routes_publish(side);
    switched = true;
}

static enum kw_outcome status(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (!kw_status_append(result->message)) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    return KW_OK;
}

enum kw_outcome kw_kind_quiesce(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    kw_kind_tend();
    result->everything = true;
    return KW_OK;
}

const char kw_kind_name[] = "btl";

const struct kw_entry kw_kind_entries[] = {
    {KW_STATUS, KW_NEITHER, 0, false, "status", status},
    {KW_RESUME, KW_NEITHER, 0, false, "resume", kw_hold_resume},
    {KW_ABORT, KW_NEITHER, 0, false, "abort", kw_step_abort},
    {KW_PREPARE, KW_LEAVE, 0, true, "prepare", kw_step_prepare},
    {KW_SELECT, KW_LEAVE, 0, true, "select", kw_step_select},
    {KW_DRAIN, KW_LEAVE, KW_STEP_WAVES, false, "drain", kw_step_drain},
    {KW_FINI, KW_LEAVE, KW_STEP_COMMIT, false, "fini", kw_step_fini},
    {KW_INIT, KW_TAKE, KW_STEP_GATHER, true, "init", kw_step_init},
    {KW_MODEX, KW_TAKE, KW_STEP_SCATTER, false, "modex", kw_step_modex},
    {KW_ADD, KW_TAKE, 0, false, "add", kw_step_add},
    {KW_ENABLE, KW_TAKE, KW_STEP_COMMIT, false, "enable", kw_step_enable},
    {KW_HOLD, KW_HOLDING, 0, true, "park", kw_hold_park},
    {KW_QUIESCE, KW_HOLDING, KW_STEP_WAVES, false, "quiesce", kw_hold_quiesce},
};
const size_t kw_kind_entries_len = sizeof kw_kind_entries / sizeof kw_kind_entries[0];

void kw_kind_measure(const struct kw_result *result, struct kw_reply *reply) {
    struct kw_counts counts =
        result->everything ? kw_counters_all() : kw_counters_of(kw_fabric_component());

    reply->sent = counts.sent;
    reply->received = counts.received;
    reply->outstanding = counts.outstanding;
    reply->pending = result->everything ? kw_drain_unsent() : kw_drain_pending();
}

bool kw_kind_is_safe(void) {
    return kw_depth == 0;
}

void kw_kind_progress(void) {
    opal_progress();
}

bool kw_kind_wants_tending(void) {
    return kw_drain_pending() > 0 || (kw_state() == KW_DRAINING && kw_drain_arrived()) ||
           (kw_hold_lasts() && kw_drain_unsent() > 0);
}

void kw_kind_tend(void) {
    if (kw_state() == KW_DRAINING) {
        kw_drain_tend();
    } else {
        kw_drain_retry();
    }
}

bool kw_kind_needs_tending(void) {
    return switched;
}
