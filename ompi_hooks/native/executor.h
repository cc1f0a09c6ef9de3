/* Takes commands from the link and runs them in the rank's thread, from Open MPI's progress loop. */
#ifndef KAWARIMI_NATIVE_EXECUTOR_H
#define KAWARIMI_NATIVE_EXECUTOR_H

/* Register with Open MPI's progress loop, and take that back. Starting returns an Open MPI error
 * code. Stopping is idempotent. */
int kw_executor_start(void);
void kw_executor_stop(void);

/* A command was queued. Any thread. */
void kw_executor_attention(void);

#endif
