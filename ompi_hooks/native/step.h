/* What the steps share: where the rank stands, and how each answers. Inside the shim's executor
 * only; all of it runs in the rank's thread, at a safe point. */
#ifndef KAWARIMI_NATIVE_STEP_H
#define KAWARIMI_NATIVE_STEP_H

#include <stdbool.h>

#include "link.h"
#include "peers.h"

/* A step's result besides its outcome. */
struct kw_result {
    struct kw_message *message; /* the reply, to append blobs to */
    uint32_t blobs;
    const char *text;
    bool all_btls; /* the reply's counts are those of every BTL, not the fabric's alone */
    bool unfinished; /* the outcome is not there yet: the step wants another visit */
};

/* A step. Idempotent: in the state that it leads to, it does nothing and succeeds. One that takes
 * long does a part in each visit of the rank's thread, between which the program goes on. */
typedef enum kw_outcome kw_step(const struct kw_incoming *incoming, struct kw_result *result);

/* Leaving the fabric (leave.c), and the way back of both directions. */
kw_step kw_step_prepare, kw_step_select, kw_step_drain, kw_step_fini, kw_step_abort;

/* Taking it (take.c). */
kw_step kw_step_init, kw_step_modex, kw_step_add, kw_step_enable;

/* Where the rank stands; setting it also tells the next hello. */
enum kw_state kw_state(void);
void kw_state_set(enum kw_state next);

/* Answers that several steps give. */
enum kw_outcome kw_refused(struct kw_result *result, const char *text);
enum kw_outcome kw_not_in_this_state(struct kw_result *result);

/* What the program does at the moment that a switch or a hold would break; NULL if nothing. */
const char *kw_program_refusal(void);

/* Make the fallback reach every peer, and choose it: the fabric stays in the RDMA arrays. Returns
 * NULL, or why not; nothing has changed then. */
const char *kw_fallback_select(void);

/* Choose a side whose tables were built. From the first time on, messages may need tending. */
void kw_side_select(enum kw_side side);

/* Close a fabric that nothing is outstanding on, and which is not chosen: the next part of that.
 * Returns whether it was the last one. */
bool kw_fabric_leave_part(void);

/* The same, all parts at once. */
void kw_fabric_leave(void);

#endif
