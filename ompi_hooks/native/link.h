/* The rank's end of the socket to the guest agent: a thread that dials, checks, queues and sends,
 * so that the rank's own thread never touches a descriptor. */
#ifndef KAWARIMI_NATIVE_LINK_H
#define KAWARIMI_NATIVE_LINK_H

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

/* Do not dial before this says that the rank is ready; asked in the thread, again and again until then.
 * To be called before kw_link_start(); without it the rank is. */
void kw_link_wait_for(bool (*ready)(void));

/* Start the thread. It dials `path` until it succeeds, and again whenever the agent goes away; only
 * an agent that runs as root or as this process's own user is listened to. `hello` is copied; its
 * state and epoch follow kw_link_set_state(). `attention` is called in that thread, each time that
 * a command was queued; `poke` likewise, again and again while one that asks for it waits.
 * Returns 0, or an errno. */
int kw_link_start(const char *path, const struct kw_hello *hello, void (*attention)(void),
                  void (*poke)(void));

/* What the next hello will say. Any thread. */
void kw_link_set_state(uint32_t state, uint32_t epoch);

/* The oldest queued command that has come by the connection in use, or NULL. Commands of a
 * connection that broke are dropped here: the agent that comes back asks anew. */
struct kw_incoming *kw_link_take(void);

/* What was taken is done with, and freed. Until then its poke goes on. */
void kw_link_finish(struct kw_incoming *incoming);

/* Queue a reply. Takes the message's bytes over in every case; never blocks on the agent. */
void kw_link_reply(uint32_t connection, struct kw_message *message);

/* Say goodbye if connected, and join the thread. Idempotent. Bounded: the thread never blocks. */
void kw_link_stop(void);

#endif
