#include "context.h"

#include <sched.h>
#include <stdlib.h>

#include "address.h"
#include "executor.h"
#include "kept.h"
#include "shim.h"
#include "slots.h"
#include "spare.h"

#define KEPT_BYTES_DEFAULT (256ull << 20)
#define KNOWN_WORKER_PARAMS                                                                       \
    (UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CPU_MASK |                       \
     UCP_WORKER_PARAM_FIELD_EVENTS | UCP_WORKER_PARAM_FIELD_FLAGS)

struct kw_context kw_context = {.mark = KW_MARK_CONTEXT};
struct kw_worker kw_worker = {
    .mark = KW_MARK_WORKER,
    .posted = {&kw_worker.posted, &kw_worker.posted},
    .waiting = {&kw_worker.waiting, &kw_worker.waiting},
    .kept = {&kw_worker.kept, &kw_worker.kept},
    .messages = {&kw_worker.messages, &kw_worker.messages},
    .endpoints = {&kw_worker.endpoints, &kw_worker.endpoints},
};
size_t kw_request_size;

static unsigned foreign_contexts;

/* Of a process that asked for MPI_THREAD_MULTIPLE: its worker is UCX's own, and only its address
 * ours, so that its peers can tell whose it is. */
static ucp_worker_h plain_worker;

/* Why this process cannot be switched; NULL if nothing is known against it. */
static const char *refusal;
static enum kw_ucp_side first_side;

unsigned kw_contexts_foreign(void) {
    return foreign_contexts;
}

/* What the library at hand must be able to do. */
static const char *library_refusal(const ucp_params_t *params) {
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_REQUEST_SIZE |
                                                   UCP_ATTR_FIELD_MEMORY_TYPES};

    if ((params->features & ~(uint64_t)UCP_FEATURE_TAG) != 0) {
        return "its PML asks UCX for more than tagged messages";
    }
    if (kw_real.ucp_context_query(kw_context.real, &attributes) != UCS_OK) {
        return "UCX does not tell the size of its requests";
    }
    kw_request_size = attributes.request_size;
    if ((attributes.memory_types & ~UCS_BIT(UCS_MEMORY_TYPE_HOST)) != 0) {
        return "UCX may be given buffers in the memory of a GPU";
    }
    return NULL;
}

/* The context that carries messages is the first that is made with tags. */
static bool is_ours(const ucp_params_t *params) {
    return kw_context.real == NULL && kw_worker.real == NULL &&
           (params->field_mask & UCP_PARAM_FIELD_FEATURES) != 0 &&
           (params->features & UCP_FEATURE_TAG) != 0;
}

static ucs_status_t foreign_init(unsigned major, unsigned minor, const ucp_params_t *params,
                                 const ucp_config_t *config, ucp_context_h *result) {
    ucs_status_t status = kw_real.ucp_init_version(major, minor, params, config, result);

    foreign_contexts += status == UCS_OK;
    return status;
}

/* A side that is there: the fabric if it can be. Its context stays UCX's, made as the program
 * asked, so that it can be handed through if something turns out to be against it. */
static enum kw_ucp_side choose_side(void) {
    ucp_context_h trial;
    bool present = false;

    if (kw_side_open(KW_UCP_FABRIC, &trial, &present) == UCS_OK) {
        kw_real.ucp_cleanup(trial);
    }
    return present ? KW_UCP_FABRIC : KW_UCP_FALLBACK;
}

KW_EXPORT ucs_status_t ucp_init_version(unsigned major, unsigned minor, const ucp_params_t *params,
                                        const ucp_config_t *config, ucp_context_h *result) {
    ucs_status_t status;

    kw_real_find();
    if (!is_ours(params)) {
        return foreign_init(major, minor, params, config, result);
    }
    refusal = kw_real_is_known() ? kw_shim_identify() : "its UCX is older than 1.13, or not 1";
    refusal = refusal != NULL ? refusal : kw_sides_read();
    if (refusal != NULL) {
        kw_shim_refuse(refusal);
        return foreign_init(major, minor, params, config, result);
    }
    kw_side_remember(major, minor, params, config);
    first_side = choose_side();
    if (config != NULL) {
        kw_side_configure((ucp_config_t *)config, first_side);
    }
    status = kw_real.ucp_init_version(major, minor, params, config, &kw_context.real);
    if (status != UCS_OK) {
        kw_context.real = NULL;
        return status;
    }
    refusal = library_refusal(params);
    if (refusal != NULL) {
        kw_shim_refuse(refusal);
        foreign_contexts++;
        *result = kw_context.real;
        kw_context.real = NULL;
        return UCS_OK;
    }
    kw_slots_begin((params->field_mask & UCP_PARAM_FIELD_REQUEST_SIZE) != 0 ? params->request_size
                                                                           : 0,
                   (params->field_mask & UCP_PARAM_FIELD_REQUEST_INIT) != 0 ? params->request_init
                                                                           : NULL,
                   (params->field_mask & UCP_PARAM_FIELD_REQUEST_CLEANUP) != 0
                       ? params->request_cleanup
                       : NULL);
    *result = (ucp_context_h)(void *)&kw_context;
    return UCS_OK;
}

KW_EXPORT void ucp_cleanup(ucp_context_h context) {
    if (!kw_is_context(context)) {
        foreign_contexts -= foreign_contexts > 0;
        kw_real.ucp_cleanup(context);
        return;
    }
    if (kw_context.real != NULL) {
        kw_real.ucp_cleanup(kw_context.real);
        kw_context.real = NULL;
    }
    kw_slots_end();
}

