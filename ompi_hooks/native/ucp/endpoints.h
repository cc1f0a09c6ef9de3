/* Endpoints: those that Open MPI holds, and UCX's behind them. */
#ifndef KAWARIMI_NATIVE_UCP_ENDPOINTS_H
#define KAWARIMI_NATIVE_UCP_ENDPOINTS_H

#include "objects.h"

/* Close UCX's: begin, or see how far it has come. Returns whether all are closed. The peers have to
 * progress meanwhile. */
bool kw_endpoints_close_part(void);

/* Make those that UCX's worker lacks, by the addresses that the peers told. Returns NULL, or why not
 * (valid until the next call). */
const char *kw_endpoints_open(void);

/* Make those that the spare worker lacks, by the new addresses as far as they are known: begin, or see
 * how far it has come. The operation ends at `ends` (of kw_clock()), and half of what is left until
 * then is for the peers, at most. Returns whether it is over; then *failed is as above. */
bool kw_endpoints_open_spare_part(uint64_t ends, const char **failed);

/* MPI is being finalized: no peer is waited for any more. */
void kw_endpoints_unwanted(void);

/* The spare worker is the one in use, or is not there any more. */
void kw_endpoints_use_spare(void);
void kw_endpoints_forget_spare(void);

/* Has this process endpoints that a switch cannot carry over: to another job's processes, or to one
 * without the shim? */
bool kw_endpoints_foreign(void);

#endif
