/* Endpoints: those that Open MPI holds, and UCX's behind them. */
#ifndef KAWARIMI_NATIVE_UCP_ENDPOINTS_H
#define KAWARIMI_NATIVE_UCP_ENDPOINTS_H

#include "objects.h"

/* Close UCX's: begin, or see how far it has come. Returns whether all are closed. The peers have to
 * progress meanwhile. */
bool kw_endpoints_close_part(void);

/* Make UCX's by the addresses that the peers told. Returns NULL, or why not (valid until the next
 * call). */
const char *kw_endpoints_open(void);

/* Has this process endpoints that a switch cannot carry over: to another job's processes, or to one
 * without the shim? */
bool kw_endpoints_foreign(void);

#endif
