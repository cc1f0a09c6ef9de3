/* Compares native/layout.h with Open MPI's own headers; compiling it is the test.
 * Needs Open MPI's source tree and the directory of the native component on the include path. */
#include "ompi_config.h"

#include <stddef.h>

#include "ompi/mca/bml/r2/bml_r2.h"
#include "ompi/mca/pml/ob1/pml_ob1.h"
#include "ompi/mca/pml/ob1/pml_ob1_comm.h"
#include "ompi/mca/pml/ob1/pml_ob1_hdr.h"
#include "ompi/mca/pml/ob1/pml_ob1_sendreq.h"

/* In this order: the next header does not include what it needs. */
#include "ompi/mca/pml/ob1/pml_ob1_recvfrag.h"

#include "layout.h"

#define SAME_SIZE(ours, theirs) \
    _Static_assert(sizeof(ours) == sizeof(theirs), "size of " #theirs)
#define SAME(ours, theirs, field)                                                            \
    _Static_assert(offsetof(ours, field) == offsetof(theirs, field), "offset of " #field);   \
    _Static_assert(sizeof(((ours *)0)->field) == sizeof(((theirs *)0)->field), "size of " #field)

#define R2(field) SAME(struct kw_r2, struct mca_bml_r2_module_t, field)
SAME_SIZE(struct kw_r2, struct mca_bml_r2_module_t);
R2(super);
R2(num_btl_modules);
R2(btl_modules);
R2(num_btl_progress);
R2(btl_progress);
R2(btls_added);

#define OB1(field) SAME(struct kw_ob1, struct mca_pml_ob1_t, field)
SAME_SIZE(struct kw_ob1, struct mca_pml_ob1_t);
OB1(super);
OB1(max_rdma_per_request);
OB1(use_all_rdma);
OB1(lock);
OB1(rdma_frags);
OB1(recv_frags);
OB1(pending_pckts);
OB1(buffers);
OB1(send_ranges);
OB1(pckt_pending);
OB1(send_pending);
OB1(recv_pending);
OB1(rdma_pending);
OB1(non_existing_communicator_pending);
OB1(allocator);
OB1(unexpected_limit);

_Static_assert(KW_OB1_RNDV == MCA_PML_OB1_HDR_TYPE_RNDV, "message type");
_Static_assert(KW_OB1_RGET == MCA_PML_OB1_HDR_TYPE_RGET, "message type");
SAME_SIZE(union kw_ob1_hdr, mca_pml_ob1_hdr_t);
SAME_SIZE(struct kw_ob1_rendezvous_hdr, mca_pml_ob1_rendezvous_hdr_t);
SAME(struct kw_ob1_common_hdr, mca_pml_ob1_common_hdr_t, hdr_type);
SAME(struct kw_ob1_rendezvous_hdr, mca_pml_ob1_rendezvous_hdr_t, hdr_match);
SAME(struct kw_ob1_rendezvous_hdr, mca_pml_ob1_rendezvous_hdr_t, hdr_msg_length);

#define FRAG(field) SAME(struct kw_ob1_recv_frag, struct mca_pml_ob1_recv_frag_t, field)
SAME_SIZE(struct kw_ob1_recv_frag, struct mca_pml_ob1_recv_frag_t);
FRAG(super);
FRAG(hdr);
FRAG(num_segments);
FRAG(btl);
FRAG(segments);
FRAG(buffers);
FRAG(addr);

SAME_SIZE(struct kw_ob1_com_btl, struct mca_pml_ob1_com_btl_t);
SAME(struct kw_ob1_com_btl, struct mca_pml_ob1_com_btl_t, bml_btl);
SAME(struct kw_ob1_com_btl, struct mca_pml_ob1_com_btl_t, btl_reg);

SAME_SIZE(struct kw_ob1_pckt_pending, struct mca_pml_ob1_pckt_pending_t);
SAME(struct kw_ob1_pckt_pending, struct mca_pml_ob1_pckt_pending_t, bml_btl);

#define SEND(field) SAME(struct kw_ob1_send_request, struct mca_pml_ob1_send_request_t, field)
SAME_SIZE(struct kw_ob1_send_request, struct mca_pml_ob1_send_request_t);
SEND(req_send);
SEND(req_endpoint);
SEND(req_rdma_cnt);
SEND(req_send_ranges);
_Static_assert(offsetof(struct kw_ob1_send_request, req_rdma) ==
                   offsetof(struct mca_pml_ob1_send_request_t, req_rdma),
               "offset of req_rdma");

#define RANGE(field) SAME(struct kw_ob1_send_range, struct mca_pml_ob1_send_range_t, field)
SAME_SIZE(struct kw_ob1_send_range, struct mca_pml_ob1_send_range_t);
RANGE(range_btl_idx);
RANGE(range_btl_cnt);
_Static_assert(offsetof(struct kw_ob1_send_range, range_btls) ==
                   offsetof(struct mca_pml_ob1_send_range_t, range_btls),
               "offset of range_btls");
