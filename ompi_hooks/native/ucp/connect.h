/* The endpoints of the spare worker: they are made and connected before the job is held.
 *
 * UCX connects in whoever's progress it is that sees the peer's answer; for rc that is a queue pair
 * made and connected, far too long for a rank that is held. */
#ifndef KAWARIMI_NATIVE_UCP_CONNECT_H
#define KAWARIMI_NATIVE_UCP_CONNECT_H

#include "objects.h"

/* Make those that the spare worker lacks, by the new addresses as far as they are known, and let them
 * connect: begin, or see how far it has come. The operation ends at `ends` (of kw_clock()), and half of
 * what is left until then is for that. Returns whether it is over; then *failed is NULL, or says why
 * not (valid until the next call). Peers that have not come so far are no failure. */
bool kw_connect_part(uint64_t ends, const char **failed);

/* Is it known of all of them that they are connected, or that one cannot be? Otherwise it progresses
 * them. *failed names a rank that is not connected. */
bool kw_connect_is_done(const char **failed);

/* MPI is being finalized: no peer is waited for any more. */
void kw_connect_stop(void);

/* The spare worker is the one in use, or is not there any more. */
void kw_connect_use_spare(void);
void kw_connect_forget_spare(void);

#endif
