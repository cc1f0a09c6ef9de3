#include "endpoints.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "address.h"
#include "shim.h"
#include "slots.h"
#include "spare.h"
#include "stall.h"

/* How long to wait for peers that have not come so far, if the operation has twice as long, and how
 * often to look. */
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

static ucs_status_t real_create(ucp_worker_h worker, const void *address, ucp_ep_h *result) {
    const ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
                                    .address = address};

    return kw_real.ucp_ep_create(worker, &params, result);
}

/* Open MPI gives the address that the peer published when it began; there may be a newer one. */
static ucs_status_t connect_to(struct kw_endpoint *endpoint, const void *published) {
    const struct kw_address *address = published;

    if (!kw_address_is_ours(published)) {
        endpoint->foreign = true;
        return real_create(kw_worker.real, published, &endpoint->real);
    }
    endpoint->jobid = address->jobid;
    endpoint->vpid = address->vpid;
    endpoint->foreign = address->jobid != kw_shim_jobid();
    if (!endpoint->foreign) {
        const struct kw_address *newer = kw_addresses_find(address->vpid);

        address = newer != NULL ? newer : address;
        if (kw_state() == KW_CROSSING && kw_worker.sends_wait) {
            return UCS_OK; /* connected with the others, or before the first send to it */
        }
    }
    return real_create(kw_worker.real, address + 1, &endpoint->real);
}

/* For a worker that is handed through; the peer's may not be. The parameters may be longer than
 * those that we know, so they are changed in place for the time of the call. */
static ucs_status_t plain_create(ucp_worker_h worker, const ucp_ep_params_t *params,
                                 ucp_ep_h *result) {
    ucp_ep_params_t *changed = (ucp_ep_params_t *)params;
    const ucp_address_t *address = params->address;
    ucs_status_t status;

    if ((params->field_mask & UCP_EP_PARAM_FIELD_REMOTE_ADDRESS) == 0 ||
        !kw_address_is_ours(address)) {
        return kw_real.ucp_ep_create(worker, params, result);
    }
    changed->address = (const void *)((const struct kw_address *)(const void *)address + 1);
    status = kw_real.ucp_ep_create(worker, params, result);
    changed->address = address;
    return status;
}

KW_EXPORT ucs_status_t ucp_ep_create(ucp_worker_h worker, const ucp_ep_params_t *params,
                                     ucp_ep_h *result) {
    struct kw_endpoint *endpoint;
    ucs_status_t status;

    if (!kw_is_worker(worker) || (params->field_mask & UCP_EP_PARAM_FIELD_REMOTE_ADDRESS) == 0) {
        return plain_create(kw_is_worker(worker) ? kw_worker.real : worker, params, result);
    }
    endpoint = calloc(1, sizeof *endpoint);
    if (endpoint == NULL) {
        return UCS_ERR_NO_MEMORY;
    }
    endpoint->mark = KW_MARK_ENDPOINT;
    status = connect_to(endpoint, params->address);
    if (status != UCS_OK) {
        free(endpoint);
        return status;
    }
    kw_ring_insert(&kw_worker.endpoints, &endpoint->link);
    *result = (ucp_ep_h)(void *)endpoint;
    return UCS_OK;
}

/* The program parts with a peer: in MPI_Finalize. */
static ucs_status_ptr_t disconnect(struct kw_endpoint *endpoint,
                                   const ucp_request_param_t *param) {
    const ucp_request_param_t nothing = {0};
    ucs_status_ptr_t result = NULL;
    struct kw_slot *slot;

    kw_shim_finish();
    if (endpoint->real != NULL) {
        result = kw_real.ucp_ep_close_nbx(endpoint->real, param);
    }
    kw_ring_remove(&endpoint->link);
    free(endpoint);
    if (!UCS_PTR_IS_PTR(result)) {
        return result;
    }
    slot = kw_slot_take(&nothing);
    if (slot == NULL) {
        kw_real.ucp_request_free(result);
        return NULL;
    }
    kw_slot_begin(slot, &nothing, KW_DISCONNECT);
    slot->foreign = result;
    return kw_slot_application(slot);
}

KW_EXPORT ucs_status_ptr_t ucp_ep_close_nbx(ucp_ep_h handle, const ucp_request_param_t *param) {
    struct kw_endpoint *endpoint = kw_endpoint_of(handle);

    return endpoint != NULL ? disconnect(endpoint, param)
                            : kw_real.ucp_ep_close_nbx(handle, param);
}

KW_EXPORT ucs_status_ptr_t ucp_disconnect_nb(ucp_ep_h handle) {
    struct kw_endpoint *endpoint = kw_endpoint_of(handle);

    return endpoint != NULL ? disconnect(endpoint, &(const ucp_request_param_t){0})
                            : kw_real.ucp_disconnect_nb(handle);
}

KW_EXPORT ucs_status_t ucp_ep_query(ucp_ep_h handle, ucp_ep_attr_t *attributes) {
    struct kw_endpoint *endpoint = kw_endpoint_of(handle);

    if (endpoint != NULL && endpoint->real == NULL) {
        return UCS_ERR_NOT_CONNECTED;
    }
    return kw_real.ucp_ep_query(endpoint != NULL ? endpoint->real : handle, attributes);
}

