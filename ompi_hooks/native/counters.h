/* Exact counts of what ob1 sends and receives, by wrapping modules: those of the fabric, and of every
 * other BTL whose messages leave the machine.
 *
 * A drain is finished when the job's sums of sent and received messages agree and no send and no
 * RDMA operation is outstanding; so the counts must begin with the first message and miss none.
 * Shared memory is not wrapped, unless it is the fabric: what is under way there lies in the memory
 * of the machine, which a hold leaves as it is.
 * MPI calls of one process never overlap (THREAD_MULTIPLE is refused, and nothing is counted then),
 * so nothing here is atomic.
 */
#ifndef KAWARIMI_NATIVE_COUNTERS_H
#define KAWARIMI_NATIVE_COUNTERS_H

#include "ompi_config.h"

#include <stdbool.h>
#include <stdint.h>

#include "ompi/mca/bml/bml.h"
#include "opal/mca/btl/btl.h"

struct kw_counts {
    uint64_t sent;        /* accepted by the BTL */
    uint64_t received;    /* handed to ob1 */
    uint64_t outstanding; /* sends and RDMA operations without local completion */
};

/* The sums over the counted modules of one component (zero for NULL), and over all of them. */
struct kw_counts kw_counters_of(const mca_btl_base_component_t *component);
struct kw_counts kw_counters_all(void);

/* Are the modules of this component counted? */
bool kw_counters_cover(const mca_btl_base_component_t *component);

/* How deep this process is inside a BTL's code that ob1 called, or in ob1's that a BTL called.
 * Invariant: 0 at every safe point. Only there may a module be torn down. */
extern int kw_depth;

/* Stand between ob1 and the receive callbacks of every BTL. To be called after the BTLs were
 * selected and before ob1 registers its callbacks, with the module that bml_init returned. */
void kw_counters_adopt(mca_bml_base_module_t *bml);

/* Count on this module from now on. Returns an Open MPI error code. */
int kw_counters_attach(mca_btl_base_module_t *module);

/* Forget the modules of a component, which are about to be or have been finalized, and their
 * counts. */
void kw_counters_forget(const mca_btl_base_component_t *component);

/* Tell a module that was opened late about every receive callback there is. Returns an Open MPI
 * error code. */
int kw_counters_register_callbacks(mca_btl_base_module_t *module);

/* Take every wrapper back, so that the job runs as if there were no shim. */
void kw_counters_withdraw(void);

#endif
