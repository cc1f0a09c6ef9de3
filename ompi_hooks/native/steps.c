#include "steps.h"

#include "ompi_config.h"

#include <stdio.h>
#include <string.h>

#include "counters.h"
#include "drain.h"
#include "fabric.h"
#include "layout.h"
#include "modex.h"
#include "peers.h"
#include "r2.h"
#include "routes.h"
#include "stall.h"
#include "status.h"

/* Only the rank's thread touches these. */
static enum kw_state state;
static uint32_t epoch;
static uint64_t held_until; /* on kw_clock(); 0: not held */
static const char *refusal;
static bool switched; /* routes other than r2's own have been published */

/* A step's result besides its outcome. */
struct result {
    struct kw_message *message; /* the reply, to append blobs to */
    uint32_t blobs;
    const char *text;
};

static void state_set(enum kw_state next) {
    state = next;
    kw_link_set_state(state, epoch);
}

static void routes_publish(enum kw_side side) {
    kw_routes_publish(side);
    switched = true;
}

static enum kw_outcome refused(struct result *result, const char *text) {
    result->text = text;
    return KW_REFUSED;
}

static enum kw_outcome not_in_this_state(struct result *result) {
    return refused(result, "the rank is in another state");
}

/* What the program does at the moment that a switch would break; NULL if nothing. */
static const char *program_refusal(void) {
    if (kw_peers_of_other_jobs()) {
        return "the program communicates with another job (spawn or connect)";
    }
    return kw_status_windows_refusal();
}

static const char *fallback_make_ready(void) {
    const char *failed = kw_peers_refresh();

    if (failed == NULL) {
        failed = kw_routes_reach_fallback();
    }
    return failed != NULL ? failed : kw_routes_build(KW_FALLBACK);
}

/* Every peer reachable on both sides, and r2 makes no new endpoint on the fabric: from the barrier
 * after it on, of any two ranks either both or neither have an endpoint there. */
static enum kw_outcome prepare(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state == KW_PREPARED || state == KW_DRAINING) {
        return KW_OK;
    }
    if (state != KW_ATTACHED) {
        return not_in_this_state(result);
    }
    result->text = program_refusal();
    if (result->text != NULL) {
        return KW_REFUSED;
    }
    result->text = fallback_make_ready();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_r2_withhold_fabric();
    state_set(KW_PREPARED);
    return KW_OK;
}

static enum kw_outcome select_fallback(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state == KW_DRAINING) {
        return KW_OK;
    }
    if (state != KW_PREPARED) {
        return not_in_this_state(result);
    }
    routes_publish(KW_FALLBACK);
    state_set(KW_DRAINING);
    kw_drain_tend();
    return KW_OK;
}

/* The reply's counters are this step's product. */
static enum kw_outcome drain(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state != KW_DRAINING) {
        return not_in_this_state(result);
    }
    kw_drain_tend();
    return KW_OK;
}

static void fabric_leave(void) {
    kw_r2_withhold_fabric();
    kw_drain_tend();
    kw_drain_release_registrations();
    kw_routes_drop_fabric();
    kw_fabric_close();
    state_set(KW_DETACHED);
}

static enum kw_outcome fini(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state == KW_DETACHED) {
        return KW_OK;
    }
    if (state == KW_ATTACHED || state == KW_PREPARED) {
        return not_in_this_state(result);
    }
    if (kw_counts.outstanding > 0 || kw_drain_pending() > 0) {
        result->text = "operations on the fabric are still outstanding";
        return KW_BUSY;
    }
    fabric_leave();
    return KW_OK;
}

static enum kw_outcome init(const struct kw_command *command, struct result *result) {
    int count;

    (void)command;
    if (state != KW_DETACHED && state != KW_OPENED) {
        return not_in_this_state(result);
    }
    if (state == KW_DETACHED) {
        int rc;

        result->text = kw_fabric_check();
        if (result->text == NULL) {
            result->text = program_refusal();
        }
        if (result->text != NULL) {
            return KW_REFUSED;
        }
        rc = kw_fabric_open();
        if (rc == OMPI_ERR_NOT_FOUND) {
            result->text = "the fabric's BTL found no device that it can use";
            return KW_NO_DEVICE;
        }
        if (rc != OMPI_SUCCESS) {
            result->text = "the fabric's BTL could not be opened";
            return KW_FAILED;
        }
        state_set(KW_OPENED);
    }
    count = kw_modex_append_captured(result->message);
    if (count < 0) {
        fabric_leave();
        result->text = "the fabric's addresses do not fit into a message";
        return KW_FAILED;
    }
    result->blobs = (uint32_t)count;
    return KW_OK;
}

