/* What bml/r2 keeps for all endpoints together: the modules that it offers to new ones, and the
 * progress functions that it registered. */
#ifndef KAWARIMI_NATIVE_R2_H
#define KAWARIMI_NATIVE_R2_H

#include "ompi_config.h"

#include <stdbool.h>

#include "opal/mca/btl/btl.h"

/* Is this the module of btl/self, which is never exchanged? */
bool kw_r2_is_self(const mca_btl_base_module_t *module);

/* Let r2 use the fabric's modules for endpoints that it makes in future, and no longer. Offering
 * returns an Open MPI error code, on which nothing has changed. */
int kw_r2_offer_fabric(void);
void kw_r2_withhold_fabric(void);

/* Enter a component's progress function in r2's list, by which r2 takes it back at the end. Returns
 * an Open MPI error code. */
int kw_r2_progress_list(mca_btl_base_component_t *component);

/* Register the fabric component's progress function with Open MPI, and take it back. Registering
 * returns an Open MPI error code. */
int kw_r2_progress_add(mca_btl_base_component_t *component);
void kw_r2_progress_remove(mca_btl_base_component_t *component);

/* Have Open MPI call the progress functions of the BTLs that the published routes name often, and
 * those of the others seldom, as r2 does (mca_bml_r2_register_progress). */
void kw_r2_progress_rank(void);

#endif
