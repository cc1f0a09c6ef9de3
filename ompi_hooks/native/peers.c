#include "peers.h"

#include <stdio.h>
#include <stdlib.h>

#include "ompi/mca/bml/base/base.h"

static struct kw_peer_state *peers;
static size_t peers_len, peers_capacity;
static mca_bml_base_module_del_procs_fn_t original_del_procs;
static void (*delete_watcher)(void);

struct kw_peer_state *kw_peers(size_t *len) {
    *len = peers_len;
    return peers;
}

static struct kw_peer_state *peer_find(const ompi_proc_t *proc) {
    for (size_t i = 0; i < peers_len; i++) {
        if (peers[i].proc == proc) {
            return &peers[i];
        }
    }
    return NULL;
}

struct kw_path *kw_path_find(struct kw_peer_state *peer, const mca_btl_base_module_t *module) {
    for (size_t i = 0; i < peer->paths_len; i++) {
        if (peer->paths[i].module == module) {
            return &peer->paths[i];
        }
    }
    return NULL;
}

int kw_path_add(struct kw_peer_state *peer, mca_btl_base_module_t *module,
                struct mca_btl_base_endpoint_t *endpoint) {
    if (kw_path_find(peer, module) != NULL) {
        return OMPI_SUCCESS;
    }
    if (peer->paths_len == peer->paths_capacity) {
        size_t capacity = peer->paths_capacity == 0 ? 4 : 2 * peer->paths_capacity;
        struct kw_path *grown = realloc(peer->paths, capacity * sizeof *grown);

        if (grown == NULL) {
            return OMPI_ERR_OUT_OF_RESOURCE;
        }
        peer->paths = grown;
        peer->paths_capacity = capacity;
    }
    peer->paths[peer->paths_len++] = (struct kw_path){module, endpoint};
    return OMPI_SUCCESS;
}

void kw_paths_forget(const mca_btl_base_component_t *component) {
    for (size_t p = 0; p < peers_len; p++) {
        struct kw_peer_state *peer = &peers[p];
        size_t kept = 0;

        for (size_t i = 0; i < peer->paths_len; i++) {
            if (peer->paths[i].module->btl_component != component) {
                peer->paths[kept++] = peer->paths[i];
            }
        }
        peer->paths_len = kept;
    }
}

int kw_peer_retire(struct kw_peer_state *peer, const struct kw_table *table) {
    struct kw_table *grown =
        realloc(peer->retired, (peer->retired_len + 1) * sizeof *peer->retired);

    if (grown == NULL) {
        return OMPI_ERR_OUT_OF_RESOURCE;
    }
    peer->retired = grown;
    peer->retired[peer->retired_len++] = *table;
    return OMPI_SUCCESS;
}

/* Learn the paths that r2 made, from the arrays that it filled. */
static int paths_learn(struct kw_peer_state *peer) {
    mca_bml_base_btl_array_t *arrays[] = {&peer->bml->btl_send, &peer->bml->btl_rdma};

    for (size_t a = 0; a < sizeof arrays / sizeof arrays[0]; a++) {
        for (size_t i = 0; i < arrays[a]->arr_size; i++) {
            mca_bml_base_btl_t *entry = &arrays[a]->bml_btls[i];
            int rc = kw_path_add(peer, entry->btl, entry->btl_endpoint);

            if (rc != OMPI_SUCCESS) {
                return rc;
            }
        }
    }
    return OMPI_SUCCESS;
}

static int peer_add(ompi_proc_t *proc, mca_bml_base_endpoint_t *bml) {
    struct kw_peer_state *peer;
    struct kw_table made_by_r2 = {.arrays = {[KW_EAGER].entries = bml->btl_eager.bml_btls,
                                             [KW_SEND].entries = bml->btl_send.bml_btls,
                                             [KW_RDMA].entries = bml->btl_rdma.bml_btls}};
    int rc;

    if (peers_len == peers_capacity) {
        size_t capacity = peers_capacity == 0 ? 16 : 2 * peers_capacity;
        struct kw_peer_state *grown = realloc(peers, capacity * sizeof *grown);

        if (grown == NULL) {
            return OMPI_ERR_OUT_OF_RESOURCE;
        }
        peers = grown;
        peers_capacity = capacity;
    }
    peer = &peers[peers_len];
    *peer = (struct kw_peer_state){.proc = proc, .bml = bml};
    rc = paths_learn(peer);
    if (rc == OMPI_SUCCESS) {
        rc = kw_peer_retire(peer, &made_by_r2);
    }
    if (rc != OMPI_SUCCESS) {
        free(peer->paths);
        return rc;
    }
    peers_len++;
    return OMPI_SUCCESS;
}

