/* What Open MPI holds instead of UCX's own objects, and what lives on when those are destroyed.
 *
 * There is one virtual context, one virtual worker on it, and its endpoints, requests and message
 * handles; whatever else a process makes of UCX (the windows of osc/ucx, say) is handed through. Each
 * object begins with a mark, by which our functions tell it from a real one: libucp's own calls of its
 * public functions come to ours too, with real objects.
 *
 * MPI calls of one process never overlap (THREAD_MULTIPLE is refused, and handed through), so nothing
 * here is atomic. */
#ifndef KAWARIMI_NATIVE_UCP_OBJECTS_H
#define KAWARIMI_NATIVE_UCP_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "real.h"

#define KW_EXPORT __attribute__((visibility("default")))
#define KW_UNLIKELY(condition) __builtin_expect((condition), 0)

enum kw_mark {
    KW_MARK_CONTEXT = 0x4b57c001,
    KW_MARK_WORKER = 0x4b57c002,
    KW_MARK_ENDPOINT = 0x4b57c003,
    KW_MARK_PROBED = 0x4b57c004
};
#define KW_MARK_SLOT 0x4b57c005b7e15162ull /* in a place where a foreign request has anything */

/* A link of a ring; an empty ring's head points to itself. */
struct kw_ring {
    struct kw_ring *prev, *next;
};

static inline void kw_ring_insert(struct kw_ring *head, struct kw_ring *link) {
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void kw_ring_remove(struct kw_ring *link) {
    link->prev->next = link->next;
    link->next->prev = link->prev;
}

static inline bool kw_ring_is_empty(const struct kw_ring *head) {
    return head->next == head;
}

enum kw_slot_kind {
    KW_SEND,
    KW_RECEIVE,  /* posted with a tag: UCX gives it back unmatched when it is cancelled */
    KW_FETCH,    /* of a message that was probed */
    KW_KEEP,     /* of ours: pulls a message that nobody has received into a buffer */
    KW_DISCONNECT
};

enum kw_slot_state {
    KW_FREE,
    KW_ACTIVE,   /* UCX has it */
    KW_WAITING,  /* UCX does not know of it: it is ours until the switch ends */
    KW_PROMISED, /* likewise; a message that is still being pulled will complete it */
    KW_DONE
};

/* Our part of a request. It lies between UCX's part and the application's, so that both find theirs
 * by the pointers that they know:
 *
 *     [ UCX's part | struct kw_slot | application's part ]
 *                  ^ UCX's pointer  ^ application's pointer
 *
 * Invariant: for any request of UCX's own, the bytes where our mark would be are UCX's part of it:
 * they can be read. */
struct kw_slot {
    struct kw_ring link; /* of the ring that the state and the kind tell */
    uint64_t mark;
    enum kw_slot_kind kind;
    enum kw_slot_state state;
    bool owned;       /* by our pool, and not by the caller's memory */
    bool released;    /* by the application, before it was done */
    bool synchronous; /* send */
    bool posting;     /* inside the call that posts it: its callback is held back... */
    bool eager_callback; /* ... unless the caller wants it then */
    ucs_status_t status;
    uint32_t op_flags; /* of the caller's parameters: what to repeat when it is posted again */
    ucp_tag_recv_info_t info;
    union {
        ucp_send_nbx_callback_t send;
        ucp_tag_recv_nbx_callback_t receive;
    } callback; /* the application's, or NULL */
    void *user_data;
    void *buffer;
    size_t count;
    ucp_datatype_t datatype;
    ucp_tag_t tag, mask;
    struct kw_endpoint *endpoint; /* send */
    void *pin, *unpacking;        /* see datatype.h */
    struct kw_slot *taker;        /* KW_KEEP: the receive that waits for it */
    void *foreign;                /* KW_DISCONNECT: UCX's own request */
} __attribute__((aligned(16)));

struct kw_endpoint {
    enum kw_mark mark;
    uint32_t jobid, vpid;
    bool foreign; /* of another job, or of a process without the shim */
    ucp_ep_h real;  /* NULL while there is none */
    ucp_ep_h spare; /* likewise: on the worker of spare.h */
    ucs_status_ptr_t closing;    /* of real */
    ucs_status_ptr_t connecting; /* of spare: ends when it is connected; see connect.h */
    struct kw_ring link;
};

/* What a probe that takes a message out of the matching returns. */
struct kw_probed {
    enum kw_mark mark;
    ucp_tag_message_h real; /* NULL once it is kept */
    struct kw_slot *kept;
    ucp_tag_recv_info_t info;
    struct kw_ring link;
};

/* The virtual context and the virtual worker. */
struct kw_context {
    enum kw_mark mark;
    ucp_context_h real; /* NULL before there is one, and after */
};
struct kw_worker {
    enum kw_mark mark;
    ucp_worker_h real; /* likewise */
    /* While a switch is under way, what the program begins waits. */
    bool sends_wait, receives_wait;
    /* Since MPI_Init, over all transports. A message that is kept has been received. */
    uint64_t sent, received;
    uint64_t sending;   /* sends that are not complete */
    uint64_t fetching;  /* messages that are being pulled into buffers of ours, or of the program */
    uint32_t callbacks; /* of the application's that are on the stack */
    struct kw_ring posted;    /* KW_RECEIVE: those that no message is known for, in order */
    struct kw_ring waiting;   /* KW_SEND: those that wait, in order */
    struct kw_ring kept;      /* KW_KEEP: messages that nobody has received, in order of arrival */
    struct kw_ring messages;  /* struct kw_probed: those that are real */
    struct kw_ring endpoints; /* struct kw_endpoint */
    uint64_t kept_bytes;
};

extern struct kw_context kw_context;
extern struct kw_worker kw_worker;

/* Bytes of UCX's part of a request. */
extern size_t kw_request_size;

#define KW_OF(type, member, pointer) ((type *)((char *)(pointer) - offsetof(type, member)))

static inline bool kw_is_worker(ucp_worker_h worker) {
    return (void *)worker == (void *)&kw_worker;
}

static inline bool kw_is_context(ucp_context_h context) {
    return (void *)context == (void *)&kw_context;
}

static inline struct kw_endpoint *kw_endpoint_at(struct kw_ring *link) {
    return KW_OF(struct kw_endpoint, link, link);
}

static inline struct kw_endpoint *kw_endpoint_of(ucp_ep_h handle) {
    struct kw_endpoint *endpoint = (void *)handle;

    return endpoint->mark == KW_MARK_ENDPOINT ? endpoint : NULL;
}

#endif
