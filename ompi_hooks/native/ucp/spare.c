#include "spare.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "address.h"
#include "connect.h"

static ucp_worker_params_t worker_params;

/* Of the thread while there is one, else of the rank's. */
static struct {
    ucp_context_h context;
    ucp_worker_h worker;
    enum kw_ucp_side side;
    ucs_status_t status;
    bool present;
} spare;

static pthread_t thread;
static bool working; /* there is a thread, and nobody has joined it */
static void (*thread_work)(void);

/* Set by the thread as its last deed, cleared before it is started. */
static atomic_bool finished;

void kw_spare_begin(const ucp_worker_params_t *params) {
    worker_params = *params;
}

static void unmake(void) {
    if (spare.worker != NULL) {
        kw_real.ucp_worker_destroy(spare.worker);
        spare.worker = NULL;
    }
    if (spare.context != NULL) {
        kw_real.ucp_cleanup(spare.context);
        spare.context = NULL;
    }
}

static void make(void) {
    unmake();
    spare.present = false;
    spare.status = kw_side_open(spare.side, &spare.context, &spare.present);
    if (spare.status != UCS_OK) {
        spare.context = NULL;
    } else if (spare.present) {
        spare.status = kw_real.ucp_worker_create(spare.context, &worker_params, &spare.worker);
        if (spare.status != UCS_OK) {
            spare.worker = NULL;
        }
    }
    if (spare.worker == NULL) {
        unmake();
    }
}

static void *run(void *unused) {
    thread_work();
    atomic_store(&finished, true);
    return unused;
}

/* Without a thread to be had, the program waits. */
void kw_spare_work(void (*work)(void)) {
    sigset_t all, before;

    thread_work = work;
    atomic_store(&finished, false);
    /* The program's signals are the program's threads' business. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    working = pthread_create(&thread, NULL, run, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!working) {
        work();
    }
}

/* What belongs to the worker that is about to go. */
static void forget(void) {
    kw_connect_forget_spare();
    kw_addresses_drop_new();
}

bool kw_spare_is_idle(void) {
    if (working && atomic_load(&finished)) {
        pthread_join(thread, NULL);
        working = false;
    }
    return !working;
}

void kw_spare_make(enum kw_ucp_side side) {
    forget();
    spare.side = side;
    kw_spare_work(make);
}

ucs_status_t kw_spare_outcome(bool *present) {
    *present = spare.present;
    return spare.status;
}

bool kw_spare_unmake_part(void) {
    if (!kw_spare_is_idle()) {
        return false;
    }
    if (spare.worker != NULL) {
        forget();
        kw_spare_work(unmake);
    }
    return kw_spare_is_idle();
}

ucp_worker_h kw_spare_worker(void) {
    return working ? NULL : spare.worker;
}

void kw_spare_progress(void) {
    if (kw_spare_worker() != NULL) {
        kw_real.ucp_worker_progress(spare.worker);
    }
}

enum kw_ucp_side kw_spare_exchange(enum kw_ucp_side in_use) {
    const ucp_context_h context = kw_context.real;
    const ucp_worker_h worker = kw_worker.real;
    const enum kw_ucp_side side = spare.side;

    kw_context.real = spare.context;
    kw_worker.real = spare.worker;
    spare.context = context;
    spare.worker = worker;
    spare.side = in_use;
    kw_connect_use_spare();
    kw_addresses_adopt_new();
    return side;
}

void kw_spare_end(void) {
    if (working) {
        kw_connect_stop();
        pthread_join(thread, NULL);
        working = false;
    }
    forget();
    unmake();
}
