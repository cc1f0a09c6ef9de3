/* Which BTL carries what to whom: builds and publishes the arrays of r2's endpoints.
 *
 * The rules are r2's own (ompi/mca/bml/r2/bml_r2.c: mca_bml_r2_endpoint_add_btl and
 * mca_bml_r2_compute_endpoint_metrics): the modules of the highest exclusivity send, those of the
 * lowest latency among them send first fragments, and RDMA goes over those that can. On the side
 * KW_FALLBACK all modules but the fabric's take part; on KW_FABRIC all but the fallback's, towards
 * every peer that the fabric reaches.
 *
 * One addition: every module that can do RDMA stays in the RDMA array, at weight 0 if the rules do
 * not choose it. ob1 looks up the module of each RDMA operation under way there, on both sides of a
 * switch and without expecting to miss (pml_ob1_recvreq.c:683, pml_ob1_sendreq.c:1251), and starts
 * no new one on a module that is not eager (pml_ob1_rdma.c). */
#ifndef KAWARIMI_NATIVE_ROUTES_H
#define KAWARIMI_NATIVE_ROUTES_H

#include "peers.h"

/* Make every path that the fallback side needs. Returns NULL, or why not (valid until the next
 * call); the arrays in use are untouched in either case. */
const char *kw_routes_reach_fallback(void);

/* Build one side's tables for every peer. Returns NULL, or why not;
 * the arrays in use are untouched in either case. */
const char *kw_routes_build(enum kw_side side);

/* Let ob1 use a side whose tables were built, from now on. */
void kw_routes_publish(enum kw_side side);

/* Take the fabric out of the RDMA arrays too, also towards this process itself, where r2 puts BTLs
 * that can do RDMA and atomics. Only when nothing is outstanding on the fabric. */
void kw_routes_drop_fabric(void);

#endif
