/* The shim of the kind `ucp` in its process: who it is, and when it begins and ends. */
#ifndef KAWARIMI_NATIVE_UCP_SHIM_H
#define KAWARIMI_NATIVE_UCP_SHIM_H

#include <stdbool.h>
#include <stdint.h>

#include "side.h"
#include "step.h"

/* Who this process is, by what the launcher of Open MPI left in its environment. Returns NULL,
 * or why it cannot be switched. */
const char *kw_shim_identify(void);

uint32_t kw_shim_jobid(void);
uint32_t kw_shim_vpid(void);
uint32_t kw_shim_ranks(void);

/* Say, once for each machine, why this job cannot be switched. */
void kw_shim_refuse(const char *reason);

/* The worker is there, on this side: from the next call of the progress function on, dial the agent
 * when MPI_Init has ended. `refusal` is why the rank cannot be switched, or NULL. */
void kw_shim_arm(enum kw_ucp_side side, const char *refusal);

/* Do so, unless it has been done. */
void kw_shim_begin_once(void);

/* The program begins to part with its peers: let a switch that is under way end, for a bounded
 * time, and take part in none any more. Idempotent. */
void kw_shim_finish(void);

#endif
