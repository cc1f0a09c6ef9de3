#include "executor.h"

#include "ompi_config.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "counters.h"
#include "hold.h"
#include "link.h"
#include "opal/runtime/opal_progress.h"
#include "poke.h"
#include "program.h"
#include "stall.h"
#include "steps.h"

enum { COMMANDS = 1, TENDING = 2, TELLING = 4 };

/* Why the progress function has anything to do; 0 until the first switch, and then it does nothing
 * else than read this.
 * COMMANDS: set by the link's thread after it queued a command, cleared by the rank's thread before
 * it empties the queue, so that no command is overlooked.
 * TENDING: set by the rank's thread when kw_steps_need_tending() has become true, for good.
 * TELLING: set and cleared by the rank's thread: a switch is complete, and the program, which a poke
 * had interrupted, has not been told. */
static atomic_uint attention;

/* Of the rank's thread: our code is on its stack. Open MPI's progress function may be called from
 * there again, by HOLD and by the BTLs that we close and open. */
static bool inside;

static bool registered;

/* Of the rank's thread: the command whose next part is due, or NULL. */
static struct kw_incoming *under_way;

/* Run what is queued, until a command is not finished: then the program, or what is received, comes
 * first, and the next visit goes on with it. */
static void commands_run(void) {
    atomic_fetch_and(&attention, ~(unsigned)COMMANDS);
    while (under_way != NULL || (under_way = kw_link_take()) != NULL) {
        if (!kw_steps_execute(under_way)) {
            kw_executor_attention();
            return;
        }
        kw_link_finish(under_way);
        under_way = NULL;
    }
}

/* Not while a poke interrupts it: the program may be anywhere then. */
static void program_tell(void) {
    if (kw_program_untold() && !kw_poke_interrupts()) {
        kw_program_tell();
    }
    if (kw_program_untold()) {
        atomic_fetch_or(&attention, TELLING);
    } else {
        atomic_fetch_and(&attention, ~(unsigned)TELLING);
    }
}

/* The safe point: nothing of a BTL and nothing of ours is on the stack, and no other thread is in
 * Open MPI. */
static int serve(unsigned why) {
    if (inside || kw_depth > 0 ||
        ((why & (COMMANDS | TELLING)) == 0 && !kw_steps_wants_tending())) {
        return 0;
    }
    inside = true;
    kw_stall_begin();
    if ((why & COMMANDS) != 0) {
        commands_run();
    } else {
        kw_steps_tend();
    }
    while (kw_hold_lasts()) {
        opal_progress();
        if ((atomic_load(&attention) & COMMANDS) != 0) {
            commands_run();
        } else if (kw_steps_wants_tending()) {
            kw_steps_tend();
        } else {
            sched_yield();
        }
    }
    if (kw_steps_need_tending()) {
        atomic_fetch_or(&attention, TENDING);
    }
    kw_stall_end();
    program_tell();
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
    if (under_way != NULL) {
        kw_link_finish(under_way);
        under_way = NULL;
    }
}
