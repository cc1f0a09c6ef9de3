#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "context.h"
#include "endpoints.h"
#include "executor.h"
#include "kind.h"
#include "link.h"
#include "poke.h"
#include "program.h"
#include "spare.h"
#include "stall.h"
#include "steps.h"
#include "swap.h"

#define FINISH_DEADLINE_NS (30 * 1000000000ull)

static uint32_t jobid, vpid, ranks, local_ranks;
static const char *refusal;
static bool armed;    /* the agent is to be dialled */
static bool finished; /* and not to be heeded any more */

static bool read_number(const char *name, uint32_t *value) {
    const char *text = getenv(name);
    char *end;

    if (text == NULL || text[0] < '0' || text[0] > '9') {
        return false;
    }
    errno = 0;
    *value = (uint32_t)strtoul(text, &end, 10);
    return errno == 0 && *end == 0;
}

/* Open MPI 4.1's PMIx namespace is its number of the job; that of PRRTE is a text that ends in
 * '@' and the number of the job in its family. */
static bool read_jobid(void) {
    const char *namespace = getenv("PMIX_NAMESPACE");
    const char *at;
    uint32_t hash = 2166136261u; /* FNV-1a */

    if (namespace == NULL) {
        return false;
    }
    if (read_number("PMIX_NAMESPACE", &jobid)) {
        return true;
    }
    at = strrchr(namespace, '@');
    for (const char *c = namespace; *c != 0 && c != at; c++) {
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    }
    jobid = hash << 16 | (at != NULL ? (uint32_t)atoi(at + 1) & 0xffff : 0);
    return true;
}

const char *kw_shim_identify(void) {
    if (!read_jobid() || !read_number("OMPI_COMM_WORLD_RANK", &vpid) ||
        !read_number("OMPI_COMM_WORLD_SIZE", &ranks) ||
        !read_number("OMPI_COMM_WORLD_LOCAL_SIZE", &local_ranks)) {
        return "it was not started by Open MPI's mpirun";
    }
    return NULL;
}

uint32_t kw_shim_jobid(void) {
    return jobid;
}

uint32_t kw_shim_vpid(void) {
    return vpid;
}

uint32_t kw_shim_ranks(void) {
    return ranks;
}

void kw_shim_refuse(const char *reason) {
    uint32_t local_rank = 0;

    (void)read_number("OMPI_COMM_WORLD_LOCAL_RANK", &local_rank);
    if (local_rank == 0) {
        fprintf(stderr,
                "kawarimi stays out of this job, which runs as if it were not there.\n\n"
                "  Reason: %s\n\n"
                "The job's interconnect cannot be switched while it runs.\n",
                reason);
    }
}

void kw_shim_arm(enum kw_ucp_side side, const char *why_not) {
    refusal = why_not;
    kw_steps_begin(side == KW_UCP_FABRIC ? KW_ATTACHED : KW_DETACHED, refusal);
    armed = true;
    finished = false;
    kw_executor_attention();
}

/* Has the program left MPI_Init? For any thread. */
static bool is_initialized(void) {
    int (*initialized)(int *) = NULL;
    int yes = 0;

    *(void **)&initialized = dlsym(RTLD_DEFAULT, "MPI_Initialized");
    return initialized == NULL || (initialized(&yes) == 0 && yes);
}

/* Where MPI may be in another thread than the one that calls it first, a poke could enter it
 * twice. */
static void poke(void) {
    int (*query)(int *) = NULL;
    int provided = 0;

    *(void **)&query = dlsym(RTLD_DEFAULT, "MPI_Query_thread");
    if (query != NULL && query(&provided) == 0 && provided <= 1 /* MPI_THREAD_FUNNELED */) {
        kw_poke();
    }
}

static void nobody(void) {
}

void kw_shim_begin_once(void) {
    const char *agent = getenv("KAWARIMI_UCP_AGENT");
    struct kw_hello hello = {
        .jobid = jobid, .vpid = vpid, .ranks = ranks, .local_ranks = local_ranks, .pid = getpid()};
    int rc;

    if (!armed) {
        return;
    }
    armed = false;
    snprintf(hello.fabric, sizeof hello.fabric, "%s", kw_side_name(KW_UCP_FABRIC));
    snprintf(hello.fallback, sizeof hello.fallback, "%s", kw_side_name(KW_UCP_FALLBACK));
    kw_steps_describe(&hello);
    kw_program_begin(refusal);
    kw_poke_start();
    kw_link_wait_for(is_initialized);
    rc = EINVAL;
    if (agent != NULL) {
        rc = kw_link_start(agent, &hello, refusal == NULL ? kw_executor_attention : nobody, poke);
    }
    if (rc != 0) {
        kw_shim_refuse("the connection to the guest agent could not be prepared");
    }
}

void kw_shim_finish(void) {
    uint64_t ends = kw_clock() + FINISH_DEADLINE_NS;

    if (finished) {
        return;
    }
    finished = true;
    kw_program_end();
    while ((kw_state() == KW_CROSSING || kw_state() == KW_HELD) && kw_clock() < ends) {
        kw_kind_progress();
        sched_yield();
    }
    kw_executor_stop();
    kw_link_stop();
    kw_poke_stop();
    kw_spare_end();
    (void)kw_swap_back_part();
}

const char *kw_kind_refusal(void) {
    if (kw_endpoints_foreign()) {
        return "the program is connected to another job (spawn or connect), or was, or to a "
               "process without the shim: Open MPI keeps the connections until MPI_Finalize";
    }
    if (kw_contexts_foreign() > 0) {
        return "the program uses UCX beside its messages too (a window of osc/ucx): start it with "
               "--mca osc ^ucx";
    }
    return NULL;
}
