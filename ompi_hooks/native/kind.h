/* What a kind of shim gives to the parts that all kinds share (executor.c, steps.c, program.c,
 * poke.c, link.c). One kind is linked into each shim: `btl` (commands.c) or `ucp`
 * (ucp/commands.c). */
#ifndef KAWARIMI_NATIVE_KIND_H
#define KAWARIMI_NATIVE_KIND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "step.h"

enum kw_direction { KW_NEITHER, KW_LEAVE, KW_TAKE, KW_HOLDING };

/* A command that the kind executes. Those of a direction are its steps, in the order of the
 * list; a command may be a step of several. `patient`: the program may defer it. What comes
 * later in a switch it cannot: the ranks would wait for each other between two transports. */
struct kw_entry {
    uint32_t code;
    enum kw_direction direction;
    uint32_t flags; /* KW_STEP_* */
    bool patient;
    const char *name;
    kw_step *execute;
};

extern const char kw_kind_name[];
extern const struct kw_entry kw_kind_entries[];
extern const size_t kw_kind_entries_len;

/* What the program does at the moment that a switch or a hold would break; NULL if nothing. */
const char *kw_kind_refusal(void);

/* The rank is parked: let what is under way arrive. Repeated in waves; the reply's counters are the
 * product. */
kw_step kw_kind_quiesce;

/* Fill in a reply's counters. */
void kw_kind_measure(const struct kw_result *result, struct kw_reply *reply);

/* May a step run now? Nothing of the transports' code may be on the stack, nor another thread be in
 * it. */
bool kw_kind_is_safe(void);

/* Let MPI progress, while the rank's thread is parked. */
void kw_kind_progress(void);

/* Between commands: is there something that the kind has to do before messages go on? Cheap enough
 * for every call of the progress function. */
bool kw_kind_wants_tending(void);

/* Do it. */
void kw_kind_tend(void);

/* May kw_kind_wants_tending() become true before the next command? */
bool kw_kind_needs_tending(void);

/* What carries the messages to the peers, for programs (kawarimi_program.h). */
struct kawarimi_peer;
int kw_kind_peers(struct kawarimi_peer *peers, int capacity);

#endif
