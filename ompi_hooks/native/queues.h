/* What waits between the link's thread and the rank's: commands on their way in, replies on their
 * way out. Each belongs to the connection by which its command came, and goes with it: the agent
 * that comes back asks anew. No call blocks, or makes a system call under the lock. */
#ifndef KAWARIMI_NATIVE_QUEUES_H
#define KAWARIMI_NATIVE_QUEUES_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol.h"

/* A command as it came in. */
struct kw_incoming {
    uint64_t received_ns; /* on kw_clock() */
    uint64_t spent_ns;    /* in the rank's thread so far */
    uint32_t visits;      /* of the rank's thread so far */
    uint32_t connection;  /* by which it came: replies to another one are dropped */
    struct kw_command command; /* and its blobs */
};

/* A reply as it goes out. */
struct kw_outgoing {
    struct kw_outgoing *next;
    uint32_t connection;
    struct kw_message message;
};

/* Of the link's thread. */

/* Queue a checked command of `size` bytes. Returns false if there is no room for it. */
bool kw_queues_put(const struct kw_command *command, size_t size);

/* Is a command waiting, or taken and not finished? */
bool kw_queues_busy(void);

/* The oldest reply to the connection in use, or NULL. To be given to one of the two below. */
struct kw_outgoing *kw_queues_pop(void);
void kw_queues_unpop(struct kw_outgoing *reply);
void kw_queues_sent(struct kw_outgoing *reply);

/* The connection is over: forget everything that came by it, or was to go by it. */
void kw_queues_reset(void);

/* Of the rank's thread. */

/* The oldest queued command that has come by the connection in use, or NULL. */
struct kw_incoming *kw_queues_take(void);

/* What was taken is done with, and freed. Until then its poke goes on. */
void kw_queues_finish(struct kw_incoming *incoming);

/* Queue a reply. Takes the message's bytes over in every case; returns false if it was dropped. */
bool kw_queues_reply(uint32_t connection, struct kw_message *message);

#endif
