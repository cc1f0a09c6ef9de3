/* The rank's end of the socket to the guest agent: a thread that dials, checks, queues and sends,
 * so that the rank's own thread never touches a descriptor. */
#ifndef KAWARIMI_NATIVE_LINK_H
#define KAWARIMI_NATIVE_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "protocol.h"
#include "queues.h"

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

/* Queue a reply. Takes the message's bytes over in every case; never blocks on the agent. */
void kw_link_reply(uint32_t connection, struct kw_message *message);

/* Say goodbye if connected, and join the thread. Idempotent. Bounded: the thread never blocks. */
void kw_link_stop(void);

#endif
