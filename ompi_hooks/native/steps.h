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

/* Execute one command, or the next part of it, and queue its reply when it is finished. Returns
 * whether it is. */
bool kw_steps_execute(struct kw_incoming *incoming);

/* Between commands: is there a message that began on one BTL, ends on another, and waits for us?
 * Cheap enough for every call of the progress function. */
bool kw_steps_wants_tending(void);

/* Do what such messages wait for. */
void kw_steps_tend(void);

/* Has the rank been led through a step that makes kw_steps_tend() necessary? Once true, always: a
 * rendezvous may wait unmatched for as long as the program likes, and is acknowledged only on the
 * BTL that it came on, or when somebody retries. */
bool kw_steps_need_tending(void);

#endif
