#include "executor.h"

#include <sched.h>

#include "hold.h"
#include "kind.h"
#include "link.h"
#include "poke.h"
#include "program.h"
#include "stall.h"
#include "steps.h"

enum { COMMANDS = 1, TENDING = 2, TELLING = 4 };

/* Why the progress function has anything to do; 0 until the first switch, and then it does
 * nothing else than read this. COMMANDS: set by the link's thread after it queued a command,
 * cleared by the rank's thread before it empties the queue, so that no command is overlooked.
 * TENDING: set by the rank's thread while kw_kind_needs_tending(). TELLING: set and cleared by
 * the rank's thread: a switch is complete, and the program, which a poke had interrupted, has
 * not been told. */
atomic_uint kw_executor_needed;

/* Of the rank's thread: our code is on its stack. The progress function may be called from there
 * again, by HOLD and by the transports that we close and open. */
static bool inside;

/* Of the rank's thread: the command whose next part is due, or NULL. */
static struct kw_incoming *under_way;

/* Run what is queued, until a command is not finished: then the program, or what is received, comes
 * first, and the next visit goes on with it. */
static void commands_run(void) {
    atomic_fetch_and(&kw_executor_needed, ~(unsigned)COMMANDS);
    while (under_way != NULL || (under_way = kw_queues_take()) != NULL) {
        if (!kw_steps_execute(under_way)) {
            kw_executor_attention();
            return;
        }
        kw_queues_finish(under_way);
        under_way = NULL;
    }
}

/* Not while a poke interrupts it: the program may be anywhere then. */
static void program_tell(void) {
    if (kw_program_untold() && !kw_poke_interrupts()) {
        kw_program_tell();
    }
    if (kw_program_untold()) {
        atomic_fetch_or(&kw_executor_needed, TELLING);
    } else {
        atomic_fetch_and(&kw_executor_needed, ~(unsigned)TELLING);
    }
}

void kw_executor_serve(void) {
    unsigned why = atomic_load(&kw_executor_needed);

    if (inside || !kw_kind_is_safe() ||
        ((why & (COMMANDS | TELLING)) == 0 && !kw_kind_wants_tending())) {
        return;
    }
    inside = true;
    kw_stall_begin();
    if ((why & COMMANDS) != 0) {
        commands_run();
    } else {
        kw_kind_tend();
    }
    while (kw_hold_lasts()) {
        kw_kind_progress();
        if ((atomic_load(&kw_executor_needed) & COMMANDS) != 0) {
            commands_run();
        } else if (kw_kind_wants_tending()) {
            kw_kind_tend();
        } else {
            sched_yield();
        }
    }
    if (kw_kind_needs_tending()) {
        atomic_fetch_or(&kw_executor_needed, TENDING);
    } else {
        atomic_fetch_and(&kw_executor_needed, ~(unsigned)TENDING);
    }
    kw_stall_end();
    program_tell();
    inside = false;
}

void kw_executor_attention(void) {
    atomic_fetch_or(&kw_executor_needed, COMMANDS);
}

void kw_executor_stop(void) {
    if (under_way != NULL) {
        kw_queues_finish(under_way);
        under_way = NULL;
    }
}
