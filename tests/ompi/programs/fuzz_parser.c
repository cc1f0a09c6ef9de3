/* Feeds the rank's socket parser with packets that are almost right. To be built with sanitizers.
 *
 * usage: fuzz_parser COUNT SEED
 * Each packet lies in a heap block of exactly its size, so that reading one byte too far is noticed.
 * What the parser accepts is then walked as the rank walks it, every byte read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "protocol.h"

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

/* A well-formed command with up to three blobs. */
static size_t make(unsigned char *bytes) {
    struct kw_command command = {.code = draw(120), .epoch = draw(9), .deadline_ms = draw(9)};
    size_t size = sizeof command;

    command.blobs = draw(4);
    for (uint32_t i = 0; i < command.blobs; i++) {
        struct kw_blob blob = {.jobid = draw(9), .vpid = draw(9), .size = draw(300)};

        snprintf(blob.key, sizeof blob.key, "btl.%u", draw(1000));
        memcpy(bytes + size, &blob, sizeof blob);
        memset(bytes + size + sizeof blob, 7, kw_blob_length(blob.size) - sizeof blob);
        size += kw_blob_length(blob.size);
    }
    kw_header_set(&command.header, KW_COMMAND, size, draw(1000));
    memcpy(bytes, &command, sizeof command);
    return size;
}

static size_t spoil(unsigned char *bytes, size_t size) {
    static const uint32_t edges[] = {0,          1,          7,          8,         KW_MAX_MESSAGE,
                                     0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff};

    for (uint32_t times = draw(4); times > 0; times--) {
        size_t at = draw((uint32_t)size);
        uint32_t edge = edges[draw(sizeof edges / sizeof edges[0])];

        switch (draw(4)) {
        case 0:
            bytes[at] ^= (unsigned char)(1u << draw(8));
            break;
        case 1:
            at &= ~(size_t)3;
            if (at + 4 <= size) {
                memcpy(bytes + at, &edge, 4);
            }
            break;
        case 2:
            size = 1 + draw((uint32_t)size);
            break;
        default: { /* keep the header's size true, so that deeper checks are reached */
            uint32_t said = (uint32_t)size;

            if (size >= sizeof(struct kw_header)) {
                memcpy(bytes + 8, &said, 4);
            }
        }
        }
    }
    return size;
}

static unsigned walk(const struct kw_command *command) {
    unsigned sum = 0;

    for (const struct kw_blob *blob = kw_blob_next(command, NULL); blob != NULL;
         blob = kw_blob_next(command, blob)) {
        sum += (unsigned)strlen(blob->key);
        for (uint32_t i = 0; i < blob->size; i++) {
            sum += ((const unsigned char *)(blob + 1))[i];
        }
    }
    return sum;
}

int main(int argc, char **argv) {
    static unsigned char bytes[8192];
    long count = argc > 1 ? atol(argv[1]) : 1000, accepted = 0;
    unsigned sum = 0;

    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 88172645463325252ull;
    for (long i = 0; i < count; i++) {
        size_t size = spoil(bytes, make(bytes));
        unsigned char *packet = malloc(size);

        memcpy(packet, bytes, size);
        (void)kw_welcome_check(packet, size);
        if (kw_command_check(packet, size) == NULL) {
            accepted++;
            sum += walk((const struct kw_command *)(const void *)packet);
        }
        free(packet);
    }
    printf("OK %ld inputs, %ld accepted, sum %u\n", count, accepted, sum);
    return 0;
}
