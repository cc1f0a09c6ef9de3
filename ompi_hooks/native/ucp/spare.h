/* The transport that carries nothing: before a switch that of the other side, after it the one that
 * was left.
 *
 * It is made and unmade in a thread of its own. A single call of UCX may take so long that the
 * program would notice, and there is nothing in it that the program has to wait for. While that
 * thread runs, nobody else touches what it works on; it knows nothing of the transport in use, and
 * UCX lets threads work on different contexts at once.
 *
 * All of these functions are the rank's thread's. */
#ifndef KAWARIMI_NATIVE_UCP_SPARE_H
#define KAWARIMI_NATIVE_UCP_SPARE_H

#include "side.h"

/* What workers are made with: as the program asked. */
void kw_spare_begin(const ucp_worker_params_t *params);

/* Is no thread at work? */
bool kw_spare_is_idle(void);

/* Begin some work on it, in its thread; it must be idle. */
void kw_spare_work(void (*work)(void));

/* Begin to make one on a side, in place of what there is; it must be idle. */
void kw_spare_make(enum kw_ucp_side side);

/* How that ended: if it failed, nothing is left of it. *present as in kw_side_open(). */
ucs_status_t kw_spare_outcome(bool *present);

/* Begin to unmake it, or see how far that has come. Returns whether it is gone. */
bool kw_spare_unmake_part(void);

/* Its worker; NULL if there is none, or a thread is at work. */
ucp_worker_h kw_spare_worker(void);

/* Let its endpoints connect, if there are any. */
void kw_spare_progress(void);

/* Exchange it with the transport in use, with its endpoints and the addresses that belong to it; it
 * must be there. Returns the side that is in use now. */
enum kw_ucp_side kw_spare_exchange(enum kw_ucp_side in_use);

/* Unmake it, and wait for that: MPI is being finalized. */
void kw_spare_end(void);

#endif
