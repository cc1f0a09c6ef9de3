/* The context and the worker that Open MPI's PML makes, and UCX's behind them. */
#ifndef KAWARIMI_NATIVE_UCP_CONTEXT_H
#define KAWARIMI_NATIVE_UCP_CONTEXT_H

#include "side.h"

/* Contexts of this process that are handed through: a part of the program that uses UCX beside the
 * PML. */
unsigned kw_contexts_foreign(void);

/* Make UCX's context and worker on a side; there are none. On failure there are none either;
 * *present as in kw_side_open(). */
ucs_status_t kw_context_open(enum kw_ucp_side side, bool *present);

/* Destroy UCX's worker and context, if they are there; all endpoints are closed. */
void kw_context_close(void);

#endif
