/* Takes commands from the link and runs them in the rank's thread, from MPI's progress loop. */
#ifndef KAWARIMI_NATIVE_EXECUTOR_H
#define KAWARIMI_NATIVE_EXECUTOR_H

#include <stdatomic.h>

/* Not 0 if kw_executor_serve() may have something to do: all that the progress loop has to look
 * at. */
extern atomic_uint kw_executor_needed;

/* Execute what is queued, and stay while the rank is parked, if this is a safe point. Only for the
 * rank's thread, from the progress loop. It is no event to that loop, which would not yield the
 * processor after one: to the threads that a step may wait for. */
void kw_executor_serve(void);

/* A command was queued. Any thread. */
void kw_executor_attention(void);

/* Forget a command that is under way. Idempotent. */
void kw_executor_stop(void);

#endif
