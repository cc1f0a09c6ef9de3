/* A signal whose handler runs MPI's progress loop, under conditions that make this a place
 * where the program could have called MPI itself:
 * - the thread is running, not in a system call: nothing gets EINTR that did not before;
 * - the interrupted instruction is not in the C library, the loader or another runtime library,
 *   which could hold a lock or be half way through malloc;
 * - no MPI frame is on the stack: MPI is not entered twice.
 * In doubt the handler returns, and the next poke finds the thread elsewhere. */
#include "poke.h"

#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "kind.h"

enum {
    FRAMES_MAX = 64,
    RANGES_MAX = 1024,
    PASSES = 64 /* Open MPI's low priority callbacks run every eighth time (opal_progress.c) */
};
#define POKE_SIGNAL (SIGRTMAX - 2)

enum kind { USER_CODE, MPI_CODE, RUNTIME_CODE };

struct range {
    uintptr_t begin, end;
    enum kind kind;
};

/* Where each library's code lies. Written by kw_poke() before it sends the signal, and read by the
 * handler that the signal starts. Invariant: `in_flight` is true from before the writing to after the
 * reading, so that the two never overlap. */
static struct range ranges[RANGES_MAX];
static int ranges_len;
static volatile sig_atomic_t in_flight;

/* Of the rank's thread: the handler is on its stack. */
static volatile sig_atomic_t interrupting;

static bool installed;
static pthread_t rank_thread;
static pid_t rank_tid;

static enum kind kind_of_library(const char *path) {
    static const char *const mpi[] = {"/libmpi",  "/libopen-", "/mca_",
                                      "/libpmix", "/libmca_common", "/libuc"};
    static const char *const runtime[] = {"/libc.so",       "/ld-linux", "/libpthread",
                                          "/libstdc++",     "/libgcc_s", "/libevent",
                                          "/libgfortran",   "/libgomp",  "linux-vdso",
                                          "/libpython"};

    /* The handler's own frames. Our code below MPI's shows by MPI's frames. */
    if (strstr(path, "/mca_hook_kawarimi.so") != NULL ||
        strstr(path, "/libkawarimi_ucp.so") != NULL) {
        return USER_CODE;
    }
    for (size_t i = 0; i < sizeof mpi / sizeof mpi[0]; i++) {
        if (strstr(path, mpi[i]) != NULL) {
            return MPI_CODE;
        }
    }
    for (size_t i = 0; i < sizeof runtime / sizeof runtime[0]; i++) {
        if (strstr(path, runtime[i]) != NULL) {
            return RUNTIME_CODE;
        }
    }
    return USER_CODE;
}

static int range_add(struct dl_phdr_info *info, size_t size, void *unused) {
    enum kind kind = kind_of_library(info->dlpi_name);

    (void)size;
    (void)unused;
    for (int i = 0; kind != USER_CODE && i < info->dlpi_phnum && ranges_len < RANGES_MAX; i++) {
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X) != 0) {
            uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;

            ranges[ranges_len++] =
                (struct range){begin, begin + info->dlpi_phdr[i].p_memsz, kind};
        }
    }
    return 0;
}

static enum kind kind_of(const void *address) {
    for (int i = 0; i < ranges_len; i++) {
        if ((uintptr_t)address >= ranges[i].begin && (uintptr_t)address < ranges[i].end) {
            return ranges[i].kind;
        }
    }
    return USER_CODE;
}

static const void *interrupted_instruction(const void *context) {
#if defined(__x86_64__)
    return (const void *)((const ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return (const void *)((const ucontext_t *)context)->uc_mcontext.pc;
#else
#error "say where this machine keeps the program counter"
#endif
}

static bool is_safe(const void *context) {
    void *frames[FRAMES_MAX];
    int len = backtrace(frames, FRAMES_MAX);

    /* A stack that does not fit may hide an MPI frame. */
    if (len == FRAMES_MAX || kind_of(interrupted_instruction(context)) != USER_CODE) {
        return false;
    }
    for (int i = 0; i < len; i++) {
        if (kind_of(frames[i]) == MPI_CODE) {
            return false;
        }
    }
    return true;
}

static void handle(int signal, siginfo_t *info, void *context) {
    int saved = errno;

    (void)signal;
    (void)info;
    if (is_safe(context)) {
        interrupting = 1;
        for (int i = 0; i < PASSES; i++) {
            kw_kind_progress();
        }
        interrupting = 0;
    }
    in_flight = 0;
    errno = saved;
}

void kw_poke_start(void) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_RESTART};
    struct sigaction before;
    void *frame[1];

    if (sigaction(POKE_SIGNAL, NULL, &before) != 0 || before.sa_handler != SIG_DFL) {
        return;
    }
    rank_thread = pthread_self();
    rank_tid = (pid_t)syscall(SYS_gettid);
    /* The first call loads libgcc, which is not possible in a handler. */
    (void)backtrace(frame, 1);
    installed = sigaction(POKE_SIGNAL, &action, NULL) == 0;
}

/* Is the rank's thread on a processor, or waiting for one, and not in a system call? */
static bool is_running(void) {
    char path[64], text[16] = "";
    FILE *file;

    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", rank_tid);
    file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    (void)!fgets(text, sizeof text, file);
    fclose(file);
    return strncmp(text, "running", 7) == 0;
}

void kw_poke(void) {
    if (!installed || in_flight || !is_running()) {
        return;
    }
    in_flight = 1;
    ranges_len = 0;
    dl_iterate_phdr(range_add, NULL);
    if (pthread_kill(rank_thread, POKE_SIGNAL) != 0) {
        in_flight = 0;
    }
}

bool kw_poke_interrupts(void) {
    return interrupting != 0;
}

void kw_poke_stop(void) {
    if (installed) {
        installed = false;
        signal(POKE_SIGNAL, SIG_IGN);
    }
}
