#include "routes.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fabric.h"
#include "layout.h"
#include "opal/class/opal_bitmap.h"
#include "r2.h"

static mca_bml_base_btl_array_t *array_of(mca_bml_base_endpoint_t *bml, enum kw_use use) {
    return use == KW_EAGER ? &bml->btl_eager : use == KW_SEND ? &bml->btl_send : &bml->btl_rdma;
}

/* vader's table of endpoints has room for one add_procs per local process, and writes beyond it
 * (opal/mca/btl/vader/btl_vader_module.c: vader_add_procs counts local_rank up and never down). */
static bool adds_procs_once(const mca_btl_base_module_t *module) {
    return strcmp(module->btl_component->btl_version.mca_component_name, "vader") == 0;
}

/* Make the path to a peer through a module. Returns an Open MPI error code: OMPI_ERR_UNREACH if
 * this module cannot reach the peer, which is no failure. */
static int path_make(struct kw_peer_state *peer, mca_btl_base_module_t *module) {
    struct mca_btl_base_endpoint_t *endpoint = NULL;
    opal_proc_t *proc = &peer->proc->super;
    opal_bitmap_t reachable;
    int rc;

    if (adds_procs_once(module)) {
        return OMPI_ERR_UNREACH;
    }
    OBJ_CONSTRUCT(&reachable, opal_bitmap_t);
    rc = opal_bitmap_init(&reachable, 1);
    if (rc == OPAL_SUCCESS) {
        rc = module->btl_add_procs(module, 1, &proc, &endpoint, &reachable);
        if (rc != OPAL_SUCCESS || !opal_bitmap_is_set_bit(&reachable, 0) || endpoint == NULL) {
            rc = OMPI_ERR_UNREACH;
        }
    }
    OBJ_DESTRUCT(&reachable);
    if (rc != OPAL_SUCCESS) {
        return rc;
    }
    rc = kw_path_add(peer, module, endpoint);
    if (rc != OMPI_SUCCESS) {
        module->btl_del_procs(module, 1, &proc, &endpoint);
    }
    return rc;
}

/* Make the paths that r2 would use towards this peer without the fabric: r2 offers a peer to the
 * modules by falling exclusivity, and deletes what a more exclusive one makes superfluous. */
static int peer_reach(struct kw_peer_state *peer) {
    uint32_t best = 0;
    bool reached = false;

    for (size_t i = 0; i < kw_pml.r2->num_btl_modules; i++) {
        mca_btl_base_module_t *module = kw_pml.r2->btl_modules[i];

        if (kw_fabric_has(module) || kw_r2_is_self(module) || (reached && module->btl_exclusivity < best)) {
            continue;
        }
        if (kw_path_find(peer, module) == NULL) {
            int rc = path_make(peer, module);

            if (rc == OMPI_ERR_UNREACH) {
                continue;
            }
            if (rc != OMPI_SUCCESS) {
                return rc;
            }
        }
        if ((module->btl_flags & MCA_BTL_FLAGS_SEND) != 0) {
            int rc = kw_r2_progress_list(module->btl_component);

            if (rc != OMPI_SUCCESS) {
                return rc;
            }
            best = module->btl_exclusivity;
            reached = true;
        }
    }
    return reached ? OMPI_SUCCESS : OMPI_ERR_UNREACH;
}

static const char *failed_for(const struct kw_peer_state *peer, const char *what) {
    static char text[128];

    snprintf(text, sizeof text, "rank %u of the job: %s", peer->proc->super.proc_name.vpid, what);
    return text;
}

const char *kw_routes_reach_fallback(void) {
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        int rc = peer_reach(&peers[p]);

        if (rc != OMPI_SUCCESS) {
            return failed_for(&peers[p], rc == OMPI_ERR_UNREACH ? "no path beside the fabric"
                                                                : "no memory for its paths");
        }
    }
    return NULL;
}

/* Room for `capacity` entries in each array of a table, without disturbing those that pending
 * requests may point to: a table that is too small is retired, not moved. */
static int table_reserve(struct kw_peer_state *peer, enum kw_side side, size_t capacity) {
    struct kw_table *table = &peer->tables[side];
    struct kw_table fresh = {.capacity = capacity + 4};

    if (table->capacity >= capacity && table->capacity > 0) {
        return OMPI_SUCCESS;
    }
    for (int use = 0; use < KW_USES; use++) {
        fresh.arrays[use].entries = calloc(fresh.capacity, sizeof(mca_bml_base_btl_t));
    }
    if (fresh.arrays[KW_EAGER].entries != NULL && fresh.arrays[KW_SEND].entries != NULL &&
        fresh.arrays[KW_RDMA].entries != NULL &&
        (table->capacity == 0 || kw_peer_retire(peer, table) == OMPI_SUCCESS)) {
        *table = fresh;
        return OMPI_SUCCESS;
    }
    for (int use = 0; use < KW_USES; use++) {
        free(fresh.arrays[use].entries);
    }
    return OMPI_ERR_OUT_OF_RESOURCE;
}

