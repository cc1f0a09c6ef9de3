#include "hold.h"

#include "stall.h"

/* Only the rank's thread touches these. */
static uint64_t since; /* on kw_clock(); 0: not parked */
static uint64_t ends;

void kw_hold_begin(uint64_t until) {
    if (!kw_hold_lasts()) {
        since = kw_clock();
    }
    ends = until;
}

void kw_hold_end(void) {
    since = 0;
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
