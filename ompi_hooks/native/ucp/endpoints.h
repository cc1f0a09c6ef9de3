/* Endpoints: those that Open MPI holds, and UCX's behind them. */
#ifndef KAWARIMI_NATIVE_UCP_ENDPOINTS_H
#define KAWARIMI_NATIVE_UCP_ENDPOINTS_H

#include "address.h"
#include "objects.h"

/* Close UCX's: begin, or see how far it has come. Returns whether all are closed. The peers have to
 * progress meanwhile. */
bool kw_endpoints_close_part(void);

/* Make those that UCX's worker lacks, by the addresses that the peers told. Returns NULL, or why not
 * (valid until the next call). */
const char *kw_endpoints_open(void);

/* Make one on a worker, to the rank of that address; NULL if nobody told it. Returns as above. */
const char *kw_endpoint_open(ucp_worker_h worker, const struct kw_address *address, uint32_t vpid,
                             ucp_ep_h *result);

/* Say that a rank cannot be reached (valid until the next call). */
const char *kw_endpoint_unreachable(uint32_t vpid, ucs_status_t status);

/* Has this process endpoints that a switch cannot carry over: to another job's processes, or to one
 * without the shim? */
bool kw_endpoints_foreign(void);

#endif