static void array_append(struct kw_array *array, const struct kw_path *path, double weight) {
    array->entries[array->len++] = (mca_bml_base_btl_t){.btl_flags = path->module->btl_flags,
                                                        .btl_weight = (float)weight,
                                                        .btl = path->module,
                                                        .btl_endpoint = path->endpoint};
    array->lasting += kw_fabric_has(path->module) ? 0 : 1;
}

/* r2's rule for RDMA, for a module that sends to the peer or not. */
static bool does_rdma(const struct kw_peer_state *peer, const mca_btl_base_module_t *module,
                      bool sends) {
    const uint32_t full = MCA_BTL_FLAGS_RDMA | MCA_BTL_FLAGS_ATOMIC_FOPS;
    bool same_arch = peer->proc->super.proc_arch == ompi_proc_local_proc->super.proc_arch;

    return ((sends && (module->btl_flags & MCA_BTL_FLAGS_RDMA) != 0) ||
            (module->btl_flags & full) == full) &&
           (same_arch || (module->btl_flags & MCA_BTL_FLAGS_HETEROGENEOUS_RDMA) != 0);
}

/* A path, and what r2's rules make of it on one side. */
struct choice {
    const struct kw_path *path;
    bool sends, does_rdma;
};

/* Every path of a peer: lasting ones first, each group in the framework's order of modules, which
 * does not change for lasting ones. Returns their number. */
static size_t choices_order(struct kw_peer_state *peer, struct choice *choices) {
    size_t len = 0;

    for (int fabric = 0; fabric <= 1; fabric++) {
        mca_btl_base_selected_module_t *selected;

        OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                          mca_btl_base_selected_module_t) {
            const struct kw_path *path = kw_path_find(peer, selected->btl_module);

            if (path != NULL && kw_fabric_has(path->module) == (fabric == 1)) {
                choices[len++] = (struct choice){.path = path};
            }
        }
    }
    return len;
}

/* May this module send on this side, as far as fabric and fallback go? */
static bool takes_part(const mca_btl_base_module_t *module, enum kw_side side, bool fabric_sends) {
    if (kw_fabric_has(module)) {
        return side == KW_FABRIC;
    }
    return side == KW_FALLBACK || !fabric_sends || !kw_fabric_replaces(module);
}

/* Apply the rules: who sends, and who does RDMA. Returns whether anything can send. */
static bool choices_make(const struct kw_peer_state *peer, enum kw_side side,
                         struct choice *choices, size_t len) {
    bool fabric_sends = false, any = false;
    uint32_t best = 0;

    for (size_t i = 0; i < len; i++) {
        const mca_btl_base_module_t *module = choices[i].path->module;

        fabric_sends |= kw_fabric_has(module) && (module->btl_flags & MCA_BTL_FLAGS_SEND) != 0;
    }
    for (size_t i = 0; i < len; i++) {
        const mca_btl_base_module_t *module = choices[i].path->module;

        choices[i].sends = (module->btl_flags & MCA_BTL_FLAGS_SEND) != 0 &&
                           takes_part(module, side, fabric_sends);
        if (choices[i].sends && module->btl_exclusivity > best) {
            best = module->btl_exclusivity;
        }
    }
    for (size_t i = 0; i < len; i++) {
        const mca_btl_base_module_t *module = choices[i].path->module;

        choices[i].sends = choices[i].sends && module->btl_exclusivity == best;
        choices[i].does_rdma = takes_part(module, side, fabric_sends) &&
                               does_rdma(peer, module, choices[i].sends);
        any |= choices[i].sends;
    }
    return any;
}

/* r2 shares out weights by bandwidth. */
static double weight_of(const mca_btl_base_module_t *module, double total, size_t len) {
    return module->btl_bandwidth > 0 ? module->btl_bandwidth / total : 1.0 / (double)len;
}

