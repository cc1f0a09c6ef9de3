/* How ob1 binds a message to a BTL, and what is done about it (Open MPI v4.1.4):
 *
 * - An unexpected rendezvous is acknowledged only on the BTL that it came on, if that BTL is still
 *   eager, and else queued until some other send completes (pml_ob1_recvreq.h:432-461,
 *   mca_pml_ob1_recv_request_ack_send). A fragment whose `btl` is NULL is acknowledged on any.
 * - An unexpected RGET carries the peer's keys for the fabric. As a rendezvous of the same message
 *   it needs none: header type changed in both copies, segment cut to the rendezvous header.
 * - A send's remaining ranges name their BTLs (req_send_ranges); they go over the endpoint's.
 * - A queued control packet may name an entry that is no longer eager; with none it goes over any.
 */
#include "drain.h"

#include <malloc.h>
#include <string.h>

#include "counters.h"
#include "fabric.h"
#include "layout.h"
#include "opal/align.h"
#include "opal/mca/allocator/allocator.h"
#include "peers.h"

/* Call `visit` for every element that a free list ever made, in use or not. The list keeps its
 * allocations, not their lengths (opal_free_list_grow_st): elements follow each other to the end of
 * the heap block, and carry their class from their construction on. */
static void free_list_visit(opal_free_list_t *list, void (*visit)(void *element)) {
    size_t step = OPAL_ALIGN(list->fl_frag_size, list->fl_frag_alignment, size_t);
    size_t left = list->fl_num_allocated;
    opal_list_item_t *block;

    opal_mutex_lock(&list->fl_lock);
    OPAL_LIST_FOREACH(block, &list->fl_allocations, opal_list_item_t) {
        unsigned char *end = (unsigned char *)block + malloc_usable_size(block);
        unsigned char *at = (unsigned char *)block + sizeof(opal_free_list_item_t);

        at = OPAL_ALIGN_PTR(at, list->fl_frag_alignment, unsigned char *);
        for (; at + step <= end && left > 0; at += step) {
            if (((opal_object_t *)at)->obj_class == list->fl_frag_class) {
                visit(at);
                left--;
            }
        }
    }
    opal_mutex_unlock(&list->fl_lock);
}

#ifndef KW_ABLATE_REWRITE
static void fragment_to_rendezvous(struct kw_ob1_recv_frag *fragment) {
    mca_btl_base_segment_t *segment = &fragment->segments[0];
    union kw_ob1_hdr *header = segment->seg_addr.pval;
    size_t inline_limit = kw_pml.ob1->unexpected_limit;

    fragment->hdr.hdr_common.hdr_type = KW_OB1_RNDV;
    header->hdr_common.hdr_type = KW_OB1_RNDV;
    /* MCA_PML_OB1_RECV_FRAG_RETURN takes a segment beyond the limit for a buffer to free: one that
     * shrinks to below it must move into the fragment first. */
    if (segment->seg_len > inline_limit && sizeof header->hdr_rndv <= inline_limit) {
        memcpy(fragment->addr, header, sizeof header->hdr_rndv);
        segment->seg_addr.pval = fragment->addr;
        kw_pml.ob1->allocator->alc_free(kw_pml.ob1->allocator, fragment->buffers[0].addr);
    }
    segment->seg_len = sizeof header->hdr_rndv;
}

static void fragment_unbind(void *element) {
    struct kw_ob1_recv_frag *fragment = element;

    /* A fragment in use has one segment; `btl` of one that never was in use is garbage. */
    if (fragment->num_segments != 1 || fragment->btl == NULL ||
        !kw_fabric_is_module(fragment->btl)) {
        return;
    }
    if (fragment->hdr.hdr_common.hdr_type == KW_OB1_RGET) {
        fragment_to_rendezvous(fragment);
    }
    fragment->btl = NULL;
}
#endif

static void send_retarget(void *element) {
    struct kw_ob1_send_request *request = element;
    struct kw_ob1_send_range *range;

    OPAL_LIST_FOREACH(range, &request->req_send_ranges, struct kw_ob1_send_range) {
        for (int i = 0; i < range->range_btl_cnt; i++) {
            if (kw_fabric_is_module(range->range_btls[i].bml_btl->btl)) {
                range->range_btls[i].bml_btl = &request->req_endpoint->btl_send.bml_btls[0];
            }
        }
    }
}

static void packets_unbind(void) {
    struct kw_ob1_pckt_pending *packet;

    OPAL_LIST_FOREACH(packet, &kw_pml.ob1->pckt_pending, struct kw_ob1_pckt_pending) {
        if (packet->bml_btl != NULL && kw_fabric_is_module(packet->bml_btl->btl)) {
            packet->bml_btl = NULL;
        }
    }
}

void kw_drain_retry(void) {
#ifndef KW_ABLATE_KICK
    struct kw_ob1 *ob1 = kw_pml.ob1;
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        mca_bml_base_btl_array_t *eager = &peers[p].bml->btl_eager;

        if (opal_list_get_size(&ob1->pckt_pending) == 0 &&
            opal_list_get_size(&ob1->send_pending) == 0) {
            break;
        }
        for (size_t i = 0; i < eager->arr_size; i++) {
            kw_pml.process_pending_packets(&eager->bml_btls[i]);
            kw_pml.send_process_pending(&eager->bml_btls[i]);
        }
    }
    if (opal_list_get_size(&ob1->recv_pending) > 0) {
        kw_pml.recv_process_pending();
    }
    if (opal_list_get_size(&ob1->rdma_pending) > 0) {
        kw_pml.rdma_process_pending();
    }
#endif
}

/* What the fabric had received when kw_drain_tend() last ran. */
static uint64_t tended_received;

void kw_drain_tend(void) {
    tended_received = kw_counters_of(kw_fabric_component()).received;
#ifndef KW_ABLATE_REWRITE
    free_list_visit(&kw_pml.ob1->recv_frags, fragment_unbind);
#endif
    free_list_visit(&mca_pml_base_send_requests, send_retarget);
    packets_unbind();
    kw_drain_retry();
}

bool kw_drain_arrived(void) {
    return kw_counters_of(kw_fabric_component()).received != tended_received;
}

uint64_t kw_drain_pending(void) {
    return opal_list_get_size(&kw_pml.ob1->pckt_pending) +
           opal_list_get_size(&kw_pml.ob1->recv_pending) +
           opal_list_get_size(&kw_pml.ob1->rdma_pending);
}

uint64_t kw_drain_unsent(void) {
    return kw_drain_pending() + opal_list_get_size(&kw_pml.ob1->send_pending);
}

static void registrations_release(void *element) {
    struct kw_ob1_send_request *request = element;
    uint32_t held = request->req_rdma_cnt;
    bool ours = false;

    /* A request that never was in use has a zero count (its constructor), or a bounded one. */
    for (uint32_t i = 0; i < held && i < (uint32_t)kw_pml.ob1->max_rdma_per_request; i++) {
        mca_bml_base_btl_t *entry = request->req_rdma[i].bml_btl;

        if (entry != NULL && kw_fabric_is_module(entry->btl)) {
            ours = true;
            if (request->req_rdma[i].btl_reg != NULL) {
                entry->btl->btl_deregister_mem(entry->btl, request->req_rdma[i].btl_reg);
                request->req_rdma[i].btl_reg = NULL;
            }
        }
    }
    if (ours) {
        request->req_rdma_cnt = 0;
    }
}

void kw_drain_release_registrations(void) {
    free_list_visit(&mca_pml_base_send_requests, registrations_release);
}
