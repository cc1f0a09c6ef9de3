/* What the program itself could notice of the shim: time in our code, in the rank's thread. */
#ifndef KAWARIMI_NATIVE_STALL_H
#define KAWARIMI_NATIVE_STALL_H

#include <stdint.h>

/* In nanoseconds of CLOCK_MONOTONIC. `longest` is the longest time without a break in which the rank
 * could neither compute nor communicate. */
struct kw_stall {
    uint64_t total;
    uint64_t longest;
};
enum kw_stall_span { KW_STALL_PROCESS, KW_STALL_EPOCH, KW_STALL_SPANS };

/* The monotonic clock, in nanoseconds. */
uint64_t kw_clock(void);

/* The rank's thread enters our code, and leaves it. Only for that thread. */
void kw_stall_begin(void);
void kw_stall_end(void);

/* The figures since the process or since the epoch began, the stall under way included. Only for the
 * rank's thread. */
struct kw_stall kw_stall_read(enum kw_stall_span span);

/* A new epoch begins. The stall under way counts to it in full. */
void kw_stall_new_epoch(void);

#endif
