/* Exact counts of what ob1 sends and receives on the fabric, by wrapping the fabric's modules.
 *
 * A drain is finished when the job's sums of sent and received messages agree and no send and no
 * RDMA operation is outstanding; so the counts must begin with the first message and miss none.
 * MPI calls of one process never overlap (THREAD_MULTIPLE is refused), so nothing here is atomic.
 */
#ifndef KAWARIMI_NATIVE_COUNTERS_H
#define KAWARIMI_NATIVE_COUNTERS_H

#include "ompi_config.h"

#include <stdint.h>

#include "ompi/mca/bml/bml.h"
#include "opal/mca/btl/btl.h"

struct kw_counts {
    uint64_t sent;        /* accepted by the BTL */
    uint64_t received;    /* handed to ob1 */
    uint64_t outstanding; /* sends and RDMA operations without local completion */
};
extern struct kw_counts kw_counts;

/* How deep this process is inside a BTL's code that ob1 called, or in ob1's that a BTL called.
 * Invariant: 0 at every safe point. Only there may a module be torn down. */
extern int kw_depth;

/* Stand between ob1 and the receive callbacks of every BTL. To be called after the BTLs were
 * selected and before ob1 registers its callbacks, with the module that bml_init returned. */
void kw_counters_adopt(mca_bml_base_module_t *bml);

/* Count on this module of the fabric from now on. Returns an Open MPI error code. */
int kw_counters_attach(mca_btl_base_module_t *module);

/* Forget the fabric's modules, which are about to be or have been finalized; counts become 0. */
void kw_counters_forget(void);

/* Tell a module that was opened late about every receive callback there is. Returns an Open MPI
 * error code. */
int kw_counters_register_callbacks(mca_btl_base_module_t *module);

/* Take every wrapper back, so that the job runs as if there were no shim. */
void kw_counters_withdraw(void);

#endif