static void table_fill(struct kw_table *table, const struct choice *choices, size_t len) {
    double send_total = 0, rdma_total = 0;
    size_t senders = 0, rdmas = 0;
    uint32_t latency = UINT32_MAX;

    for (int use = 0; use < KW_USES; use++) {
        table->arrays[use].len = table->arrays[use].lasting = 0;
    }
    table->max_send_size = SIZE_MAX;
    table->pipeline_send_length = table->send_limit = 0;
    table->flags_or = 0;
    for (size_t i = 0; i < len; i++) {
        const mca_btl_base_module_t *module = choices[i].path->module;

        if (choices[i].sends) {
            send_total += module->btl_bandwidth;
            senders++;
            latency = module->btl_latency < latency ? module->btl_latency : latency;
        }
        if (choices[i].does_rdma) {
            rdma_total += module->btl_bandwidth;
            rdmas++;
        }
    }
    for (size_t i = 0; i < len; i++) {
        const mca_btl_base_module_t *module = choices[i].path->module;

        if (choices[i].sends) {
            double weight = weight_of(module, send_total, senders);

            array_append(&table->arrays[KW_SEND], choices[i].path, weight);
            if (module->btl_latency == latency) {
                array_append(&table->arrays[KW_EAGER], choices[i].path, weight);
            }
            table->flags_or |= module->btl_flags;
            if (module->btl_max_send_size < table->max_send_size) {
                table->max_send_size = module->btl_max_send_size;
            }
        }
        if (choices[i].does_rdma) {
            array_append(&table->arrays[KW_RDMA], choices[i].path,
                         weight_of(module, rdma_total, rdmas));
            if (module->btl_rdma_pipeline_send_length > table->pipeline_send_length) {
                table->pipeline_send_length = module->btl_rdma_pipeline_send_length;
            }
            if (module->btl_min_rdma_pipeline_size > table->send_limit) {
                table->send_limit = module->btl_min_rdma_pipeline_size;
            }
        }
#ifndef KW_ABLATE_RDMA
        if (!choices[i].does_rdma && (module->btl_flags & MCA_BTL_FLAGS_RDMA) != 0) {
            array_append(&table->arrays[KW_RDMA], choices[i].path, 0);
        }
#endif
    }
}

const char *kw_routes_build(enum kw_side side) {
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        struct kw_peer_state *peer = &peers[p];
        struct choice *choices = calloc(peer->paths_len + 1, sizeof *choices);
        size_t choices_len;
        bool sends;

        if (choices == NULL || table_reserve(peer, side, peer->paths_len) != OMPI_SUCCESS) {
            free(choices);
            return failed_for(peer, "no memory for its routes");
        }
        choices_len = choices_order(peer, choices);
        sends = choices_make(peer, side, choices, choices_len);
        table_fill(&peer->tables[side], choices, choices_len);
        free(choices);
        if (!sends) {
            return failed_for(peer, "nothing can send to it");
        }
    }
    return NULL;
}

static void table_publish(struct kw_peer_state *peer, enum kw_side side) {
    const struct kw_table *table = &peer->tables[side];

    for (int use = 0; use < KW_USES; use++) {
        mca_bml_base_btl_array_t *array = array_of(peer->bml, use);

        array->bml_btls = table->arrays[use].entries;
        array->arr_size = table->arrays[use].len;
        array->arr_reserve = table->capacity;
        array->arr_index = 0;
    }
    peer->bml->btl_rdma_index = 0;
    peer->bml->btl_max_send_size = table->max_send_size;
    peer->bml->btl_pipeline_send_length = table->pipeline_send_length;
    peer->bml->btl_send_limit = table->send_limit;
    peer->bml->btl_flags_or = table->flags_or;
}

void kw_routes_publish(enum kw_side side) {
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        table_publish(&peers[p], side);
    }
    kw_r2_progress_rank();
}

void kw_routes_drop_fabric(void) {
    mca_bml_base_endpoint_t *self =
        ompi_proc_local_proc->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML];
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        struct kw_array *rdma = &peers[p].tables[KW_FALLBACK].arrays[KW_RDMA];

        rdma->len = rdma->lasting;
        peers[p].bml->btl_rdma.arr_size = rdma->len;
    }
    for (int use = 0; self != NULL && use < KW_USES; use++) {
        mca_bml_base_btl_array_t *array = array_of(self, use);
        size_t kept = 0;

        for (size_t i = 0; i < array->arr_size; i++) {
            mca_bml_base_btl_t *entry = &array->bml_btls[i];

            if (!kw_fabric_has(entry->btl)) {
                array->bml_btls[kept++] = *entry;
            } else if (use == KW_RDMA) {
                entry->btl->btl_del_procs(entry->btl, 1, (opal_proc_t **)&ompi_proc_local_proc,
                                          &entry->btl_endpoint);
            }
        }
        array->arr_size = kept;
        array->arr_index = 0;
    }
}