static struct kw_endpoint *endpoint_at(struct kw_ring *link) {
    return KW_OF(struct kw_endpoint, link, link);
}

bool kw_endpoints_close_part(void) {
    const ucp_request_param_t nothing = {0};
    bool all = true;

    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = endpoint_at(link);

        if (endpoint->real != NULL) {
            endpoint->closing = kw_real.ucp_ep_close_nbx(endpoint->real, &nothing);
            endpoint->real = NULL;
        }
    }
    kw_real.ucp_worker_progress(kw_worker.real);
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = endpoint_at(link);

        if (UCS_PTR_IS_PTR(endpoint->closing)) {
            if (kw_real.ucp_request_check_status(endpoint->closing) == UCS_INPROGRESS) {
                all = false;
                continue;
            }
            kw_real.ucp_request_free(endpoint->closing);
        }
        endpoint->closing = NULL;
    }
    return all;
}

static const char *unreachable(uint32_t vpid, ucs_status_t status) {
    static char text[128];

    snprintf(text, sizeof text, "rank %u cannot be reached: UCX's status is %d", vpid, status);
    return text;
}

/* Returns NULL, or why there is none. */
static const char *open_on(ucp_worker_h worker, const struct kw_address *address, uint32_t vpid,
                           ucp_ep_h *result) {
    ucs_status_t status = UCS_ERR_NO_ELEM;

    if (address != NULL) {
        status = real_create(worker, address + 1, result);
    }
    if (status == UCS_OK) {
        return NULL;
    }
    *result = NULL;
    return unreachable(vpid, status);
}

const char *kw_endpoints_open(void) {
    const char *failed = NULL;

    for (struct kw_ring *link = kw_worker.endpoints.next;
         link != &kw_worker.endpoints && failed == NULL; link = link->next) {
        struct kw_endpoint *endpoint = endpoint_at(link);

        if (endpoint->real == NULL) {
            failed = open_on(kw_worker.real, kw_addresses_find(endpoint->vpid), endpoint->vpid,
                             &endpoint->real);
        }
    }
    return failed;
}

/* Let an endpoint connect, as far as its peer has come to it by then: there is nothing to flush but
 * that. Returns UCX's status. */
static ucs_status_t await_connection(ucp_ep_h endpoint, uint64_t until) {
    const ucp_request_param_t nothing = {0};
    const struct timespec pause = {.tv_nsec = CONNECTING_PAUSE_NS};
    ucs_status_ptr_t flush = kw_real.ucp_ep_flush_nbx(endpoint, &nothing);
    ucs_status_t status;

    if (!UCS_PTR_IS_PTR(flush)) {
        return UCS_PTR_RAW_STATUS(flush);
    }
    while ((status = kw_real.ucp_request_check_status(flush)) == UCS_INPROGRESS &&
           kw_clock() < until && !atomic_load(&unwanted)) {
        if (kw_real.ucp_worker_progress(wanted_worker) == 0) {
            nanosleep(&pause, NULL);
        }
    }
    kw_real.ucp_request_free(flush);
    return status;
}

/* In the spare's thread. The program may add to the ring meanwhile, but removes nothing before it
 * ends that thread. What UCX does once a peer has answered, it does here and not in the rank's
 * thread: for rc, it makes a queue pair and connects it. */
static void open_wanted(void) {
    uint64_t now, left;

    wanted_failed = NULL;
    for (size_t i = 0; i < wanted_len && wanted_failed == NULL; i++) {
        wanted_failed = open_on(wanted_worker, wanted[i].address, wanted[i].endpoint->vpid,
                                &wanted[i].endpoint->spare);
    }
    now = kw_clock();
    left = now < wanted_ends ? (wanted_ends - now) / 2 : 0;
    left = left < CONNECTING_NS ? left : CONNECTING_NS;
    for (size_t i = 0; i < wanted_len && wanted_failed == NULL; i++) {
        ucs_status_t status = await_connection(wanted[i].endpoint->spare, now + left);

        if (status != UCS_OK && status != UCS_INPROGRESS) {
            wanted_failed = unreachable(wanted[i].endpoint->vpid, status);
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
        struct kw_endpoint *endpoint = endpoint_at(link);
        const struct kw_address *address = kw_addresses_find_new(endpoint->vpid);

        if (endpoint->spare == NULL && address != NULL) {
            wanted[wanted_len++] = (struct wanted){endpoint, address};
        }
    }
    return true;
}

bool kw_endpoints_open_spare_part(uint64_t ends, const char **failed) {
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

void kw_endpoints_unwanted(void) {
    atomic_store(&unwanted, true);
}

void kw_endpoints_use_spare(void) {
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = endpoint_at(link);

        endpoint->real = endpoint->spare;
        endpoint->spare = NULL;
    }
}

void kw_endpoints_forget_spare(void) {
    free(wanted);
    wanted = NULL;
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        endpoint_at(link)->spare = NULL;
    }
}

bool kw_endpoints_foreign(void) {
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        if (endpoint_at(link)->foreign) {
            return true;
        }
    }
    return false;
}
