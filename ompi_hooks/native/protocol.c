#include "protocol.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(struct kw_header) == 16, "wire layout");
_Static_assert(sizeof(struct kw_step) == 8 + KW_NAME, "wire layout");
_Static_assert(sizeof(struct kw_hello) ==
                   16 + 40 + 3 * KW_NAME + KW_TEXT + 3 * KW_MAX_STEPS * (8 + KW_NAME),
               "wire layout");
_Static_assert(sizeof(struct kw_welcome) == 16 + 8 + KW_TEXT, "wire layout");
_Static_assert(sizeof(struct kw_command) == 40, "wire layout");
_Static_assert(sizeof(struct kw_blob) == 16 + KW_KEY, "wire layout");
_Static_assert(sizeof(struct kw_reply) == 16 + 16 + 88 + 16 + KW_TEXT, "wire layout");
_Static_assert(sizeof(struct kw_component) == KW_NAME + 32, "wire layout");
_Static_assert(sizeof(struct kw_peer) == 24, "wire layout");

void kw_header_set(struct kw_header *header, uint16_t type, size_t size, uint32_t sequence) {
    header->magic = KW_MAGIC;
    header->version = KW_VERSION;
    header->type = type;
    header->size = (uint32_t)size;
    header->sequence = sequence;
}

size_t kw_blob_length(size_t size) {
    return sizeof(struct kw_blob) + ((size + 7) & ~(size_t)7);
}

static const char *header_check(const void *packet, size_t size, uint16_t type, size_t least) {
    const struct kw_header *header = packet;

    if (size > KW_MAX_MESSAGE) {
        return "oversized message";
    }
    if (size < sizeof *header) {
        return "truncated header";
    }
    if (header->magic != KW_MAGIC) {
        return "not a kawarimi message";
    }
    if (header->version != KW_VERSION) {
        return "another protocol version";
    }
    if (header->type != type) {
        return "unexpected message type";
    }
    if (header->size != size || size < least) {
        return "truncated message";
    }
    return NULL;
}

const char *kw_welcome_check(const void *packet, size_t size) {
    const struct kw_welcome *welcome = packet;
    const char *wrong = header_check(packet, size, KW_WELCOME, sizeof *welcome);

    if (wrong == NULL && memchr(welcome->reason, 0, sizeof welcome->reason) == NULL) {
        return "unterminated text";
    }
    return wrong;
}

const char *kw_command_check(const void *packet, size_t size) {
    const struct kw_command *command = packet;
    const char *wrong = header_check(packet, size, KW_COMMAND, sizeof *command);
    size_t at = sizeof *command;

    if (wrong != NULL) {
        return wrong;
    }
    for (uint32_t i = 0; i < command->blobs; i++) {
        const struct kw_blob *blob = (const void *)((const char *)packet + at);

        if (size - at < sizeof *blob) {
            return "truncated blob";
        }
        /* Bounded before it is padded, so that the padding cannot wrap around. */
        if (blob->size > KW_MAX_MESSAGE || kw_blob_length(blob->size) > size - at) {
            return "blob beyond the message";
        }
        if (memchr(blob->key, 0, sizeof blob->key) == NULL || blob->key[0] == 0) {
            return "bad blob key";
        }
        at += kw_blob_length(blob->size);
    }
    return at == size ? NULL : "bytes after the last blob";
}

const struct kw_blob *kw_blob_next(const struct kw_command *command, const struct kw_blob *cursor) {
    const char *end = (const char *)command + command->header.size;
    const char *next = cursor == NULL ? (const char *)(command + 1)
                                      : (const char *)cursor + kw_blob_length(cursor->size);

    return next < end ? (const void *)next : NULL;
}

bool kw_message_begin(struct kw_message *message, size_t size) {
    message->bytes = calloc(1, size);
    message->size = message->bytes != NULL ? size : 0;
    return message->bytes != NULL;
}

bool kw_message_append(struct kw_message *message, const void *bytes, size_t size) {
    unsigned char *grown;

    if (size == 0) {
        return true;
    }
    if (size > KW_MAX_MESSAGE - message->size) {
        return false;
    }
    grown = realloc(message->bytes, message->size + size);
    if (grown == NULL) {
        return false;
    }
    memcpy(grown + message->size, bytes, size);
    message->bytes = grown;
    message->size += size;
    return true;
}

bool kw_message_append_blob(struct kw_message *message, const struct kw_blob *blob,
                            const void *bytes) {
    static const char zeros[8];
    size_t before = message->size;
    size_t padding = kw_blob_length(blob->size) - sizeof *blob - blob->size;

    if (kw_message_append(message, blob, sizeof *blob) &&
        kw_message_append(message, bytes, blob->size) &&
        kw_message_append(message, zeros, padding)) {
        return true;
    }
    message->size = before;
    return false;
}

void kw_message_release(struct kw_message *message) {
    free(message->bytes);
    *message = (struct kw_message){0};
}
