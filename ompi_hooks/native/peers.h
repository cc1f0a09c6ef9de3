/* Every other process of the job, with its paths: the BTL endpoints that exist for it, whether r2's
 * arrays name them at the moment or not. */
#ifndef KAWARIMI_NATIVE_PEERS_H
#define KAWARIMI_NATIVE_PEERS_H

#include "ompi_config.h"

#include <stddef.h>

#include "ompi/mca/bml/bml.h"
#include "ompi/proc/proc.h"
#include "opal/mca/btl/btl.h"

/* One way to a peer. */
struct kw_path {
    mca_btl_base_module_t *module;
    struct mca_btl_base_endpoint_t *endpoint;
};

enum kw_side { KW_FABRIC, KW_FALLBACK, KW_SIDES };
enum kw_use { KW_EAGER, KW_SEND, KW_RDMA, KW_USES };

/* One of the three arrays of a bml endpoint: `lasting` entries that do not name the fabric, then
 * those that do. A heap block of its own, since r2's destructor frees those in its endpoint. */
struct kw_array {
    mca_bml_base_btl_t *entries;
    size_t lasting;
    size_t len;
};

/* One set of arrays that a bml endpoint can have, and the numbers that go with it.
 *
 * ob1 keeps pointers to single entries (des_context, rdma_bml, range_btls, req_rdma,
 * pckt->bml_btl), so a table outlives its use. Invariant: a lasting entry keeps its address and its
 * content until its peer is forgotten; one that names the fabric is rewritten only after FINI, when
 * nothing is outstanding there. */
struct kw_table {
    struct kw_array arrays[KW_USES];
    size_t capacity; /* of each array */
    size_t max_send_size, pipeline_send_length, send_limit;
    uint32_t flags_or;
};

struct kw_peer_state {
    ompi_proc_t *proc;
    mca_bml_base_endpoint_t *bml;
    struct kw_path *paths;
    size_t paths_len, paths_capacity;
    struct kw_table tables[KW_SIDES];
    struct kw_table *retired; /* superseded tables, and the one that r2 made */
    size_t retired_len;
};

/* Make a bml endpoint for every process of the job that has none, the way r2 would at the first
 * message, and know them all. Returns NULL, or the peer that cannot be reached, for people (static
 * text, valid until the next call); the others are known then. */
const char *kw_peers_refresh(void);

/* The peers known since the last refresh; this process itself is not among them. */
struct kw_peer_state *kw_peers(size_t *len);

/* Has this process endpoints to processes of another job (spawn, connect)? */
bool kw_peers_of_other_jobs(void);

/* The path to a peer through a module, or NULL. */
struct kw_path *kw_path_find(struct kw_peer_state *peer, const mca_btl_base_module_t *module);

/* Remember a path. Returns an Open MPI error code. */
int kw_path_add(struct kw_peer_state *peer, mca_btl_base_module_t *module,
                struct mca_btl_base_endpoint_t *endpoint);

/* Forget every path of the modules of a component; the BTL endpoints are the caller's. */
void kw_paths_forget(const mca_btl_base_component_t *component);

/* Keep a superseded table until its peer is forgotten. Returns an Open MPI error code; on failure
 * the table is still the caller's. */
int kw_peer_retire(struct kw_peer_state *peer, const struct kw_table *table);

/* Stand in front of mca_bml.bml_del_procs from now on: BTL endpoints that r2 does not know are
 * deleted there, and the tables are freed. `at_delete` is called first, each time. */
void kw_peers_watch(void (*at_delete)(void));

#endif
