#include "counters.h"

#include <stdlib.h>

#include "ompi/mca/bml/base/base.h"
#include "opal/mca/btl/base/base.h"

enum { MODULES_MAX = 32, TAGS = MCA_BTL_TAG_MAX, TICKETS_PER_BLOCK = 256 };

int kw_depth;

/* A wrapped module: the functions that it had, and what was counted on it. Invariant: a slot keeps
 * its address, and is free exactly while `module` is NULL. */
struct original {
    mca_btl_base_module_t *module;
    const mca_btl_base_component_t *component; /* still known when the module is no more */
    struct kw_counts counts;
    mca_btl_base_module_send_fn_t send;
    mca_btl_base_module_sendi_fn_t sendi;
    mca_btl_base_module_put_fn_t put;
    mca_btl_base_module_get_fn_t get;
};
static struct original originals[MODULES_MAX];
static int originals_len; /* slots from here on have never been used */

/* What completion has to restore and call. Tickets are pooled and never returned to the heap, so
 * that `serial` can be read after the operation may have completed; there are never more of them
 * than operations were outstanding at once. */
struct ticket {
    struct ticket *next;
    uint64_t serial; /* grows with every completion */
    struct original *original;
    mca_btl_base_completion_fn_t send_cb;
    mca_btl_base_rdma_completion_fn_t rdma_cb;
    void *data;
};
static struct ticket *tickets;

static mca_btl_active_message_callback_t received[TAGS];
static mca_bml_base_module_t *adopted;
static mca_bml_base_module_register_fn_t adopted_register;

static struct ticket *ticket_take(struct original *original) {
    struct ticket *ticket = tickets;

    if (OPAL_UNLIKELY(ticket == NULL)) {
        struct ticket *block = calloc(TICKETS_PER_BLOCK, sizeof *block);

        if (block == NULL) {
            return NULL;
        }
        for (int i = 0; i < TICKETS_PER_BLOCK; i++) {
            block[i].next = i + 1 < TICKETS_PER_BLOCK ? &block[i + 1] : NULL;
        }
        ticket = block;
    }
    tickets = ticket->next;
    ticket->original = original;
    original->counts.outstanding++;
    return ticket;
}

static void ticket_return(struct ticket *ticket) {
    ticket->serial++;
    ticket->next = tickets;
    tickets = ticket;
    ticket->original->counts.outstanding--;
}

static struct original *original_of(mca_btl_base_module_t *module) {
    for (int i = 0; i < originals_len; i++) {
        if (originals[i].module == module) {
            return &originals[i];
        }
    }
    return NULL;
}

static void send_done(mca_btl_base_module_t *btl, struct mca_btl_base_endpoint_t *endpoint,
                      mca_btl_base_descriptor_t *descriptor, int status) {
    struct ticket *ticket = descriptor->des_cbdata;

    descriptor->des_cbfunc = ticket->send_cb;
    descriptor->des_cbdata = ticket->data;
    ticket_return(ticket);
    kw_depth++;
    descriptor->des_cbfunc(btl, endpoint, descriptor, status);
    kw_depth--;
}

/* btl.h: a negative result means that the BTL did not take the descriptor, except RESOURCE_BUSY,
 * which means queued; 1 means completed, in which case the callback may or may not have run. */
