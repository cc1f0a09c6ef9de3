/* Exchanging UCX's worker under a running job: the steps of the kind `ucp`.
 *
 * The order, each a barrier over the job's ranks:
 *   hold        sends wait, receives that nothing is known for are taken back from UCX
 *   drain       what is under way arrives: with receives that were matched, or is kept (kept.h)
 *   disconnect  UCX's endpoints are flushed and closed: the commit
 *   close       the worker and the context are destroyed, and with them the device closed
 *   init        others are made, on the other side
 *   modex       the peers' new addresses
 *   restore     endpoints; receives are matched with what was kept, or posted again, in order
 *   enable      what waited is sent
 * Up to the commit a rank goes back by itself: nothing was taken from UCX that is not in our order. */
#ifndef KAWARIMI_NATIVE_UCP_SWAP_H
#define KAWARIMI_NATIVE_UCP_SWAP_H

#include "step.h"

kw_step kw_swap_hold, kw_swap_hold_for_fabric, kw_swap_drain, kw_swap_disconnect, kw_swap_close;
kw_step kw_swap_init_fallback, kw_swap_init_fabric, kw_swap_modex, kw_swap_restore, kw_swap_enable;
kw_step kw_swap_abort;

/* The name of the side that carries the messages, or that is about to. */
const char *kw_swap_transport(void);

/* Let go of what waits, if the worker is there that it waits for. */
void kw_swap_let_go(void);

/* Do what a drain needs, between its waves. Returns false if there is no room for what has
 * arrived. */
bool kw_swap_tend(void);

/* Hold, for a rank that is parked; the side stays. Returns false if the rank is in no state for
 * it. */
bool kw_swap_quiesce(void);

#endif