static enum kw_outcome modex(const struct kw_command *command, struct result *result) {
    if (state != KW_OPENED) {
        return not_in_this_state(result);
    }
    for (const struct kw_blob *blob = kw_blob_next(command, NULL); blob != NULL;
         blob = kw_blob_next(command, blob)) {
        if (kw_modex_store(blob) != OPAL_SUCCESS) {
            result->text = "out of memory";
            return KW_FAILED;
        }
    }
    return KW_OK;
}

static enum kw_outcome add(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state == KW_CONNECTED) {
        return KW_OK;
    }
    if (state != KW_OPENED) {
        return not_in_this_state(result);
    }
    result->text = kw_peers_refresh();
    if (result->text == NULL) {
        result->text = kw_fabric_connect();
    }
    if (result->text == NULL) {
        result->text = kw_routes_build(KW_FABRIC);
    }
    if (result->text == NULL) {
        result->text = kw_routes_build(KW_FALLBACK);
    }
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    /* Now with the fabric at weight 0: a peer that has passed ENABLE may ask for RDMA over it. */
    routes_publish(KW_FALLBACK);
    state_set(KW_CONNECTED);
    return KW_OK;
}

static enum kw_outcome enable(const struct kw_command *command, struct result *result) {
    (void)command;
    if (state == KW_ATTACHED) {
        return KW_OK;
    }
    if (state != KW_CONNECTED) {
        return not_in_this_state(result);
    }
    if (kw_r2_offer_fabric() != OMPI_SUCCESS) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    routes_publish(KW_FABRIC);
    state_set(KW_ATTACHED);
    return KW_OK;
}

/* Draining has an intact fabric to go back to; a fabric that carries nothing yet is closed. */
static enum kw_outcome abort_switch(const struct kw_command *command, struct result *result) {
    (void)command;
    held_until = 0;
    switch (state) {
    case KW_ATTACHED:
    case KW_DETACHED:
        return KW_OK;
    case KW_OPENED:
    case KW_CONNECTED:
        result->text = program_refusal();
        if (result->text != NULL) {
            return KW_REFUSED;
        }
        result->text = fallback_make_ready();
        if (result->text != NULL) {
            return KW_NO_PATH;
        }
        routes_publish(KW_FALLBACK);
        fabric_leave();
        return KW_OK;
    case KW_DRAINING:
        result->text = kw_routes_build(KW_FABRIC);
        if (result->text != NULL) {
            return KW_FAILED;
        }
        routes_publish(KW_FABRIC);
        state_set(KW_PREPARED);
        break;
    case KW_PREPARED:
        break;
    }
    if (kw_r2_offer_fabric() != OMPI_SUCCESS) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    state_set(KW_ATTACHED);
    return KW_OK;
}

static enum kw_outcome status(const struct kw_command *command, struct result *result) {
    (void)command;
    if (!kw_status_append(result->message)) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    return KW_OK;
}

static enum kw_outcome hold(const struct kw_command *command, struct result *result) {
    (void)result;
    held_until = kw_clock() + command->deadline_ms * 1000000ull;
    return KW_OK;
}

static enum kw_outcome resume(const struct kw_command *command, struct result *result) {
    (void)command;
    (void)result;
    held_until = 0;
    return KW_OK;
}

enum direction { NEITHER, LEAVE, TAKE };

static const struct {
    uint32_t code;
    enum direction direction;
    uint32_t flags;
    const char *name;
    enum kw_outcome (*execute)(const struct kw_command *, struct result *);
} table[] = {
    {KW_STATUS, NEITHER, 0, "status", status},
    {KW_HOLD, NEITHER, 0, "hold", hold},
    {KW_RESUME, NEITHER, 0, "resume", resume},
    {KW_ABORT, NEITHER, 0, "abort", abort_switch},
    {KW_PREPARE, LEAVE, 0, "prepare", prepare},
    {KW_SELECT, LEAVE, 0, "select", select_fallback},
    {KW_DRAIN, LEAVE, KW_STEP_WAVES, "drain", drain},
    {KW_FINI, LEAVE, KW_STEP_COMMIT, "fini", fini},
    {KW_INIT, TAKE, KW_STEP_GATHER, "init", init},
    {KW_MODEX, TAKE, KW_STEP_SCATTER, "modex", modex},
    {KW_ADD, TAKE, 0, "add", add},
    {KW_ENABLE, TAKE, KW_STEP_COMMIT, "enable", enable},
};

