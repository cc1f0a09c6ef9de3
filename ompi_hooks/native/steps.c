#include "steps.h"

#include "ompi_config.h"

#include <stdio.h>
#include <string.h>

#include "counters.h"
#include "drain.h"
#include "fabric.h"
#include "hold.h"
#include "program.h"
#include "routes.h"
#include "stall.h"
#include "status.h"
#include "step.h"

/* Only the rank's thread touches these. */
static enum kw_state state;
static uint32_t epoch;
static const char *refusal;
static bool switched; /* routes other than r2's own have been published */

enum kw_state kw_state(void) {
    return state;
}

void kw_state_set(enum kw_state next) {
    state = next;
    kw_link_set_state(state, epoch);
}

void kw_side_select(enum kw_side side) {
    kw_routes_publish(side);
    switched = true;
}

enum kw_outcome kw_refused(struct kw_result *result, const char *text) {
    result->text = text;
    return KW_REFUSED;
}

enum kw_outcome kw_not_in_this_state(struct kw_result *result) {
    return kw_refused(result, "the rank is in another state");
}

static enum kw_outcome status(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (!kw_status_append(result->message)) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    return KW_OK;
}

/* Messages of other jobs are counted here and not there, so no two sums would ever agree. */
static enum kw_outcome hold(const struct kw_incoming *incoming, struct kw_result *result) {
    result->text = kw_program_refusal();
    if (result->text != NULL) {
        return KW_REFUSED;
    }
    kw_hold_begin(incoming->received_ns + incoming->command.deadline_ms * 1000000ull);
    return KW_OK;
}

/* As with DRAIN, the reply's counters are the product. */
static enum kw_outcome quiesce(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (!kw_hold_lasts()) {
        return kw_refused(result, "the rank is not parked");
    }
    kw_steps_tend();
    result->all_btls = true;
    return KW_OK;
}

static enum kw_outcome resume(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    (void)result;
    kw_hold_end();
    return KW_OK;
}

enum direction { NEITHER, LEAVE, TAKE, HOLD };

/* `patient`: the program may defer it. What comes later in a switch it cannot: the ranks would wait
 * for each other between two BTLs. */
static const struct {
    uint32_t code;
    enum direction direction;
    uint32_t flags;
    bool patient;
    const char *name;
    kw_step *execute;
} table[] = {
    {KW_STATUS, NEITHER, 0, false, "status", status},
    {KW_RESUME, NEITHER, 0, false, "resume", resume},
    {KW_ABORT, NEITHER, 0, false, "abort", kw_step_abort},
    {KW_PREPARE, LEAVE, 0, true, "prepare", kw_step_prepare},
    {KW_SELECT, LEAVE, 0, true, "select", kw_step_select},
    {KW_DRAIN, LEAVE, KW_STEP_WAVES, false, "drain", kw_step_drain},
    {KW_FINI, LEAVE, KW_STEP_COMMIT, false, "fini", kw_step_fini},
    {KW_INIT, TAKE, KW_STEP_GATHER, true, "init", kw_step_init},
    {KW_MODEX, TAKE, KW_STEP_SCATTER, false, "modex", kw_step_modex},
    {KW_ADD, TAKE, 0, false, "add", kw_step_add},
    {KW_ENABLE, TAKE, KW_STEP_COMMIT, false, "enable", kw_step_enable},
    {KW_HOLD, HOLD, 0, true, "park", hold},
    {KW_QUIESCE, HOLD, KW_STEP_WAVES, false, "quiesce", quiesce},
};

void kw_steps_begin(enum kw_state first, const char *why_not) {
    refusal = why_not;
    kw_state_set(first);
}

/* The place for the next step of a direction, or NULL for a command that is no step. */
static struct kw_step *step_append(struct kw_hello *hello, enum direction direction) {
    switch (direction) {
    case LEAVE:
        return &hello->leave[hello->leave_steps++];
    case TAKE:
        return &hello->take[hello->take_steps++];
    case HOLD:
        return &hello->hold[hello->hold_steps++];
    case NEITHER:
        break;
    }
    return NULL;
}

void kw_steps_describe(struct kw_hello *hello) {
    hello->state = state;
    hello->epoch = epoch;
    strcpy(hello->kind, "btl");
    if (refusal != NULL) {
        snprintf(hello->refusal, sizeof hello->refusal, "%s", refusal);
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct kw_step *step = step_append(hello, table[i].direction);

        if (step != NULL) {
            step->code = table[i].code;
            step->flags = table[i].flags;
            snprintf(step->name, sizeof step->name, "%s", table[i].name);
        }
    }
}

