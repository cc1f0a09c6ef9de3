/* What a program may ask of the shim in its own process, and tell it. An MPI program needs none of
 * this to be switched.
 *
 * The functions are exported by the loaded component, mca_hook_kawarimi.so. A program looks for them
 * with dlsym(RTLD_DEFAULT, ...) between MPI_Init and MPI_Finalize: where they are missing, the shim
 * is not loaded, and nothing is to be asked. Python programs use kawarimi_ompi.program, which reads
 * this very file with cffi: lines that begin with '#' are for C alone, and constants are enums.
 *
 * All of them are for the thread that calls MPI, and none is for a signal handler. None blocks.
 */
#ifndef KAWARIMI_PROGRAM_H
#define KAWARIMI_PROGRAM_H

#include <stdint.h>

enum kawarimi_program {
    KAWARIMI_PROGRAM_VERSION = 1,
    KAWARIMI_TRANSPORTS = 4, /* BTLs told of one peer */
    KAWARIMI_NAME = 32,      /* bytes of a name, the terminating zero included */
    KAWARIMI_REASON = 128    /* bytes of a reason, the terminating zero included */
};

/* What carries this process's messages to one other. */
struct kawarimi_peer {
    int32_t rank; /* in MPI_COMM_WORLD */
    uint32_t transports;
    char names[KAWARIMI_TRANSPORTS][KAWARIMI_NAME];
};

/* One exchange of the interconnect, as this process saw it. */
struct kawarimi_switch {
    uint64_t number;           /* in this process, from 1 on */
    uint64_t stall_total_ns;   /* time in the shim, in this thread */
    uint64_t stall_longest_ns; /* the longest without a break: the process could do nothing else */
    char transport[KAWARIMI_NAME]; /* the BTL that carries the messages since */
};

/* The version of this interface. */
int kawarimi_program_version(void);

/* Why this process is not going to be switched, or NULL if it can be. Valid until MPI_Finalize. */
const char *kawarimi_program_refusal(void);

/* Tell the transports of at most `capacity` peers, those to whom this process has a connection or
 * has prepared one. Returns how many there are, which may be more. */
int kawarimi_program_peers(struct kawarimi_peer *peers, int capacity);

/* Tell the last completed switch; its number is 0 if there was none. */
void kawarimi_program_last_switch(struct kawarimi_switch *last);

typedef int kawarimi_callback(void *data);

/* After each completed switch, call schedule(callback, data), from within whatever MPI function the
 * program is in: there MPI must not be called. `schedule` is to arrange that callback(data) runs at a
 * place where the program may do what it likes; for Python that is Py_AddPendingCall. It is not
 * called while a poke has interrupted the program, but in one of its next MPI calls that wait. NULL
 * ends it, as MPI_Finalize does; there is one watcher per process. */
void kawarimi_program_watch(int (*schedule)(kawarimi_callback *, void *),
                            kawarimi_callback *callback, void *data);

/* From here on the program does not want to be disturbed: no switch and no hold begins, until
 * kawarimi_program_allow() was called as often. Whoever asks for one waits, and gives up at its
 * deadline, with this reason, which is copied. One that is under way past SELECT or INIT goes on. */
void kawarimi_program_defer(const char *reason);
void kawarimi_program_allow(void);

#endif
