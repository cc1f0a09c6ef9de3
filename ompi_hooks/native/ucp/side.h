/* The two sides that a job can be on, and UCX's context for each. */
#ifndef KAWARIMI_NATIVE_UCP_SIDE_H
#define KAWARIMI_NATIVE_UCP_SIDE_H

#include "objects.h"

enum kw_ucp_side { KW_UCP_FABRIC, KW_UCP_FALLBACK };

/* Read from the environment what the launcher chose: the sides' names and transports. Returns
 * NULL, or why this process cannot be switched (static text). */
const char *kw_sides_read(void);

const char *kw_side_name(enum kw_ucp_side side);

/* Change a configuration that the program has read to what a side needs. */
void kw_side_configure(ucp_config_t *config, enum kw_ucp_side side);

/* Make a context on a side, from the parameters and the configuration prefix that the program used.
 * *present says whether a device or interface of the side's own is there. */
ucs_status_t kw_side_open(enum kw_ucp_side side, ucp_context_h *context, bool *present);

/* Does a context have a resource of the side's own transports? */
bool kw_side_is_present(enum kw_ucp_side side, ucp_context_h context);

/* The program's parameters, to make contexts from; copied as far as we know them. */
void kw_side_remember(unsigned major, unsigned minor, const ucp_params_t *params,
                      const ucp_config_t *config);

#endif
