/* Datatypes: unpacking without UCX, and keeping them alive without it. */
#ifndef KAWARIMI_NATIVE_UCP_DATATYPE_H
#define KAWARIMI_NATIVE_UCP_DATATYPE_H

#include "objects.h"

/* Put a message of `length` bytes into a receive's buffer, as UCX would: a message that is too long
 * is UCS_ERR_MESSAGE_TRUNCATED, and leaves the buffer as it is. */
ucs_status_t kw_datatype_unpack(const struct kw_slot *receive, const void *bytes, size_t length);

/* Keep a generic datatype alive for a slot that UCX does not know of. A program may free a type while
 * a request that uses it is pending: what keeps it then is the state that UCX made of it, and drops
 * when a receive is cancelled. Both do nothing where there is nothing to do. */
void kw_datatype_pin(struct kw_slot *slot);
void kw_datatype_unpin(struct kw_slot *slot);

#endif
