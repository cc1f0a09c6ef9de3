/* Datatypes: unpacking without UCX, and keeping them alive without it. */
#ifndef KAWARIMI_NATIVE_UCP_DATATYPE_H
#define KAWARIMI_NATIVE_UCP_DATATYPE_H

#include "objects.h"

static inline bool kw_datatype_is_generic(ucp_datatype_t datatype) {
    return (datatype & UCP_DATATYPE_CLASS_MASK) == UCP_DATATYPE_GENERIC;
}

/* Put a message of `length` bytes into a receive's buffer, as UCX would: a message that is too long
 * is UCS_ERR_MESSAGE_TRUNCATED, and leaves the buffer as it is. */
ucs_status_t kw_datatype_unpack(const struct kw_slot *receive, const void *bytes, size_t length);

/* Keep a generic datatype alive for a slot that UCX does not know of. A program may free a type
 * while a request that uses it is pending: what keeps it then is the state that was made of it
 * to pack or unpack. Both do nothing where there is nothing to do. */
void kw_datatype_pin(struct kw_slot *slot);
void kw_datatype_unpin(struct kw_slot *slot);

/* From now on, UCX may begin to unpack for a receive: remember what it begins with. NULL for none. */
void kw_datatype_expect(struct kw_slot *receive);

/* UCX forgets what it has begun for a receive that is cancelled (up to 1.19 at least): the
 * state, and the type with it, would live for ever. Call the first before a cancellation, and
 * the second after it, with what the first returned, if the receive was cancelled. */
void *kw_datatype_watch(const struct kw_slot *receive);
void kw_datatype_drop(void *watched);

#endif
