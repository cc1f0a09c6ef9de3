/* Parking the rank: its thread stays at a safe point, and only lets what is under way arrive.
 *
 * A parked rank begins no message, and completes those that it began, as Open MPI's progress loop
 * runs on. So once every rank is parked, the job's messages only become fewer, until those are left
 * that wait for a receive which the program has not posted; those lie in the ranks' memory. */
#ifndef KAWARIMI_NATIVE_HOLD_H
#define KAWARIMI_NATIVE_HOLD_H

#include <stdbool.h>
#include <stdint.h>

#include "step.h"

/* Park from now on (repeated: longer or shorter), until the command's deadline or RESUME: so nobody
 * is parked for ever, whatever becomes of the agent. */
kw_step kw_hold_park;

/* Let what is under way arrive. */
kw_step kw_hold_quiesce;

/* Let go. */
kw_step kw_hold_resume;

/* Is the rank to stay parked? */
bool kw_hold_lasts(void);

/* How long it has been parked without a break, in nanoseconds; 0: it is not. */
uint64_t kw_hold_duration(void);

#endif
