/* Exchanging UCX's worker under a running job: the steps of the kind `ucp`.
 *
 * The order, each a barrier over the job's ranks:
 *   init        another context and worker are made, on the other side
 *   modex       the peers' addresses there; endpoints, which connect
 *   hold        sends wait, receives that nothing is known for are taken back from UCX
 *   drain       what is under way arrives: with receives that were matched, or is kept (kept.h)
 *   disconnect  the endpoints of the transport in use are flushed and closed: the commit
 *   restore     the other one is in use; receives are matched with what was kept, or posted again
 *   enable      what waited is sent
 *   close       the first context and worker are destroyed, and with them the device closed
 * The program waits for its messages from hold to enable only. Up to the commit a rank goes back by
 * itself: nothing was taken from UCX that is not in our order. */
#ifndef KAWARIMI_NATIVE_UCP_SWAP_H
#define KAWARIMI_NATIVE_UCP_SWAP_H

#include "step.h"

kw_step kw_swap_init_fallback, kw_swap_init_fabric, kw_swap_modex, kw_swap_hold, kw_swap_drain;
kw_step kw_swap_disconnect, kw_swap_restore, kw_swap_enable, kw_swap_close, kw_swap_abort;

/* The name of the side that carries the messages, or did last. */
const char *kw_swap_transport(void);

/* Before the commit: let go of what waits, and unmake what was made; or see how far that has come.
 * Returns whether the rank is where it was before the switch. After the commit there is nothing to
 * do. */
bool kw_swap_back_part(void);

/* Do what arrives needs, between the steps. Returns false if there is no room for what has
 * arrived. */
bool kw_swap_tend(void);

/* Hold, for a rank that is parked; the side stays. Returns false if the rank is in no state for
 * it. */
bool kw_swap_quiesce(void);

#endif
