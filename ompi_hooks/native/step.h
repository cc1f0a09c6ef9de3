/* What the steps of every kind share: where the rank stands, and how each answers. Inside the
 * shim's executor only; all of it runs in the rank's thread, at a safe point. */
#ifndef KAWARIMI_NATIVE_STEP_H
#define KAWARIMI_NATIVE_STEP_H

#include <stdbool.h>

#include "link.h"

/* A step's result besides its outcome. */
struct kw_result {
    struct kw_message *message; /* the reply, to append blobs to */
    uint32_t blobs;
    const char *text;
    bool everything; /* the reply's counts are those of all transports, not the fabric's alone */
    bool unfinished; /* the outcome is not there yet: the step wants another visit */
};

/* A step. Idempotent: in the state that it leads to, it does nothing and succeeds. One that takes
 * long does a part in each visit of the rank's thread, between which the program goes on. */
typedef enum kw_outcome kw_step(const struct kw_incoming *incoming, struct kw_result *result);

/* Where the rank stands; setting it also tells the next hello. */
enum kw_state kw_state(void);
void kw_state_set(enum kw_state next);

/* Answers that several steps give. */
enum kw_outcome kw_refused(struct kw_result *result, const char *text);
enum kw_outcome kw_not_in_this_state(struct kw_result *result);

#endif
