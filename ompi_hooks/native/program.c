#include "program.h"

#include <stdio.h>
#include <string.h>

#include "kawarimi_program.h"
#include "kind.h"
#include "stall.h"

#define EXPORT __attribute__((visibility("default")))

static const char *refusal = "MPI_Init has not ended";
static bool serving; /* between MPI_Init and MPI_Finalize */

static unsigned deferrals; /* sections that the program is in, one within the other */
static char deferral_reason[KAWARIMI_REASON]; /* of the outermost */

static struct kawarimi_switch last;
static bool untold;
static int (*watcher_schedule)(kawarimi_callback *, void *);
static kawarimi_callback *watcher_callback;
static void *watcher_data;

void kw_program_begin(const char *why_not) {
    refusal = why_not;
    serving = true;
}

void kw_program_end(void) {
    serving = false;
    watcher_schedule = NULL;
}

const char *kw_program_defers(void) {
    return deferrals > 0 ? deferral_reason : NULL;
}

void kw_program_switched(const char *to) {
    last.number++;
    snprintf(last.transport, sizeof last.transport, "%s", to);
    untold = true;
}

bool kw_program_untold(void) {
    return untold;
}

void kw_program_tell(void) {
    struct kw_stall stall = kw_stall_read(KW_STALL_EPOCH);

    untold = false;
    last.stall_total_ns = stall.total;
    last.stall_longest_ns = stall.longest;
    if (watcher_schedule != NULL) {
        watcher_schedule(watcher_callback, watcher_data);
    }
}

EXPORT int kawarimi_program_version(void) {
    return KAWARIMI_PROGRAM_VERSION;
}

EXPORT const char *kawarimi_program_refusal(void) {
    return refusal;
}

EXPORT int kawarimi_program_peers(struct kawarimi_peer *peers, int capacity) {
    return serving ? kw_kind_peers(peers, capacity) : 0;
}

EXPORT void kawarimi_program_last_switch(struct kawarimi_switch *result) {
    *result = last;
}

EXPORT void kawarimi_program_watch(int (*schedule)(kawarimi_callback *, void *),
                                   kawarimi_callback *callback, void *data) {
    watcher_schedule = schedule;
    watcher_callback = callback;
    watcher_data = data;
}

EXPORT void kawarimi_program_defer(const char *reason) {
    if (deferrals++ == 0) {
        snprintf(deferral_reason, sizeof deferral_reason, "%s", reason);
    }
}

EXPORT void kawarimi_program_allow(void) {
    if (deferrals > 0) {
        deferrals--;
    }
}
