/* Messages that arrive while nobody receives them and the transport is about to go: they are
 * pulled into buffers of ours, and matched by us, before anything that UCX has, until they are
 * received. That order is MPI's: whatever UCX has arrived later. */
#ifndef KAWARIMI_NATIVE_UCP_KEPT_H
#define KAWARIMI_NATIVE_UCP_KEPT_H

#include "objects.h"

/* How many bytes may be kept at once. */
void kw_kept_begin(uint64_t most);

/* Pull everything that has arrived, what was probed and not received included. Returns false if
 * more has arrived than may be kept, or memory is out; the rest stays where it is. */
bool kw_kept_pull(void);

/* The oldest that a receive with this tag takes, or NULL. */
struct kw_slot *kw_kept_find(ucp_tag_t tag, ucp_tag_t mask);

/* Give it to a receive, now or when it is there; both are out of their rings. */
void kw_kept_deliver(struct kw_slot *kept, struct kw_slot *receive);

/* Forget all of them: the worker is being destroyed. */
void kw_kept_end(void);

#endif
