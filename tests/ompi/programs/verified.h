/* Message contents that the receiver can check on its own. */
#ifndef VERIFIED_H
#define VERIFIED_H

#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline uint64_t mix(uint64_t x) {
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

/* What a message is, in one number. */
static inline uint64_t seed_of(int source, int target, uint64_t round, int index) {
    return mix(mix(mix((uint64_t)source << 32 | (uint32_t)target) ^ round) ^ (uint64_t)index);
}

static inline void fill(unsigned char *bytes, size_t size, uint64_t seed) {
    size_t at = 0;

    for (; at + 8 <= size; at += 8) {
        uint64_t word = mix(seed + at);

        memcpy(bytes + at, &word, 8);
    }
    for (; at < size; at++) {
        bytes[at] = (unsigned char)mix(seed + at);
    }
}

static inline void die(const char *what, int source, int target, uint64_t round, int index) {
    fprintf(stderr, "WRONG %s: %d -> %d, round %llu, message %d\n", what, source, target,
            (unsigned long long)round, index);
    MPI_Abort(MPI_COMM_WORLD, 3);
}

static inline void check(const unsigned char *bytes, size_t size, int source, int target,
                         uint64_t round, int index) {
    uint64_t seed = seed_of(source, target, round, index);
    size_t at = 0;

    for (; at + 8 <= size; at += 8) {
        uint64_t word = mix(seed + at);

        if (memcmp(bytes + at, &word, 8) != 0) {
            die("content", source, target, round, index);
        }
    }
    for (; at < size; at++) {
        if (bytes[at] != (unsigned char)mix(seed + at)) {
            die("content", source, target, round, index);
        }
    }
}

static inline void *room(size_t size) {
    void *bytes = malloc(size);

    if (bytes == NULL) {
        fprintf(stderr, "out of memory\n");
        MPI_Abort(MPI_COMM_WORLD, 3);
    }
    return bytes;
}

#endif