/* May this command be executed at all? Sets *outcome if not. */
static bool is_admitted(const struct kw_incoming *incoming, struct kw_result *result,
                        enum kw_outcome *outcome) {
    const struct kw_command *command = &incoming->command;

    if (kw_clock() - incoming->received_ns > command->deadline_ms * 1000000ull) {
        result->text = "the rank reached its safe point after the deadline";
        *outcome = KW_EXPIRED;
        return false;
    }
    if (command->code == KW_STATUS) {
        return true;
    }
    if (refusal != NULL) {
        *outcome = kw_refused(result, refusal);
        return false;
    }
    if (command->epoch < epoch) {
        result->text = "the rank has seen a newer operation";
        *outcome = KW_STALE;
        return false;
    }
    if (command->epoch > epoch) {
        epoch = command->epoch;
        kw_stall_new_epoch();
        kw_link_set_state(state, epoch);
    }
    return true;
}

static enum kw_outcome execute(const struct kw_incoming *incoming, struct kw_result *result) {
    const struct kw_command *command = &incoming->command;
    enum kw_outcome outcome;

    /* What has been begun is finished, late or not. */
    if (incoming->visits == 0 && !is_admitted(incoming, result, &outcome)) {
        return outcome;
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].code != command->code) {
            continue;
        }
        if (incoming->visits == 0 && table[i].patient && kw_program_defers() != NULL) {
            result->text = kw_program_defers();
            return KW_DEFERRED;
        }
        return table[i].execute(incoming, result);
    }
    result->text = "no such command";
    return KW_UNKNOWN;
}

static void reply_fill(struct kw_reply *reply, const struct kw_incoming *incoming,
                       const struct kw_result *result) {
    struct kw_counts counts =
        result->all_btls ? kw_counters_all() : kw_counters_of(kw_fabric_component());
    struct kw_stall process = kw_stall_read(KW_STALL_PROCESS);
    struct kw_stall newest = kw_stall_read(KW_STALL_EPOCH);

    kw_header_set(&reply->header, KW_REPLY, result->message->size,
                  incoming->command.header.sequence);
    reply->code = incoming->command.code;
    reply->epoch = epoch;
    reply->state = state;
    reply->sent = counts.sent;
    reply->received = counts.received;
    reply->outstanding = counts.outstanding;
    reply->pending = result->all_btls ? kw_drain_unsent() : kw_drain_pending();
    reply->duration_ns = incoming->spent_ns;
    reply->held_ns = kw_hold_duration();
    reply->stall_total_ns = process.total;
    reply->stall_longest_ns = process.longest;
    reply->epoch_stall_total_ns = newest.total;
    reply->epoch_stall_longest_ns = newest.longest;
    reply->blobs = result->blobs;
    if (result->text != NULL) {
        snprintf(reply->text, sizeof reply->text, "%s", result->text);
    }
}

bool kw_steps_execute(struct kw_incoming *incoming) {
    uint64_t began = kw_clock();
    struct kw_message message;
    struct kw_result result = {.message = &message};
    enum kw_outcome outcome;
    struct kw_reply *reply;

    if (!kw_message_begin(&message, sizeof(struct kw_reply))) {
        return true; /* the coordinator sees a time-out, and asks */
    }
    outcome = execute(incoming, &result);
    incoming->visits++;
    incoming->spent_ns += kw_clock() - began;
    if (result.unfinished) {
        kw_message_release(&message);
        return false;
    }
    reply = (struct kw_reply *)(void *)message.bytes;
    reply->outcome = outcome;
    reply_fill(reply, incoming, &result);
    kw_link_reply(incoming->connection, &message);
    return true;
}

bool kw_steps_need_tending(void) {
    return switched;
}

bool kw_steps_wants_tending(void) {
    return kw_drain_pending() > 0 || (state == KW_DRAINING && kw_drain_arrived()) ||
           (kw_hold_lasts() && kw_drain_unsent() > 0);
}

void kw_steps_tend(void) {
    if (state == KW_DRAINING) {
        kw_drain_tend();
    } else {
        kw_drain_retry();
    }
}
