/* What Open MPI publishes as a worker's address, and ranks tell each other in a switch: whose it
 * is, and UCX's own address. Knows nothing of UCX, so that a fuzzer can run it alone. */
#ifndef KAWARIMI_NATIVE_UCP_ADDRESS_H
#define KAWARIMI_NATIVE_UCP_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KW_ADDRESS_MAX = 32768 /* bytes of UCX's own */ };

struct kw_address {
    uint64_t mark;
    uint32_t jobid, vpid;
    uint32_t size; /* of UCX's address, which follows */
    uint32_t reserved;
};

/* Make one. Returns NULL if memory is out or UCX's address is too long. To be freed. */
struct kw_address *kw_address_make(uint32_t jobid, uint32_t vpid, const void *bytes, size_t size);

/* Is this an address that kw_address_make() made? Of what Open MPI gives us the size is not known;
 * whatever a peer published begins with at least a mark's eight bytes. */
bool kw_address_is_ours(const void *bytes);

/* Check what a peer told: exactly `size` bytes that may be anything. Returns it, or NULL. */
const struct kw_address *kw_address_check(const void *bytes, size_t size);

static inline size_t kw_address_length(const struct kw_address *address) {
    return sizeof *address + address->size;
}

/* The addresses that the peers told, by number: those of the transport in use, unless it is the
 * first, and new ones, of the transport that may be the next. */

/* Keep a new one. Returns false if memory is out or the number is `ranks` or more. */
bool kw_addresses_keep_new(const struct kw_address *address, uint32_t ranks);

const struct kw_address *kw_addresses_find(uint32_t vpid);
const struct kw_address *kw_addresses_find_new(uint32_t vpid);

/* The new ones are in use, and there are no others; or they are not wanted. */
void kw_addresses_adopt_new(void);
void kw_addresses_drop_new(void);

void kw_addresses_forget(void);

#endif
