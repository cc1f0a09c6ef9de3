/* The protocol between a rank's shim and the guest agent: the one place where it is written down.
 *
 * Unix socket, SOCK_SEQPACKET: one packet is one message. The rank dials, the agent listens. Native
 * byte order (both ends are one machine). The agent's Python side reads this very file with cffi,
 * which knows no preprocessor: lines that begin with '#' are for C alone, and constants are enums.
 * Structs contain no implicit padding; protocol.c asserts their sizes.
 *
 * A conversation: the rank says HELLO, the agent answers WELCOME, and from then on every COMMAND
 * gets exactly one REPLY with the command's sequence number. GOODBYE ends it in MPI_Finalize. When
 * the connection breaks, both sides forget what was under way; the next HELLO says the rank's state.
 */
#ifndef KAWARIMI_PROTOCOL_H
#define KAWARIMI_PROTOCOL_H

#include <stdint.h>

enum kw_protocol {
    KW_MAGIC = 0x4b57524d,
    KW_VERSION = 3,
    KW_MAX_MESSAGE = 65536, /* bytes, the header included */
    KW_MAX_STEPS = 8,       /* per direction */
    KW_NAME = 32,           /* bytes of a name, the terminating zero included */
    KW_KEY = 64,            /* bytes of a modex key, the terminating zero included */
    KW_TEXT = 256           /* bytes of an explanation, the terminating zero included */
};

enum kw_type { KW_HELLO = 1, KW_WELCOME = 2, KW_COMMAND = 3, KW_REPLY = 4, KW_GOODBYE = 5 };

/* What a rank can be told. The codes up to 99 are known to every kind of shim and to the agent;
 * those from 100 on belong to the shim's kind, and the agent learns them from the HELLO. */
enum kw_code {
    KW_STATUS = 1, /* tell the routes and the counters */
    KW_HOLD = 2,   /* park the rank's thread at a safe point, until RESUME or the deadline; again: longer */
    KW_RESUME = 3, /* end a HOLD */
    KW_ABORT = 4,  /* go back to the nearest state that needs no other rank; a HOLD lasts */
    KW_PREPARE = 100,
    KW_SELECT = 101,
    KW_DRAIN = 102,
    KW_FINI = 103,
    KW_INIT = 104,
    KW_MODEX = 105,
    KW_ADD = 106,
    KW_ENABLE = 107,
    KW_QUIESCE = 108, /* of parked ranks: let what is under way arrive, on every BTL */
    KW_UCP_HOLD = 200,
    KW_UCP_DRAIN = 201,
    KW_UCP_DISCONNECT = 202,
    KW_UCP_CLOSE = 203,
    KW_UCP_INIT_FALLBACK = 204,
    KW_UCP_INIT_FABRIC = 205,
    KW_UCP_MODEX = 206,
    KW_UCP_RESTORE = 207,
    KW_UCP_ENABLE = 208
};

/* Where a rank stands. */
enum kw_state {
    KW_ATTACHED = 1,  /* the fabric carries the traffic */
    KW_PREPARED = 2,  /* it still does; every peer is reachable on the fallback too */
    KW_DRAINING = 3,  /* the fallback does; the fabric is open and finishes what is under way */
    KW_DETACHED = 4,  /* the fabric's component is closed and unloaded */
    KW_OPENED = 5,    /* the fabric is open with new addresses, and knows no peer */
    KW_CONNECTED = 6, /* it knows every peer, and carries nothing yet */
    /* Of kinds that exchange the transport as a whole (PREPARED and OPENED say that there is another one
     * besides that in use): */
    KW_HELD = 7,    /* what the program sends and receives waits; the transport is as before */
    KW_CROSSING = 8 /* between two transports, of which both may be open: ABORT does not lead out, but
                     * the steps of either direction do, from the first one on */
};

enum kw_outcome {
    KW_OK = 0,
    KW_REFUSED = 1,     /* not in this state, or this job cannot be switched; nothing changed */
    KW_BUSY = 2,        /* not now: something is still under way; nothing changed */
    KW_STALE = 3,       /* an older epoch than the rank has seen; nothing changed */
    KW_EXPIRED = 4,     /* the rank reached its safe point after the deadline; nothing changed */
    KW_NO_DEVICE = 5,   /* INIT found no device; the rank is as before */
    KW_NO_PATH = 6,     /* a peer cannot be reached; text names it; nothing changed */
    KW_BAD_MESSAGE = 7, /* malformed, oversized or of another version; nothing changed */
    KW_UNKNOWN = 8,     /* no such command; nothing changed */
    KW_FAILED = 9,      /* Open MPI refused; text says what, state says where the rank stands */
    KW_DEFERRED = 10,   /* the program asked not to be disturbed now; text says why; nothing changed */
    KW_NO_ROOM = 11     /* more has arrived that nobody receives than the shim may keep; as BUSY */
};

