/* Feeds the parser of peers' addresses with what is almost right. To be built with sanitizers.
 *
 * usage: fuzz_address COUNT SEED
 * Each lies in a heap block of exactly its size. What is accepted is kept, and found again.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"

enum { RANKS = 8, LARGEST = 300 };

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void spoil(unsigned char *bytes, size_t size) {
    static const uint32_t edges[] = {0, 1, 7, KW_ADDRESS_MAX, KW_ADDRESS_MAX + 1, 0x80000000,
                                     0xffffffe8, 0xffffffff};

    for (uint32_t times = draw(3); times > 0 && size >= 4; times--) {
        size_t at = draw((uint32_t)size);

        if (draw(2) == 0) {
            bytes[at] ^= (unsigned char)(1u << draw(8));
        } else {
            at = (at & ~(size_t)3) + 4 > size ? 0 : at & ~(size_t)3;
            memcpy(bytes + at, &edges[draw(sizeof edges / sizeof edges[0])], 4);
        }
    }
}

static void need(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "WRONG %s\n", what);
        exit(3);
    }
}

int main(int argc, char **argv) {
    static const unsigned char content[LARGEST];
    long count = argc > 1 ? atol(argv[1]) : 1000, accepted = 0, kept = 0;

    state = argc > 2 ? strtoull(argv[2], NULL, 10) : 88172645463325252ull;
    for (long i = 0; i < count; i++) {
        struct kw_address *made = kw_address_make(1, draw(2 * RANKS), content, draw(LARGEST));
        size_t size = kw_address_length(made);
        const struct kw_address *checked;
        unsigned char *packet;

        size = draw(4) == 0 ? draw((uint32_t)size + 1) : size;
        packet = malloc(size > 0 ? size : 1);
        memcpy(packet, made, size);
        spoil(packet, size);
        checked = kw_address_check(packet, size);
        if (checked != NULL) {
            accepted++;
            if (kw_addresses_keep_new(checked, RANKS)) {
                const struct kw_address *found = kw_addresses_find_new(checked->vpid);

                kept++;
                need(found != NULL && found->size == checked->size &&
                         memcmp(found + 1, checked + 1, checked->size) == 0,
                     "another one is found");
            } else {
                need(checked->vpid >= RANKS, "a rank's is not kept");
            }
        }
        if (draw(100) == 0) {
            const struct kw_address *found = kw_addresses_find_new(0);

            if (draw(2) == 0) {
                kw_addresses_adopt_new();
                need(kw_addresses_find(0) == found, "the one in use is another");
            } else {
                kw_addresses_drop_new();
            }
            need(kw_addresses_find_new(0) == NULL, "one is new that is in use, or dropped");
        }
        need(kw_addresses_find(draw(1000) + RANKS) == NULL &&
                 kw_addresses_find_new(draw(1000) + RANKS) == NULL,
             "nobody's is found");
        free(packet);
        free(made);
    }
    kw_addresses_forget();
    printf("OK %ld inputs, %ld accepted, %ld kept\n", count, accepted, kept);
    return 0;
}