KW_EXPORT ucs_status_t ucp_context_query(ucp_context_h context, ucp_context_attr_t *attributes) {
    ucs_status_t status =
        kw_real.ucp_context_query(kw_is_context(context) ? kw_context.real : context, attributes);

    if (kw_is_context(context) && (attributes->field_mask & UCP_ATTR_FIELD_REQUEST_SIZE) != 0) {
        attributes->request_size += sizeof(struct kw_slot);
    }
    return status;
}

KW_EXPORT void ucp_context_print_info(const ucp_context_h context, FILE *stream) {
    kw_real.ucp_context_print_info(kw_is_context(context) ? kw_context.real : context, stream);
}

KW_EXPORT ucs_status_t ucp_worker_create(ucp_context_h context, const ucp_worker_params_t *params,
                                         ucp_worker_h *result) {
    const char *most = getenv("KAWARIMI_UCP_KEPT_BYTES");
    ucp_worker_params_t known;
    ucs_status_t status;

    if (!kw_is_context(context) || kw_worker.real != NULL || plain_worker != NULL) {
        return kw_real.ucp_worker_create(kw_is_context(context) ? kw_context.real : context, params,
                                         result);
    }
    if ((params->field_mask & UCP_WORKER_PARAM_FIELD_THREAD_MODE) != 0 &&
        params->thread_mode == UCS_THREAD_MODE_MULTI) {
        refusal = "the program asked for MPI_THREAD_MULTIPLE: another thread could be inside UCX "
                  "when its worker is exchanged (mpi4py asks for it, unless "
                  "MPI4PY_RC_THREAD_LEVEL=serialized is in the environment)";
        status = kw_real.ucp_worker_create(kw_context.real, params, result);
        plain_worker = status == UCS_OK ? *result : NULL;
        kw_shim_arm(first_side, refusal);
        return status;
    }
    known = *params;
    known.field_mask &= KNOWN_WORKER_PARAMS;
    kw_spare_begin(&known);
    status = kw_real.ucp_worker_create(kw_context.real, params, &kw_worker.real);
    if (status != UCS_OK) {
        kw_worker.real = NULL;
        return status;
    }
    kw_kept_begin(most != NULL ? strtoull(most, NULL, 10) : KEPT_BYTES_DEFAULT);
    kw_shim_arm(first_side, NULL);
    *result = (ucp_worker_h)(void *)&kw_worker;
    return UCS_OK;
}

KW_EXPORT void ucp_worker_destroy(ucp_worker_h worker) {
    if (!kw_is_worker(worker) && worker != plain_worker) {
        kw_real.ucp_worker_destroy(worker);
        return;
    }
    kw_shim_finish();
    kw_kept_end();
    kw_addresses_forget();
    if (worker == plain_worker) {
        plain_worker = NULL;
        kw_real.ucp_worker_destroy(worker);
    } else if (kw_worker.real != NULL) {
        kw_real.ucp_worker_destroy(kw_worker.real);
        kw_worker.real = NULL;
    }
}

/* An address of UCX's, made into ours. */
static ucs_status_t wrap(ucp_worker_h real, ucp_address_t *bytes, size_t size,
                         ucp_address_t **result, size_t *length) {
    struct kw_address *address = kw_address_make(kw_shim_jobid(), kw_shim_vpid(), bytes, size);

    kw_real.ucp_worker_release_address(real, bytes);
    if (address == NULL) {
        return UCS_ERR_NO_MEMORY;
    }
    *result = (ucp_address_t *)(void *)address;
    *length = kw_address_length(address);
    return UCS_OK;
}

KW_EXPORT ucs_status_t ucp_worker_get_address(ucp_worker_h worker, ucp_address_t **address,
                                              size_t *length) {
    ucp_worker_h real = kw_is_worker(worker) ? kw_worker.real : worker;
    ucs_status_t status = kw_real.ucp_worker_get_address(real, address, length);

    if (status != UCS_OK || (!kw_is_worker(worker) && worker != plain_worker)) {
        return status;
    }
    return wrap(real, *address, *length, address, length);
}

KW_EXPORT void ucp_worker_release_address(ucp_worker_h worker, ucp_address_t *address) {
    if (kw_is_worker(worker) || worker == plain_worker) {
        free(address);
    } else {
        kw_real.ucp_worker_release_address(worker, address);
    }
}

KW_EXPORT ucs_status_t ucp_worker_query(ucp_worker_h worker, ucp_worker_attr_t *attributes) {
    ucp_worker_h real = kw_is_worker(worker) ? kw_worker.real : worker;
    ucs_status_t status = kw_real.ucp_worker_query(real, attributes);

    if (status != UCS_OK || (!kw_is_worker(worker) && worker != plain_worker) ||
        (attributes->field_mask & UCP_WORKER_ATTR_FIELD_ADDRESS) == 0) {
        return status;
    }
    return wrap(real, attributes->address, attributes->address_length, &attributes->address,
                &attributes->address_length);
}

/* What every message goes through: two predicted branches more than UCX's own. */
KW_EXPORT unsigned ucp_worker_progress(ucp_worker_h worker) {
    unsigned done = 0;

    if (KW_UNLIKELY(!kw_is_worker(worker))) {
        done = kw_real.ucp_worker_progress(worker);
        if (KW_UNLIKELY(worker == plain_worker && plain_worker != NULL)) {
            kw_shim_begin_once();
        }
        return done;
    }
    done = kw_real.ucp_worker_progress(kw_worker.real);
    if (KW_UNLIKELY(atomic_load_explicit(&kw_executor_needed, memory_order_relaxed) != 0)) {
        kw_shim_begin_once();
        kw_executor_serve();
        /* What the program waits for needs others to run: other ranks, and the agent that leads
         * them. */
        if (kw_worker.sends_wait) {
            sched_yield();
        }
    }
    return done;
}
