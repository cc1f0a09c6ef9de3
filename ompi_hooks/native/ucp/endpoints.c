#include "endpoints.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "shim.h"
#include "slots.h"

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

bool kw_endpoints_close_part(void) {
    const ucp_request_param_t nothing = {0};
    bool all = true;

    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);

        if (endpoint->real != NULL) {
            endpoint->closing = kw_real.ucp_ep_close_nbx(endpoint->real, &nothing);
            endpoint->real = NULL;
        }
    }
    kw_real.ucp_worker_progress(kw_worker.real);
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);

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

const char *kw_endpoint_unreachable(uint32_t vpid, ucs_status_t status) {
    static char text[128];

    snprintf(text, sizeof text, "rank %u cannot be reached: UCX's status is %d", vpid, status);
    return text;
}

const char *kw_endpoint_open(ucp_worker_h worker, const struct kw_address *address, uint32_t vpid,
                             ucp_ep_h *result) {
    ucs_status_t status = UCS_ERR_NO_ELEM;

    if (address != NULL) {
        status = real_create(worker, address + 1, result);
    }
    if (status == UCS_OK) {
        return NULL;
    }
    *result = NULL;
    return kw_endpoint_unreachable(vpid, status);
}

const char *kw_endpoints_open(void) {
    const char *failed = NULL;

    for (struct kw_ring *link = kw_worker.endpoints.next;
         link != &kw_worker.endpoints && failed == NULL; link = link->next) {
        struct kw_endpoint *endpoint = kw_endpoint_at(link);

        if (endpoint->real == NULL) {
            failed = kw_endpoint_open(kw_worker.real, kw_addresses_find(endpoint->vpid),
                                      endpoint->vpid, &endpoint->real);
        }
    }
    return failed;
}

bool kw_endpoints_foreign(void) {
    for (struct kw_ring *link = kw_worker.endpoints.next; link != &kw_worker.endpoints;
         link = link->next) {
        if (kw_endpoint_at(link)->foreign) {
            return true;
        }
    }
    return false;
}
