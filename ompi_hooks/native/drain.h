/* Freeing ob1's state from the fabric, while messages that began on it finish elsewhere. */
#ifndef KAWARIMI_NATIVE_DRAIN_H
#define KAWARIMI_NATIVE_DRAIN_H

#include <stdbool.h>
#include <stdint.h>

/* Once the fallback is selected, and then again and again until the fabric is closed: make
 * everything that waits for the fabric wait for no BTL in particular, and let ob1 retry what is
 * pending. What a receiver holds unmatched turns from "pull from the fabric" into an ordinary
 * rendezvous; what a sender has not scheduled yet goes over the routes in use. Idempotent. */
void kw_drain_tend(void);

/* Has anything arrived on the fabric since the last kw_drain_tend()? */
bool kw_drain_arrived(void);

/* Let ob1 retry what is pending, now and on every BTL: by itself it does so only when a send
 * completes, and only on that send's BTL, which may no longer be in use. */
void kw_drain_retry(void);

/* Entries of ob1's queues that may still need the fabric. */
uint64_t kw_drain_pending(void);

/* Entries of all of ob1's queues: what would be sent, on any BTL, when resources allow it. */
uint64_t kw_drain_unsent(void);

/* Give back the fabric's memory registrations that sends hold whose rendezvous nobody has matched:
 * with them alive the fabric cannot free its protection domain. Nothing may be outstanding. */
void kw_drain_release_registrations(void);

#endif