static int counted_send(mca_btl_base_module_t *btl, struct mca_btl_base_endpoint_t *endpoint,
                        mca_btl_base_descriptor_t *descriptor, mca_btl_base_tag_t tag) {
    struct original *original = original_of(btl);
    struct ticket *ticket = ticket_take(original);
    uint64_t serial;
    int rc;

    if (OPAL_UNLIKELY(ticket == NULL)) {
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    serial = ticket->serial;
    ticket->send_cb = descriptor->des_cbfunc;
    ticket->data = descriptor->des_cbdata;
    descriptor->des_cbfunc = send_done;
    descriptor->des_cbdata = ticket;
    original->counts.sent++;
    kw_depth++;
    rc = original->send(btl, endpoint, descriptor, tag);
    kw_depth--;
    if (OPAL_UNLIKELY(rc < 0 && rc != OPAL_ERR_RESOURCE_BUSY)) {
        descriptor->des_cbfunc = ticket->send_cb;
        descriptor->des_cbdata = ticket->data;
        original->counts.sent--;
        ticket_return(ticket);
    } else if (rc == 1 && ticket->serial == serial) {
        ticket_return(ticket);
    }
    return rc;
}

static int counted_sendi(mca_btl_base_module_t *btl, struct mca_btl_base_endpoint_t *endpoint,
                         struct opal_convertor_t *convertor, void *header, size_t header_size,
                         size_t payload_size, uint8_t order, uint32_t flags,
                         mca_btl_base_tag_t tag, mca_btl_base_descriptor_t **descriptor) {
    struct original *original = original_of(btl);
    int rc;

    original->counts.sent++;
    kw_depth++;
    rc = original->sendi(btl, endpoint, convertor, header, header_size, payload_size, order, flags,
                         tag, descriptor);
    kw_depth--;
    if (rc != OPAL_SUCCESS) {
        original->counts.sent--;
    }
    return rc;
}

static void rdma_done(mca_btl_base_module_t *btl, struct mca_btl_base_endpoint_t *endpoint,
                      void *local_address, mca_btl_base_registration_handle_t *local_handle,
                      void *context, void *data, int status) {
    struct ticket *ticket = data;
    mca_btl_base_rdma_completion_fn_t callback = ticket->rdma_cb;
    void *original_data = ticket->data;

    ticket_return(ticket);
    kw_depth++;
    callback(btl, endpoint, local_address, local_handle, context, original_data, status);
    kw_depth--;
}

/* put and get differ in nothing but the function called. */
#define COUNTED_RDMA(operation)                                                                    \
    static int counted_##operation(                                                                \
        mca_btl_base_module_t *btl, struct mca_btl_base_endpoint_t *endpoint,                      \
        void *local_address, uint64_t remote_address,                                              \
        mca_btl_base_registration_handle_t *local_handle,                                          \
        mca_btl_base_registration_handle_t *remote_handle, size_t size, int flags, int order,      \
        mca_btl_base_rdma_completion_fn_t callback, void *context, void *data) {                   \
        struct original *original = original_of(btl);                                              \
        struct ticket *ticket = ticket_take(original);                                                     \
        uint64_t serial;                                                                           \
        int rc;                                                                                    \
                                                                                                   \
        if (OPAL_UNLIKELY(ticket == NULL)) {                                                       \
            return OPAL_ERR_OUT_OF_RESOURCE;                                                       \
        }                                                                                          \
        serial = ticket->serial;                                                                   \
        ticket->rdma_cb = callback;                                                                \
        ticket->data = data;                                                                       \
        kw_depth++;                                                                                \
        rc = original->operation(btl, endpoint, local_address, remote_address, local_handle,       \
                                 remote_handle, size, flags, order, rdma_done, context, ticket);   \
        kw_depth--;                                                                                \
        if (OPAL_UNLIKELY(rc < 0 && ticket->serial == serial)) {                                   \
            ticket_return(ticket);                                                                 \
        }                                                                                          \
        return rc;                                                                                 \
    }
COUNTED_RDMA(put)
COUNTED_RDMA(get)

/* Every BTL calls this: the table of receive callbacks has no dimension for the BTL. */
static void counted_receive(mca_btl_base_module_t *btl, mca_btl_base_tag_t tag,
                            mca_btl_base_descriptor_t *descriptor, void *data) {
    if (btl->btl_send == counted_send) {
        original_of(btl)->counts.received++;
    }
    kw_depth++;
    received[tag].cbfunc(btl, tag, descriptor, data);
    kw_depth--;
}

