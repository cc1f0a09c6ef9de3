#include "hold.h"

#include "kind.h"
#include "stall.h"

/* Only the rank's thread touches these. */
static uint64_t since; /* on kw_clock(); 0: not parked */
static uint64_t ends;

/* Refused where a switch would be: messages of other jobs are counted here and not there, so no two
 * sums would ever agree. */
enum kw_outcome kw_hold_park(const struct kw_incoming *incoming, struct kw_result *result) {
    const char *refusal = kw_kind_refusal();

    if (refusal != NULL) {
        return kw_refused(result, refusal);
    }
    if (!kw_hold_lasts()) {
        since = kw_clock();
    }
    ends = incoming->received_ns + incoming->command.deadline_ms * 1000000ull;
    return KW_OK;
}

enum kw_outcome kw_hold_quiesce(const struct kw_incoming *incoming, struct kw_result *result) {
    return kw_hold_lasts() ? kw_kind_quiesce(incoming, result)
                           : kw_refused(result, "the rank is not parked");
}

/* What the kind held back goes on at once, so that the reply tells of it. */
enum kw_outcome kw_hold_resume(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    (void)result;
    since = 0;
    kw_kind_tend();
    return KW_OK;
}

bool kw_hold_lasts(void) {
    if (since != 0 && kw_clock() >= ends) {
        since = 0;
    }
    return since != 0;
}

uint64_t kw_hold_duration(void) {
    return kw_hold_lasts() ? kw_clock() - since : 0;
}
