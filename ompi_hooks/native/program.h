/* The shim's side of what the program may ask and tell (kawarimi_program.h). Only for the rank's
 * thread. */
#ifndef KAWARIMI_NATIVE_PROGRAM_H
#define KAWARIMI_NATIVE_PROGRAM_H

#include <stdbool.h>

/* Begin to answer the program. `refusal` as in kw_steps_begin(), or why the shim stays out. */
void kw_program_begin(const char *refusal);

/* MPI is being finalized: know no peers any more, and tell nobody. */
void kw_program_end(void);

/* Why the program does not want to be disturbed now, or NULL. Valid until it says otherwise. */
const char *kw_program_defers(void);

/* A switch is complete; `to` carries the messages. The program has not been told yet. */
void kw_program_switched(const char *to);

/* Is there a switch that the program has not been told of? */
bool kw_program_untold(void);

/* Tell the program. The stall's figures must be complete. */
void kw_program_tell(void);

#endif
