#include "status.h"

#include "ompi_config.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"
#include "fabric.h"
#include "kawarimi_program.h"
#include "kind.h"
#include "ompi/mca/osc/osc.h"
#include "ompi/proc/proc.h"
#include "ompi/win/win.h"

enum { COMPONENTS_MAX = 32 /* bits of a mask in struct kw_peer */ };

struct components {
    const mca_btl_base_component_t *list[COMPONENTS_MAX];
    struct kw_component said[COMPONENTS_MAX];
    uint32_t len;
};

static void components_find(struct components *components) {
    mca_btl_base_selected_module_t *selected;

    components->len = 0;
    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        const mca_btl_base_component_t *component = selected->btl_component;
        uint32_t i = 0;

        while (i < components->len && components->list[i] != component) {
            i++;
        }
        if (i == COMPONENTS_MAX) {
            continue;
        }
        if (i == components->len) {
            struct kw_component *said = &components->said[i];

            components->list[i] = component;
            components->len++;
            *said = (struct kw_component){0};
            snprintf(said->name, sizeof said->name, "%.*s", (int)sizeof said->name - 1,
                     component->btl_version.mca_component_name);
            if (kw_counters_cover(component)) {
                struct kw_counts counts = kw_counters_of(component);

                said->counted = 1;
                said->sent = counts.sent;
                said->received = counts.received;
                said->outstanding = counts.outstanding;
            }
        }
        components->said[i].modules++;
    }
}

static uint32_t mask_of(const struct components *components,
                        const mca_bml_base_btl_array_t *array) {
    uint32_t mask = 0;

    for (size_t a = 0; a < array->arr_size; a++) {
        for (uint32_t i = 0; i < components->len; i++) {
            if (array->bml_btls[a].btl->btl_component == components->list[i]) {
                mask |= 1u << i;
            }
        }
    }
    return mask;
}

bool kw_status_append(struct kw_message *message) {
    struct components components;
    uint32_t told = 0, total = 0;
    size_t procs_len = 0;
    ompi_proc_t **procs = ompi_proc_get_allocated(&procs_len); /* retains none of them */
    struct kw_reply *reply;

    components_find(&components);
    if (procs == NULL || !kw_message_append(message, components.said,
                                            components.len * sizeof components.said[0])) {
        free(procs);
        return false;
    }
    for (size_t p = 0; p < procs_len; p++) {
        const mca_bml_base_endpoint_t *bml =
            procs[p]->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML];
        struct kw_peer peer = {.jobid = procs[p]->super.proc_name.jobid,
                               .vpid = procs[p]->super.proc_name.vpid};

        if (bml == NULL || procs[p] == ompi_proc_local_proc) {
            continue;
        }
        peer.eager = mask_of(&components, &bml->btl_eager);
        peer.send = mask_of(&components, &bml->btl_send);
        peer.rdma = mask_of(&components, &bml->btl_rdma);
        total++;
        if (told == total - 1 && kw_message_append(message, &peer, sizeof peer)) {
            told++;
        }
    }
    free(procs);
    reply = (struct kw_reply *)(void *)message->bytes;
    reply->components = components.len;
    reply->peers = told;
    reply->peers_total = total;
    return true;
}

const char *kw_status_windows_refusal(void) {
    for (int i = 0; i < opal_pointer_array_get_size(&ompi_mpi_windows); i++) {
        const ompi_win_t *window = opal_pointer_array_get_item(&ompi_mpi_windows, i);
        Dl_info owner;

        /* The module does not name its component; its functions lie in the component's DSO. */
        if (window != NULL && window->w_osc_module != NULL &&
            window->w_osc_module->osc_free != NULL &&
            dladdr(*(void **)&window->w_osc_module->osc_free, &owner) != 0 &&
            owner.dli_fname != NULL && strstr(owner.dli_fname, "mca_osc_rdma") != NULL) {
            return "the program has a window of osc/rdma, which keeps BTL endpoints and keys of "
                   "its own; start it with --mca osc ^rdma";
        }
    }
    return NULL;
}

/* Add a BTL's name unless it is there; an endpoint may have several modules of one component. */
static void transport_add(struct kawarimi_peer *peer, const char *name) {
    for (uint32_t i = 0; i < peer->transports; i++) {
        if (strcmp(peer->names[i], name) == 0) {
            return;
        }
    }
    if (peer->transports < KAWARIMI_TRANSPORTS) {
        snprintf(peer->names[peer->transports++], KAWARIMI_NAME, "%.*s", KAWARIMI_NAME - 1, name);
    }
}

int kw_kind_peers(struct kawarimi_peer *peers, int capacity) {
    size_t procs_len = 0;
    ompi_proc_t **procs = ompi_proc_get_allocated(&procs_len); /* retains none of them */
    int len = 0;

    for (size_t p = 0; procs != NULL && p < procs_len; p++) {
        const mca_bml_base_endpoint_t *bml =
            procs[p]->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML];
        const opal_process_name_t name = procs[p]->super.proc_name;

        if (bml == NULL || procs[p] == ompi_proc_local_proc ||
            name.jobid != ompi_proc_local_proc->super.proc_name.jobid) {
            continue;
        }
        if (len < capacity) {
            struct kawarimi_peer *peer = &peers[len];

            *peer = (struct kawarimi_peer){.rank = (int32_t)name.vpid};
            for (size_t i = 0; i < bml->btl_send.arr_size; i++) {
                const mca_btl_base_module_t *module = bml->btl_send.bml_btls[i].btl;

                transport_add(peer, module->btl_component->btl_version.mca_component_name);
            }
        }
        len++;
    }
    free(procs);
    return len;
}
