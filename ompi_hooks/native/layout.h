/* The private fields of Open MPI's pml/ob1 and bml/r2 that the shim reads or writes.
 *
 * Open MPI installs no usable headers for these two components. The structs are declared here once, as
 * they stand at the tags in KW_LAYOUT_VERSIONS; kw_layout_prove() compares them with the running
 * library before anything is touched, and tests/ompi/test_layout.py with Open MPI's source.
 */
#ifndef KAWARIMI_NATIVE_LAYOUT_H
#define KAWARIMI_NATIVE_LAYOUT_H

#include "ompi_config.h"

#include "ompi/mca/bml/bml.h"
#include "ompi/mca/pml/base/pml_base_request.h"
#include "ompi/mca/pml/pml.h"
#include "opal/class/opal_free_list.h"
#include "opal/mca/btl/btl.h"

#define KW_LAYOUT_VERSIONS "4.1.4"

/* ompi/mca/bml/r2/bml_r2.h */
struct kw_r2 {
    mca_bml_base_module_t super;
    size_t num_btl_modules;
    mca_btl_base_module_t **btl_modules;
    size_t num_btl_progress;
    mca_btl_base_component_progress_fn_t *btl_progress;
    bool btls_added;
    bool show_unreach_errors;
};

/* ompi/mca/pml/ob1/pml_ob1.h: struct mca_pml_ob1_t */
struct kw_ob1 {
    mca_pml_base_module_t super;
    int priority;
    int free_list_num;
    int free_list_max;
    int free_list_inc;
    int32_t send_pipeline_depth;
    int32_t recv_pipeline_depth;
    size_t rdma_retries_limit;
    int max_rdma_per_request;
    int max_send_per_range;
    bool use_all_rdma;
    opal_mutex_t lock;
    opal_free_list_t rdma_frags;
    opal_free_list_t recv_frags;
    opal_free_list_t pending_pckts;
    opal_free_list_t buffers;
    opal_free_list_t send_ranges;
    opal_list_t pckt_pending;
    opal_list_t send_pending;
    opal_list_t recv_pending;
    opal_list_t rdma_pending;
    opal_list_t non_existing_communicator_pending;
    bool enabled;
    char *allocator_name;
    struct mca_allocator_base_module_t *allocator;
    unsigned int unexpected_limit;
};

/* ompi/mca/pml/ob1/pml_ob1_hdr.h: message types are MCA_BTL_TAG_PML + n */
enum { KW_OB1_RNDV = MCA_BTL_TAG_PML + 2, KW_OB1_RGET = MCA_BTL_TAG_PML + 3 };

struct kw_ob1_common_hdr {
    uint8_t hdr_type;
    uint8_t hdr_flags;
};

struct kw_ob1_match_hdr {
    struct kw_ob1_common_hdr hdr_common;
    uint16_t hdr_ctx;
    int32_t hdr_src;
    int32_t hdr_tag;
    uint16_t hdr_seq;
#if OPAL_ENABLE_HETEROGENEOUS_SUPPORT
    uint8_t hdr_padding[2];
#endif
};

struct kw_ob1_rendezvous_hdr {
    struct kw_ob1_match_hdr hdr_match;
    uint64_t hdr_msg_length;
    opal_ptr_t hdr_src_req;
};

/* union mca_pml_ob1_hdr_t; its largest member is the RDMA header */
union kw_ob1_hdr {
    struct kw_ob1_common_hdr hdr_common;
    struct kw_ob1_rendezvous_hdr hdr_rndv;
    struct {
        struct kw_ob1_common_hdr hdr_common;
#if OPAL_ENABLE_HETEROGENEOUS_SUPPORT
        uint8_t hdr_padding[2];
#endif
        opal_ptr_t hdr_req;
        opal_ptr_t hdr_frag;
        opal_ptr_t hdr_recv_req;
        uint64_t hdr_rdma_offset;
        uint64_t hdr_dst_ptr;
        uint64_t hdr_dst_size;
    } hdr_rdma;
};

/* ompi/mca/pml/ob1/pml_ob1_recvfrag.h */
struct kw_ob1_recv_frag {
    opal_free_list_item_t super;
    union kw_ob1_hdr hdr;
    size_t num_segments;
    struct kw_ob1_recv_frag *range;
    mca_btl_base_module_t *btl;
    mca_btl_base_segment_t segments[MCA_BTL_DES_MAX_SEGMENTS];
    struct {
        size_t len;
        void *addr;
    } buffers[MCA_BTL_DES_MAX_SEGMENTS];
    unsigned char addr[1];
};

/* ompi/mca/pml/ob1/pml_ob1.h: struct mca_pml_ob1_com_btl_t */
struct kw_ob1_com_btl {
    mca_bml_base_btl_t *bml_btl;
    struct mca_btl_base_registration_handle_t *btl_reg;
    size_t length;
};

/* ompi/mca/pml/ob1/pml_ob1.h: struct mca_pml_ob1_pckt_pending_t */
struct kw_ob1_pckt_pending {
    opal_free_list_item_t super;
    struct ompi_proc_t *proc;
    union kw_ob1_hdr hdr;
    mca_bml_base_btl_t *bml_btl;
    uint8_t order;
    int status;
};

/* ompi/mca/pml/base/pml_base_sendreq.h: installed, but it includes a header that is not */
struct kw_base_send_request {
    mca_pml_base_request_t req_base;
    const void *req_addr;
    size_t req_bytes_packed;
    mca_pml_base_send_mode_t req_send_mode;
};

/* ompi/mca/pml/ob1/pml_ob1_sendreq.h */
struct kw_ob1_send_request {
    struct kw_base_send_request req_send;
    mca_bml_base_endpoint_t *req_endpoint;
    opal_ptr_t req_recv;
    int32_t req_state;
    int32_t req_lock;
    bool req_throttle_sends;
    int32_t req_pipeline_depth;
    size_t req_bytes_delivered;
    uint32_t req_rdma_cnt;
    int req_pending;
    opal_mutex_t req_send_range_lock;
    opal_list_t req_send_ranges;
    void *rdma_frag;
    struct kw_ob1_com_btl req_rdma[];
};

struct kw_ob1_send_range {
    opal_free_list_item_t base;
    uint64_t range_send_offset;
    uint64_t range_send_length;
    int range_btl_idx;
    int range_btl_cnt;
    struct kw_ob1_com_btl range_btls[];
};

/* What of these two components the shim calls and reads. Set once by kw_layout_prove(). */
struct kw_pml {
    struct kw_ob1 *ob1;
    struct kw_r2 *r2;
    void (*process_pending_packets)(mca_bml_base_btl_t *);
    void (*send_process_pending)(mca_bml_base_btl_t *);
    void (*recv_process_pending)(void);
    void (*rdma_process_pending)(void);
    mca_btl_base_module_error_cb_fn_t error_handler;
};
extern struct kw_pml kw_pml;

/* Is this the Open MPI that the component was built for, and one whose layout is known? May be
 * called at any time. Returns NULL, or the reason why not (static text). */
const char *kw_layout_version_check(void);

/* Prove, in the running process, that the structs above are what ob1 and r2 use, and fill in
 * kw_pml. To be called after MPI_Init has set up its PML. Returns NULL, or the reason why not
 * (static text); then kw_pml is unset. */
const char *kw_layout_prove(void);

#endif
