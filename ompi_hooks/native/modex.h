/* Addresses of the fabric beside Open MPI's own exchange: what this rank's component publishes when
 * it is opened late is captured, and what the peers published is served from here. */
#ifndef KAWARIMI_NATIVE_MODEX_H
#define KAWARIMI_NATIVE_MODEX_H

#include "ompi_config.h"

#include <stdbool.h>

#include "protocol.h"

/* Between these two, every byte string that a component publishes is kept for
 * kw_modex_append_captured() and not given to the runtime. */
void kw_modex_capture_begin(void);
void kw_modex_capture_end(void);

/* Append what was captured last to a message, as blobs of this process. Returns their number, or -1
 * if they do not fit or memory is out; the message is then unchanged. */
int kw_modex_append_captured(struct kw_message *message);

/* Serve this blob to everyone who asks for (process, key) from now on; a later one replaces it.
 * Returns an Open MPI error code. */
int kw_modex_store(const struct kw_blob *blob);

/* Hand the exchange back to the runtime, and release everything. */
void kw_modex_close(void);

#endif
