/* Receives: in the order in which they were posted, so that they can be posted again. */
#ifndef KAWARIMI_NATIVE_UCP_RECEIVES_H
#define KAWARIMI_NATIVE_UCP_RECEIVES_H

#include "objects.h"

/* Take back from UCX every receive that no message is known for. Those that have been matched
 * finish there; kw_receives_active() counts them. From now on receives wait. May be repeated. */
void kw_receives_withdraw(void);

/* Receives that UCX still has, after they were withdrawn. */
uint64_t kw_receives_active(void);

/* Match those that wait with the messages that are kept, or give them to UCX, in order; and let
 * receives through from now on. Calls the application back, which may post more. */
void kw_receives_release(void);

/* The application cancels one. */
void kw_receive_cancel(struct kw_slot *slot);

#endif