static int adopting_register(mca_btl_base_tag_t tag, mca_btl_base_module_recv_cb_fn_t callback,
                             void *data) {
    received[tag].cbfunc = callback;
    received[tag].cbdata = data;
    return adopted_register(tag, counted_receive, data);
}

void kw_counters_adopt(mca_bml_base_module_t *bml) {
    adopted = bml;
    adopted_register = bml->bml_register;
    bml->bml_register = adopting_register;
}

int kw_counters_attach(mca_btl_base_module_t *module) {
    struct original *original = original_of(NULL);

    if (original == NULL && originals_len < MODULES_MAX) {
        original = &originals[originals_len++];
    }
    if (original == NULL) {
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    *original = (struct original){.module = module,
                                  .component = module->btl_component,
                                  .send = module->btl_send,
                                  .sendi = module->btl_sendi,
                                  .put = module->btl_put,
                                  .get = module->btl_get};
    module->btl_send = counted_send;
    if (original->sendi != NULL) {
        module->btl_sendi = counted_sendi;
    }
    if (original->put != NULL) {
        module->btl_put = counted_put;
    }
    if (original->get != NULL) {
        module->btl_get = counted_get;
    }
    return OPAL_SUCCESS;
}

void kw_counters_forget(const mca_btl_base_component_t *component) {
    for (int i = 0; i < originals_len; i++) {
        if (originals[i].module != NULL && originals[i].component == component) {
            originals[i] = (struct original){0};
        }
    }
}

static void counts_add(struct kw_counts *sum, const struct original *original) {
    sum->sent += original->counts.sent;
    sum->received += original->counts.received;
    sum->outstanding += original->counts.outstanding;
}

struct kw_counts kw_counters_of(const mca_btl_base_component_t *component) {
    struct kw_counts sum = {0};

    for (int i = 0; i < originals_len; i++) {
        if (originals[i].module != NULL && originals[i].component == component) {
            counts_add(&sum, &originals[i]);
        }
    }
    return sum;
}

struct kw_counts kw_counters_all(void) {
    struct kw_counts sum = {0};

    for (int i = 0; i < originals_len; i++) {
        if (originals[i].module != NULL) {
            counts_add(&sum, &originals[i]);
        }
    }
    return sum;
}

bool kw_counters_cover(const mca_btl_base_component_t *component) {
    for (int i = 0; i < originals_len; i++) {
        if (originals[i].module != NULL && originals[i].component == component) {
            return true;
        }
    }
    return false;
}

int kw_counters_register_callbacks(mca_btl_base_module_t *module) {
    if (module->btl_register == NULL) {
        return OPAL_SUCCESS;
    }
    for (int tag = 0; tag < TAGS; tag++) {
        if (received[tag].cbfunc != NULL) {
            int rc = module->btl_register(module, (mca_btl_base_tag_t)tag, counted_receive,
                                          received[tag].cbdata);

            if (rc != OPAL_SUCCESS) {
                return rc;
            }
        }
    }
    return OPAL_SUCCESS;
}

void kw_counters_withdraw(void) {
    for (int i = 0; i < originals_len; i++) {
        struct original *original = &originals[i];

        if (original->module != NULL) {
            original->module->btl_send = original->send;
            original->module->btl_sendi = original->sendi;
            original->module->btl_put = original->put;
            original->module->btl_get = original->get;
            original->module = NULL;
        }
    }
    for (int tag = 0; tag < TAGS; tag++) {
        if (mca_btl_base_active_message_trigger[tag].cbfunc == counted_receive) {
            mca_btl_base_active_message_trigger[tag].cbfunc = received[tag].cbfunc;
        }
    }
    if (adopted != NULL) {
        adopted->bml_register = adopted_register;
        if (mca_bml.bml_register == adopting_register) {
            mca_bml.bml_register = adopted_register;
        }
    }
}
