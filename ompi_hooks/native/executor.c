#include "executor.h"

#include "ompi_config.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "counters.h"
#include "drain.h"
#include "link.h"
#include "opal/runtime/opal_progress.h"
#include "stall.h"
#include "steps.h"

enum { COMMANDS = 1, DRAINING = 2 };

/* Why the progress function has anything to do; 0 almost always, and then it does nothing else than
 * read this.
 * COMMANDS: set by the link's thread after it queued a command, cleared by the rank's thread before
 * it empties the queue, so that no command is overlooked.
 * DRAINING: the rank's thread's alone, equal to kw_steps_draining() whenever it leaves our code. */
static atomic_uint attention;

/* Of the rank's thread: our code is on its stack. Open MPI's progress function may be called from
 * there again, by HOLD and by the BTLs that we close and open. */
static bool inside;

static bool registered;

static void commands_run(void) {
    struct kw_incoming *incoming;

    atomic_fetch_and(&attention, ~(unsigned)COMMANDS);
    while ((incoming = kw_link_take()) != NULL) {
        kw_steps_execute(incoming);
        free(incoming);
    }
}

/* The safe point: nothing of a BTL and nothing of ours is on the stack, and no other thread is in
 * Open MPI. */
static int serve(unsigned why) {
    if (inside || kw_depth > 0) {
        return 0;
    }
    if ((why & COMMANDS) == 0 && !kw_drain_wants_tending()) {
        return 0;
    }
    inside = true;
    kw_stall_begin();
    if ((why & COMMANDS) != 0) {
        commands_run();
    } else {
        kw_drain_tend();
    }
    while (kw_steps_held()) {
        opal_progress();
        if (kw_steps_draining() && kw_drain_wants_tending()) {
            kw_drain_tend();
        }
        if ((atomic_load(&attention) & COMMANDS) != 0) {
            commands_run();
        } else {
            sched_yield();
        }
    }
    if (kw_steps_draining()) {
        atomic_fetch_or(&attention, DRAINING);
    } else {
        atomic_fetch_and(&attention, ~(unsigned)DRAINING);
    }
    kw_stall_end();
    inside = false;
    return 1;
}

static int progress(void) {
    unsigned why = atomic_load_explicit(&attention, memory_order_relaxed);

    return OPAL_LIKELY(why == 0) ? 0 : serve(why);
}

void kw_executor_attention(void) {
    atomic_fetch_or(&attention, COMMANDS);
}

int kw_executor_start(void) {
    int rc = opal_progress_register_lp(progress);

    registered = rc == OPAL_SUCCESS;
    return rc;
}

void kw_executor_stop(void) {
    if (registered) {
        registered = false;
        opal_progress_unregister(progress);
    }
}
