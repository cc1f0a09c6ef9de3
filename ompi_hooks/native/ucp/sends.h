/* Sends: counted, and kept back while a switch is under way. */
#ifndef KAWARIMI_NATIVE_UCP_SENDS_H
#define KAWARIMI_NATIVE_UCP_SENDS_H

#include "objects.h"

/* Send what waits, in order, and let sends through from now on. Calls the application back,
 * which may send more. */
void kw_sends_release(void);

#endif
