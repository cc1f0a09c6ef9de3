/* What this rank's messages go over, told to the agent. */
#ifndef KAWARIMI_NATIVE_STATUS_H
#define KAWARIMI_NATIVE_STATUS_H

#include "protocol.h"

/* Append the BTL components in use and the routes to every peer to a REPLY, and count them in it.
 * Peers that do not fit are only counted. Returns false if memory is out. */
bool kw_status_append(struct kw_message *message);

/* Can the windows of this process live with a switch? Returns NULL, or why not (static text). */
const char *kw_status_windows_refusal(void);

#endif
