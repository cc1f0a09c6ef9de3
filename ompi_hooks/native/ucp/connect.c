#include "connect.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "address.h"
#include "endpoints.h"
#include "spare.h"
#include "stall.h"

/* How long the thread waits for peers at most, and how often it looks. */
#define CONNECTING_NS (10 * 1000000000ull)
enum { CONNECTING_PAUSE_NS = 100000 };

/* What open_wanted() is to make, or has made, and why it gave up; NULL if nothing. */
static struct wanted {
    struct kw_endpoint *endpoint;
    const struct kw_address *address;
} *wanted;
static size_t wanted_len;
static ucp_worker_h wanted_worker;
static uint64_t wanted_ends; /* the operation's end */
static const char *wanted_failed;

/* Set by the rank's thread when MPI is being finalized, cleared by it before open_wanted() is begun:
 * that waits for no peer then. */
static atomic_bool unwanted;

/* There is nothing to flush but the connection. */
static const char *open_one(const struct wanted *one) {
    const ucp_request_param_t nothing = {0};
    struct kw_endpoint *endpoint = one->endpoint;
    const char *failed =
        kw_endpoint_open(wanted_worker, one->address, endpoint->vpid, &endpoint->spare);

    if (failed == NULL) {
        endpoint->connecting = kw_real.ucp_ep_flush_nbx(endpoint->spare, &nothing);
    }
    return failed;
}

/* Has it ended, well or not? */
static bool is_connected(struct kw_endpoint *endpoint, const char **failed) {
    ucs_status_t status = UCS_PTR_RAW_STATUS(endpoint->connecting);

    if (UCS_PTR_IS_PTR(endpoint->connecting)) {
        status = kw_real.ucp_request_check_status(endpoint->connecting);
        if (status == UCS_INPROGRESS) {
            return false;
        }
        kw_real.ucp_request_free(endpoint->connecting);
    }
    endpoint->connecting = NULL;
    if (status != UCS_OK) {
        *failed = kw_endpoint_unreachable(endpoint->vpid, status);
    }
    return true;
}

static bool wanted_are_connected(void) {
    bool all = true;

    for (size_t i = 0; i < wanted_len; i++) {
        all &= is_connected(wanted[i].endpoint, &wanted_failed);
    }
    return all || wanted_failed != NULL;
}

/* In the spare's thread. The program may add to the ring meanwhile, but removes nothing before it
 * ends that thread. */
static void open_wanted(void) {
    const struct timespec pause = {.tv_nsec = CONNECTING_PAUSE_NS};
    uint64_t began, most;

    wanted_failed = NULL;
    for (size_t i = 0; i < wanted_len && wanted_failed == NULL; i++) {
        wanted_failed = open_one(&wanted[i]);
    }
    began = kw_clock();
    most = began < wanted_ends ? (wanted_ends - began) / 2 : 0;
    most = most < CONNECTING_NS ? most : CONNECTING_NS;
    while (wanted_failed == NULL && !wanted_are_connected() && kw_clock() - began < most &&
           !atomic_load(&unwanted)) {
        if (kw_real.ucp_worker_progress(wanted_worker) == 0) {
            nanosleep(&pause, NULL);
        }
    }
}

/* Returns false if memory is out. */
static bool wanted_gather(void) {
    size_t most = 0;

    wanted_len = 0;
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        most++;
    }
    wanted = calloc(most + 1, sizeof *wanted);
    if (wanted == NULL) {
        return false;
    }
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);
        const struct kw_address *address = kw_addresses_find_new(endpoint->vpid);

        if (endpoint->spare == NULL && address != NULL) {
            wanted[wanted_len++] = (struct wanted){endpoint, address};
        }
    }
    return true;
}

bool kw_connect_part(uint64_t ends, const char **failed) {
    if (!kw_spare_is_idle()) {
        return false;
    }
    if (wanted == NULL) {
        if (!wanted_gather()) {
            *failed = "out of memory";
            return true;
        }
        wanted_worker = kw_spare_worker();
        wanted_ends = ends;
        atomic_store(&unwanted, false);
        kw_spare_work(open_wanted);
        return false;
    }
    *failed = wanted_failed;
    free(wanted);
    wanted = NULL;
    return true;
}

bool kw_connect_is_done(const char **failed) {
    const struct kw_endpoint *missing = NULL;

    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        if (!is_connected(kw_endpoint_at(link), failed)) {
            missing = kw_endpoint_at(link);
        }
    }
    if (missing == NULL || *failed != NULL) {
        return true;
    }
    kw_spare_progress();
    *failed = kw_endpoint_unreachable(missing->vpid, UCS_INPROGRESS);
    return false;
}

void kw_connect_stop(void) {
    atomic_store(&unwanted, true);
}

void kw_connect_use_spare(void) {
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);

        endpoint->real = endpoint->spare;
        endpoint->spare = NULL;
    }
}

/* A flush that has not ended goes with the worker. */
void kw_connect_forget_spare(void) {
    free(wanted);
    wanted = NULL;
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);

        if (UCS_PTR_IS_PTR(endpoint->connecting)) {
            kw_real.ucp_request_free(endpoint->connecting);
        }
        endpoint->connecting = NULL;
        endpoint->spare = NULL;
    }
}
