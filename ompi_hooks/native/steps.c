#include "steps.h"

#include <stdio.h>
#include <string.h>

#include "hold.h"
#include "kind.h"
#include "program.h"
#include "stall.h"

/* Only the rank's thread touches these. */
static enum kw_state state;
static uint32_t epoch;
static const char *refusal;

enum kw_state kw_state(void) {
    return state;
}

void kw_state_set(enum kw_state next) {
    state = next;
    kw_link_set_state(state, epoch);
}

enum kw_outcome kw_refused(struct kw_result *result, const char *text) {
    result->text = text;
    return KW_REFUSED;
}

enum kw_outcome kw_not_in_this_state(struct kw_result *result) {
    return kw_refused(result, "the rank is in another state");
}

void kw_steps_begin(enum kw_state first, const char *why_not) {
    refusal = why_not;
    kw_state_set(first);
}

/* The place for the next step of a direction, or NULL for a command that is no step. */
static struct kw_step *step_append(struct kw_hello *hello, enum kw_direction direction) {
    switch (direction) {
    case KW_LEAVE:
        return &hello->leave[hello->leave_steps++];
    case KW_TAKE:
        return &hello->take[hello->take_steps++];
    case KW_HOLDING:
        return &hello->hold[hello->hold_steps++];
    case KW_NEITHER:
        break;
    }
    return NULL;
}

void kw_steps_describe(struct kw_hello *hello) {
    hello->state = state;
    hello->epoch = epoch;
    snprintf(hello->kind, sizeof hello->kind, "%s", kw_kind_name);
    if (refusal != NULL) {
        snprintf(hello->refusal, sizeof hello->refusal, "%s", refusal);
    }
    for (size_t i = 0; i < kw_kind_entries_len; i++) {
        struct kw_step *step = step_append(hello, kw_kind_entries[i].direction);

        if (step != NULL) {
            step->code = kw_kind_entries[i].code;
            step->flags = kw_kind_entries[i].flags;
            snprintf(step->name, sizeof step->name, "%s", kw_kind_entries[i].name);
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
    for (size_t i = 0; i < kw_kind_entries_len; i++) {
        if (kw_kind_entries[i].code != command->code) {
            continue;
        }
        /* Between two transports the other ranks would wait for it. */
        if (incoming->visits == 0 && kw_kind_entries[i].patient && state != KW_CROSSING &&
            kw_program_defers() != NULL) {
            result->text = kw_program_defers();
            return KW_DEFERRED;
        }
        return kw_kind_entries[i].execute(incoming, result);
    }
    result->text = "no such command";
    return KW_UNKNOWN;
}

static void reply_fill(struct kw_reply *reply, const struct kw_incoming *incoming,
                       const struct kw_result *result) {
    struct kw_stall process = kw_stall_read(KW_STALL_PROCESS);
    struct kw_stall newest = kw_stall_read(KW_STALL_EPOCH);

    kw_header_set(&reply->header, KW_REPLY, result->message->size,
                  incoming->command.header.sequence);
    reply->code = incoming->command.code;
    reply->epoch = epoch;
    reply->state = state;
    kw_kind_measure(result, reply);
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
