#include "stall.h"

#include <time.h>

static struct kw_stall past[KW_STALL_SPANS];
static uint64_t began; /* 0 outside our code */

uint64_t kw_clock(void) {
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kw_stall_begin(void) {
    began = kw_clock();
}

struct kw_stall kw_stall_read(enum kw_stall_span span) {
    struct kw_stall stall = past[span];

    if (began != 0) {
        uint64_t current = kw_clock() - began;

        stall.total += current;
        stall.longest = current > stall.longest ? current : stall.longest;
    }
    return stall;
}

void kw_stall_new_epoch(void) {
    past[KW_STALL_EPOCH] = (struct kw_stall){0};
}

void kw_stall_end(void) {
    for (int span = 0; span < KW_STALL_SPANS; span++) {
        past[span] = kw_stall_read(span);
    }
    began = 0;
}