const char *kw_peers_refresh(void) {
    static char unreachable[64];
    size_t procs_len = 0;
    ompi_proc_t **procs = ompi_proc_world(&procs_len); /* retains none of them */
    const char *failed = procs == NULL ? "out of memory" : NULL;

    for (size_t i = 0; i < procs_len && failed == NULL; i++) {
        mca_bml_base_endpoint_t *bml;

        if (procs[i] == ompi_proc_local_proc) {
            continue;
        }
        bml = mca_bml_base_get_endpoint(procs[i]);
        if (bml == NULL || (peer_find(procs[i]) == NULL && peer_add(procs[i], bml) != 0)) {
            snprintf(unreachable, sizeof unreachable, "rank %u of the job cannot be reached",
                     procs[i]->super.proc_name.vpid);
            failed = unreachable;
        }
    }
    free(procs);
    return failed;
}

bool kw_peers_of_other_jobs(void) {
    size_t procs_len = 0;
    ompi_proc_t **procs = ompi_proc_all(&procs_len); /* retains each of them */
    bool found = false;

    for (size_t i = 0; procs != NULL && i < procs_len; i++) {
        found |= procs[i]->super.proc_name.jobid != ompi_proc_local_proc->super.proc_name.jobid &&
                 procs[i]->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML] != NULL;
        OBJ_RELEASE(procs[i]);
    }
    free(procs);
    return found;
}

/* Free one array, unless it is r2's to free. */
static void array_free(const mca_bml_base_endpoint_t *bml, mca_bml_base_btl_t *array) {
    if (array != bml->btl_eager.bml_btls && array != bml->btl_send.bml_btls &&
        array != bml->btl_rdma.bml_btls) {
        free(array);
    }
}

static void table_free(const mca_bml_base_endpoint_t *bml, const struct kw_table *table) {
    for (int use = 0; use < KW_USES; use++) {
        array_free(bml, table->arrays[use].entries);
    }
}

static bool array_names(const mca_bml_base_btl_array_t *array,
                        const struct mca_btl_base_endpoint_t *endpoint) {
    for (size_t i = 0; i < array->arr_size; i++) {
        if (array->bml_btls[i].btl_endpoint == endpoint) {
            return true;
        }
    }
    return false;
}

/* The process goes away: nothing to it can be outstanding, by MPI's rules. */
static void peer_forget(struct kw_peer_state *peer) {
    for (size_t i = 0; i < peer->paths_len; i++) {
        struct kw_path *path = &peer->paths[i];

        if (!array_names(&peer->bml->btl_send, path->endpoint) &&
            !array_names(&peer->bml->btl_rdma, path->endpoint)) {
            path->module->btl_del_procs(path->module, 1, (opal_proc_t **)&peer->proc,
                                        &path->endpoint);
        }
    }
    for (int side = 0; side < KW_SIDES; side++) {
        table_free(peer->bml, &peer->tables[side]);
    }
    for (size_t i = 0; i < peer->retired_len; i++) {
        table_free(peer->bml, &peer->retired[i]);
    }
    free(peer->retired);
    free(peer->paths);
    *peer = peers[--peers_len];
}

static int watched_del_procs(size_t procs_len, ompi_proc_t **procs) {
    delete_watcher();
    for (size_t i = 0; i < procs_len; i++) {
        struct kw_peer_state *peer = peer_find(procs[i]);

        if (peer != NULL) {
            peer_forget(peer);
        }
    }
    if (peers_len == 0) {
        free(peers);
        peers = NULL;
        peers_capacity = 0;
    }
    return original_del_procs(procs_len, procs);
}

void kw_peers_watch(void (*at_delete)(void)) {
    delete_watcher = at_delete;
    original_del_procs = mca_bml.bml_del_procs;
    mca_bml.bml_del_procs = watched_del_procs;
}
