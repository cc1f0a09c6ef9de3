#include "verbs_reap.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <rdma/rdma_cma.h>

#define EXPORT __attribute__((visibility("default")))

/* One resource that somebody opened through us. */
struct resource {
    struct resource *next;
    void *object;                       /* struct ibv_context or struct rdma_cm_id */
    struct rdma_event_channel *channel; /* of an id */
    char owner[32];                     /* of a context: part of the opener's file name */
};

/* Guards both lists: openib runs its connection manager in a thread of its own. Not held while a
 * function of libibverbs or librdmacm runs. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct resource *contexts, *ids;

static int ack_timeout; /* written before any connection is made */

void kw_verbs_set_ack_timeout(int exponent) {
    ack_timeout = exponent;
}

static void resource_add(struct resource **list, const struct resource *content) {
    struct resource *resource = malloc(sizeof *resource);

    if (resource == NULL) {
        return; /* it will not be reaped; the agent sees what is left and says so */
    }
    *resource = *content;
    pthread_mutex_lock(&lock);
    resource->next = *list;
    *list = resource;
    pthread_mutex_unlock(&lock);
}

static void resource_remove(struct resource **list, const void *object) {
    pthread_mutex_lock(&lock);
    for (struct resource **link = list; *link != NULL; link = &(*link)->next) {
        if ((*link)->object == object) {
            struct resource *gone = *link;

            *link = gone->next;
            free(gone);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* A function of a library that the caller has loaded, without keeping that library loaded. */
static void *function_in(const char *library, const char *name) {
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    void *function = handle != NULL ? dlsym(handle, name) : NULL;

    if (handle != NULL) {
        dlclose(handle);
    }
    return function;
}

static void *verbs(const char *name) {
    return function_in("libibverbs.so.1", name);
}

static void *rdmacm(const char *name) {
    return function_in("librdmacm.so.1", name);
}

static int name_matches(struct dl_phdr_info *info, size_t size, void *part) {
    (void)size;
    return strstr(info->dlpi_name, part) != NULL;
}

static bool is_loaded(char *part) {
    return dl_iterate_phdr(name_matches, part) != 0;
}

EXPORT struct ibv_context *ibv_open_device(struct ibv_device *device) {
    static const char *const openers[] = {"librdmacm.so", "mca_btl_openib.so",
                                          "libmca_common_verbs.so"};
    struct ibv_context *(*open_device)(struct ibv_device *) = verbs("ibv_open_device");
    struct resource resource = {0};
    struct ibv_context *context;
    Dl_info caller;

    if (open_device == NULL) {
        return NULL;
    }
    context = open_device(device);
    if (context == NULL) {
        return NULL;
    }
    resource.object = context;
    if (dladdr(__builtin_return_address(0), &caller) != 0 && caller.dli_fname != NULL) {
        for (size_t i = 0; i < sizeof openers / sizeof openers[0]; i++) {
            if (strstr(caller.dli_fname, openers[i]) != NULL) {
                strcpy(resource.owner, openers[i]);
            }
        }
    }
    /* A context of the program itself is its own affair. */
    if (resource.owner[0] != 0) {
        resource_add(&contexts, &resource);
    }
    return context;
}

EXPORT int ibv_close_device(struct ibv_context *context) {
    int (*close_device)(struct ibv_context *) = verbs("ibv_close_device");

    resource_remove(&contexts, context);
    return close_device != NULL ? close_device(context) : -1;
}

static void id_remember(struct rdma_cm_id *id) {
    int (*set_option)(struct rdma_cm_id *, int, int, void *, size_t) = rdmacm("rdma_set_option");
    struct resource resource = {.object = id, .channel = id->channel};
    uint8_t exponent = (uint8_t)ack_timeout;

    resource_add(&ids, &resource);
    if (exponent != 0 && set_option != NULL) {
        set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &exponent, sizeof exponent);
    }
}

EXPORT int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
                          enum rdma_port_space space) {
    int (*create_id)(struct rdma_event_channel *, struct rdma_cm_id **, void *,
                     enum rdma_port_space) = rdmacm("rdma_create_id");
    int rc = create_id != NULL ? create_id(channel, id, context, space) : -1;

    if (rc == 0) {
        id_remember(*id);
    }
    return rc;
}

EXPORT int rdma_destroy_id(struct rdma_cm_id *id) {
    int (*destroy_id)(struct rdma_cm_id *) = rdmacm("rdma_destroy_id");

    resource_remove(&ids, id);
    return destroy_id != NULL ? destroy_id(id) : -1;
}

EXPORT int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **event) {
    int (*get_cm_event)(struct rdma_event_channel *, struct rdma_cm_event **) =
        rdmacm("rdma_get_cm_event");
    int rc = get_cm_event != NULL ? get_cm_event(channel, event) : -1;

    /* The kernel made an id for the peer's request. */
    if (rc == 0 && (*event)->event == RDMA_CM_EVENT_CONNECT_REQUEST) {
        id_remember((*event)->id);
    }
    return rc;
}

static struct rdma_cm_id *id_of_channel_take(const struct rdma_event_channel *channel) {
    struct rdma_cm_id *id = NULL;

    pthread_mutex_lock(&lock);
    for (struct resource **link = &ids; *link != NULL; link = &(*link)->next) {
        if ((*link)->channel == channel) {
            struct resource *gone = *link;

            id = gone->object;
            *link = gone->next;
            free(gone);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return id;
}

EXPORT void rdma_destroy_event_channel(struct rdma_event_channel *channel) {
    void (*destroy_channel)(struct rdma_event_channel *) = rdmacm("rdma_destroy_event_channel");
    int (*destroy_id)(struct rdma_cm_id *) = rdmacm("rdma_destroy_id");
    struct rdma_cm_id *id;

    /* With its channel gone, no one can use these ids any more. openib destroyed their queue pairs
     * itself, behind librdmacm's back. */
    while (destroy_id != NULL && (id = id_of_channel_take(channel)) != NULL) {
        id->qp = NULL;
        destroy_id(id);
    }
    if (destroy_channel != NULL) {
        destroy_channel(channel);
    }
}

static struct ibv_context *orphan_take(void) {
    struct ibv_context *context = NULL;

    pthread_mutex_lock(&lock);
    for (struct resource **link = &contexts; *link != NULL; link = &(*link)->next) {
        if (!is_loaded((*link)->owner)) {
            struct resource *gone = *link;

            context = gone->object;
            *link = gone->next;
            free(gone);
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return context;
}

void kw_verbs_reap(void) {
    int (*close_device)(struct ibv_context *) = verbs("ibv_close_device");
    struct ibv_context *context;

    while (close_device != NULL && (context = orphan_take()) != NULL) {
        close_device(context);
    }
}
