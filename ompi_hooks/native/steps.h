/* What each command does. All of it runs in the rank's thread, at a safe point. */
#ifndef KAWARIMI_NATIVE_STEPS_H
#define KAWARIMI_NATIVE_STEPS_H

#include <stdbool.h>

#include "link.h"

/* Begin in this state. `refusal` says why the rank cannot be switched, or is NULL; it must live as
 * long as the process. */
void kw_steps_begin(enum kw_state state, const char *refusal);

/* Fill in the hello's state, kind, names of steps and refusal. */
void kw_steps_describe(struct kw_hello *hello);

/* Execute one command and queue its reply. */
void kw_steps_execute(const struct kw_incoming *incoming);

/* Does the fabric need tending between commands (drain.h)? */
bool kw_steps_draining(void);

/* Is the rank to stay parked? Becomes false by RESUME, by ABORT, or at the HOLD's own deadline. */
bool kw_steps_held(void);

#endif