/* How the coordinator has to run a step. */
enum kw_step_flags {
    KW_STEP_WAVES = 1,   /* repeat until two equal waves balance and nothing is outstanding */
    KW_STEP_GATHER = 2,  /* replies carry blobs */
    KW_STEP_SCATTER = 4, /* the command carries every rank's blobs of the last gather */
    KW_STEP_COMMIT = 8   /* after it, ABORT no longer leads back to where the operation began; the
                          * steps that follow it lead on, and where there are any, all steps of either
                          * direction may be repeated */
};

enum kw_command_flags { KW_POKE = 1 /* wake a rank that computes outside MPI, by a signal */ };

struct kw_header {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t size;     /* of the whole message, in bytes */
    uint32_t sequence; /* a reply carries its command's */
};

struct kw_step {
    uint32_t code;
    uint32_t flags;
    char name[KW_NAME];
};

struct kw_hello {
    struct kw_header header;
    uint32_t jobid;
    uint32_t vpid;
    uint32_t ranks;       /* in the job */
    uint32_t local_ranks; /* of the job, on this machine */
    int32_t pid;
    uint32_t state;
    uint32_t epoch; /* the newest that the rank has seen */
    uint32_t leave_steps;
    uint32_t take_steps;
    uint32_t hold_steps;
    char kind[KW_NAME];
    char fabric[KW_NAME];
    char fallback[KW_NAME];
    char refusal[KW_TEXT]; /* why this rank cannot be switched; empty if it can */
    struct kw_step leave[KW_MAX_STEPS];
    struct kw_step take[KW_MAX_STEPS];
    struct kw_step hold[KW_MAX_STEPS]; /* their way back is RESUME */
};

struct kw_welcome {
    struct kw_header header;
    uint32_t accepted;
    uint32_t reserved;
    char reason[KW_TEXT];
};

/* Followed by `blobs` times a struct kw_blob with its bytes. */
struct kw_command {
    struct kw_header header;
    uint32_t code;
    uint32_t epoch;
    uint32_t deadline_ms; /* relative, counted from the receipt */
    uint32_t flags;
    uint32_t blobs;
    uint32_t reserved;
};

/* One value that a rank publishes to its peers, and the bytes after it, padded to eight. */
struct kw_blob {
    uint32_t jobid;
    uint32_t vpid;
    uint32_t size; /* of the bytes, without padding */
    uint32_t reserved;
    char key[KW_KEY];
};

/* Followed by `blobs` blobs, `components` components and `peers` peers. */
struct kw_reply {
    struct kw_header header;
    uint32_t code;
    uint32_t epoch;
    uint32_t outcome;
    uint32_t state;
    /* On the fabric since it was opened; for QUIESCE, on every BTL that is counted. */
    uint64_t sent;             /* messages */
    uint64_t received;         /* likewise */
    uint64_t outstanding;      /* sends and RDMA operations that did not complete locally */
    uint64_t pending;          /* entries of ob1's queues that may still need it */
    uint64_t kept;             /* bytes that have arrived and the shim keeps until they are received */
    uint64_t duration_ns;      /* of this command */
    uint64_t held_ns;          /* how long the rank has been parked without a break; 0: it is not */
    /* Time spent in the shim, in the rank's thread: in all, and the longest without a break. The
     * first two since MPI_Init, the others since the newest epoch began. */
    uint64_t stall_total_ns;
    uint64_t stall_longest_ns;
    uint64_t epoch_stall_total_ns;
    uint64_t epoch_stall_longest_ns;
    uint32_t blobs;
    uint32_t components;
    uint32_t peers;
    uint32_t peers_total; /* more than `peers` if they did not fit */
    char text[KW_TEXT];
};

struct kw_component {
    char name[KW_NAME];
    uint64_t sent;
    uint64_t received;
    uint64_t outstanding;
    uint32_t counted; /* 0: the numbers above are unknown, this BTL is not touched */
    uint32_t modules;
};

/* Bit i of a mask stands for the i-th component of the same reply. */
struct kw_peer {
    uint32_t jobid;
    uint32_t vpid;
    uint32_t eager;
    uint32_t send;
    uint32_t rdma;
    uint32_t reserved;
};

struct kw_goodbye {
    struct kw_header header;
};

#endif
