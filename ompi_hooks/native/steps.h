/* Executes commands, whatever kind they belong to. All of it runs in the rank's thread, at a safe
 * point. */
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

#endif
