/* The steps of the kind `btl`, and what they share. */
#ifndef KAWARIMI_NATIVE_BTL_STEPS_H
#define KAWARIMI_NATIVE_BTL_STEPS_H

#include <stdbool.h>

#include "peers.h"
#include "step.h"

/* Leaving the fabric (leave.c), and the way back of both directions. */
kw_step kw_step_prepare, kw_step_select, kw_step_drain, kw_step_fini, kw_step_abort;

/* Taking it (take.c). */
kw_step kw_step_init, kw_step_modex, kw_step_add, kw_step_enable;

/* Make the fallback reach every peer, and choose it: the fabric stays in the RDMA arrays. Returns
 * NULL, or why not; nothing has changed then. */
const char *kw_fallback_select(void);

/* Choose a side whose tables were built. From the first time on, messages may need tending: a
 * rendezvous may wait unmatched for as long as the program likes, and is acknowledged only on
 * the BTL that it came on, or when somebody retries. */
void kw_side_select(enum kw_side side);

/* Close a fabric that nothing is outstanding on, and which is not chosen: the next part of that.
 * Returns whether it was the last one. */
bool kw_fabric_leave_part(void);

/* The same, all parts at once. */
void kw_fabric_leave(void);

#endif
