/* Waking a rank that computes outside MPI, so that it comes to a safe point: only on request. */
#ifndef KAWARIMI_NATIVE_POKE_H
#define KAWARIMI_NATIVE_POKE_H

#include <stdbool.h>

/* Remember the calling thread as the rank's, and install the handler. To be called at the end of
 * MPI_Init. Does nothing if the program uses the signal already. */
void kw_poke_start(void);

/* Interrupt the rank's thread once, if it is running user code. Any other thread. */
void kw_poke(void);

/* Has a poke interrupted the program, and called us? Only for the rank's thread. */
bool kw_poke_interrupts(void);

/* Take the handler back. */
void kw_poke_stop(void);

#endif