void kw_steps_begin(enum kw_state first, const char *why_not) {
    refusal = why_not;
    state_set(first);
}

void kw_steps_describe(struct kw_hello *hello) {
    hello->state = state;
    hello->epoch = epoch;
    strcpy(hello->kind, "btl");
    if (refusal != NULL) {
        snprintf(hello->refusal, sizeof hello->refusal, "%s", refusal);
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        bool leave = table[i].direction == LEAVE;
        struct kw_step *step = leave ? &hello->leave[hello->leave_steps]
                                     : &hello->take[hello->take_steps];

        if (table[i].direction == NEITHER) {
            continue;
        }
        step->code = table[i].code;
        step->flags = table[i].flags;
        snprintf(step->name, sizeof step->name, "%s", table[i].name);
        hello->leave_steps += leave ? 1 : 0;
        hello->take_steps += leave ? 0 : 1;
    }
}

static enum kw_outcome execute(const struct kw_incoming *incoming, struct result *result) {
    const struct kw_command *command = &incoming->command;

    if (kw_clock() - incoming->received_ns > command->deadline_ms * 1000000ull) {
        result->text = "the rank reached its safe point after the deadline";
        return KW_EXPIRED;
    }
    if (command->code != KW_STATUS) {
        if (refusal != NULL) {
            return refused(result, refusal);
        }
        if (command->epoch < epoch) {
            result->text = "the rank has seen a newer operation";
            return KW_STALE;
        }
        if (command->epoch > epoch) {
            epoch = command->epoch;
            kw_stall_new_epoch();
            kw_link_set_state(state, epoch);
        }
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].code == command->code) {
            return table[i].execute(command, result);
        }
    }
    result->text = "no such command";
    return KW_UNKNOWN;
}

void kw_steps_execute(const struct kw_incoming *incoming) {
    const struct kw_command *command = &incoming->command;
    uint64_t began = kw_clock();
    struct kw_message message;
    struct result result = {.message = &message};
    struct kw_stall process, newest;
    struct kw_reply *reply;
    enum kw_outcome outcome;

    if (!kw_message_begin(&message, sizeof(struct kw_reply))) {
        return; /* the coordinator sees a time-out, and asks */
    }
    outcome = execute(incoming, &result);
    process = kw_stall_read(KW_STALL_PROCESS);
    newest = kw_stall_read(KW_STALL_EPOCH);
    reply = (struct kw_reply *)(void *)message.bytes;
    kw_header_set(&reply->header, KW_REPLY, message.size, command->header.sequence);
    reply->code = command->code;
    reply->epoch = epoch;
    reply->outcome = outcome;
    reply->state = state;
    reply->sent = kw_counts.sent;
    reply->received = kw_counts.received;
    reply->outstanding = kw_counts.outstanding;
    reply->pending = kw_drain_pending();
    reply->duration_ns = kw_clock() - began;
    reply->stall_total_ns = process.total;
    reply->stall_longest_ns = process.longest;
    reply->epoch_stall_total_ns = newest.total;
    reply->epoch_stall_longest_ns = newest.longest;
    reply->blobs = result.blobs;
    if (result.text != NULL) {
        snprintf(reply->text, sizeof reply->text, "%s", result.text);
    }
    kw_link_reply(incoming->connection, &message);
}

bool kw_steps_need_tending(void) {
    return switched;
}

bool kw_steps_wants_tending(void) {
    return kw_drain_pending() > 0 || (state == KW_DRAINING && kw_drain_arrived());
}

void kw_steps_tend(void) {
    if (state == KW_DRAINING) {
        kw_drain_tend();
    } else {
        kw_drain_retry();
    }
}

bool kw_steps_held(void) {
    if (held_until != 0 && kw_clock() >= held_until) {
        held_until = 0;
    }
    return held_until != 0;
}
