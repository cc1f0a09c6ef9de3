/* The context and the worker that Open MPI's PML makes, and UCX's behind them. */
#ifndef KAWARIMI_NATIVE_UCP_CONTEXT_H
#define KAWARIMI_NATIVE_UCP_CONTEXT_H

#include "side.h"

/* Contexts of this process that are handed through: a part of the program that uses UCX beside the
 * PML. */
unsigned kw_contexts_foreign(void);

#endif
