/* The fabric's BTL component: what it is, and closing and opening it under a running job. */
#ifndef KAWARIMI_NATIVE_FABRIC_H
#define KAWARIMI_NATIVE_FABRIC_H

#include "ompi_config.h"

#include <stdbool.h>

#include "opal/mca/btl/base/base.h"
#include "opal/mca/btl/btl.h"

/* Name the fabric and the fallback, and look for the fabric's component among those that Open MPI
 * selected. */
void kw_fabric_set(const char *name, const char *fallback);

/* The names given. */
const char *kw_fabric_name(void);
const char *kw_fabric_fallback_name(void);

/* Is this a module of the fallback? */
bool kw_fabric_replaces(const mca_btl_base_module_t *module);

/* The fabric's component, or NULL while it is closed. */
mca_btl_base_component_t *kw_fabric_component(void);

/* Is this a module of the fabric? `module` must be valid. */
bool kw_fabric_has(const mca_btl_base_module_t *module);

/* Does this pointer equal the address of an open module of the fabric? Nothing is dereferenced:
 * elements of free lists that were never used hold garbage. */
bool kw_fabric_is_module(const void *pointer);

/* Can the component be closed and opened, as far as can be told without doing it? Returns NULL, or
 * why not (static text). */
const char *kw_fabric_check(void);

/* Close the fabric: delete its endpoints, finalize its modules, close and unload its component.
 * Nothing may be outstanding on it, and kw_routes_drop_fabric() must have run. Each call does one of
 * these parts, as each takes long; returns whether it was the last one. Idempotent. Between two of
 * them the fabric is reached by nothing, and MPI_Finalize would close what is left. */
bool kw_fabric_close_part(void);

/* Is it half closed? */
bool kw_fabric_closing(void);

/* Load and open the component again; then let it look for devices. Its addresses are captured
 * (modex.h). Both return an Open MPI error code: OMPI_ERR_NOT_FOUND if it found no device, and in
 * every case of failure the component is closed as before. */
int kw_fabric_load(void);
int kw_fabric_open(void);

/* Is the component loaded, and has not looked for devices? */
bool kw_fabric_loaded(void);

/* Make endpoints on the fabric for every peer. Returns NULL, or why not (static text). */
const char *kw_fabric_connect(void);

#endif
