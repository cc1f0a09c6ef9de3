/* Checking what comes in from the agent, and laying out what goes to it. Knows nothing of Open MPI,
 * so that a fuzzer and a sanitizer can run it alone. */
#ifndef KAWARIMI_NATIVE_PROTOCOL_H
#define KAWARIMI_NATIVE_PROTOCOL_H

#include <stdbool.h>
#include <stddef.h>

#include "kawarimi_protocol.h"

/* Fill in a message's header. */
void kw_header_set(struct kw_header *header, uint16_t type, size_t size, uint32_t sequence);

/* Check one packet of `size` bytes (what the kernel said, even where it exceeds the buffer).
 * Returns NULL if it is a well-formed COMMAND, blobs included, or else what is wrong with it. */
const char *kw_command_check(const void *packet, size_t size);

/* Check one packet that should be a WELCOME; as above. */
const char *kw_welcome_check(const void *packet, size_t size);

/* Step through the blobs behind a checked command. `cursor` begins at NULL. Returns NULL after the
 * last one. The blob's bytes are at (result + 1). */
const struct kw_blob *kw_blob_next(const struct kw_command *command, const struct kw_blob *cursor);

/* Bytes that a blob with `size` bytes of content takes in a message. */
size_t kw_blob_length(size_t size);

/* A growing message. Each of the functions below returns false, and changes nothing, if memory is
 * out or the message would exceed KW_MAX_MESSAGE. */
struct kw_message {
    unsigned char *bytes;
    size_t size;
};

bool kw_message_begin(struct kw_message *message, size_t size);
bool kw_message_append(struct kw_message *message, const void *bytes, size_t size);
bool kw_message_append_blob(struct kw_message *message, const struct kw_blob *blob,
                            const void *bytes);
void kw_message_release(struct kw_message *message);

#endif
