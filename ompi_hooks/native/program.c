#include "program.h"

#include "ompi_config.h"

#include <stdio.h>
#include <string.h>

#include "kawarimi_program.h"
#include "ompi/mca/bml/bml.h"
#include "ompi/proc/proc.h"
#include "opal/mca/btl/btl.h"
#include "stall.h"

#define EXPORT __attribute__((visibility("default")))

static const char *refusal = "MPI_Init has not ended";
static bool serving; /* between MPI_Init and MPI_Finalize */

static unsigned deferrals; /* sections that the program is in, one within the other */
static char deferral_reason[KAWARIMI_REASON]; /* of the outermost */

static struct kawarimi_switch last;
static bool untold;
static int (*watcher_schedule)(kawarimi_callback *, void *);
static kawarimi_callback *watcher_callback;
static void *watcher_data;

void kw_program_begin(const char *why_not) {
    refusal = why_not;
    serving = true;
}

void kw_program_end(void) {
    serving = false;
    watcher_schedule = NULL;
}

const char *kw_program_defers(void) {
    return deferrals > 0 ? deferral_reason : NULL;
}

void kw_program_switched(const char *to) {
    last.number++;
    snprintf(last.transport, sizeof last.transport, "%s", to);
    untold = true;
}

bool kw_program_untold(void) {
    return untold;
}

void kw_program_tell(void) {
    struct kw_stall stall = kw_stall_read(KW_STALL_EPOCH);

    untold = false;
    last.stall_total_ns = stall.total;
    last.stall_longest_ns = stall.longest;
    if (watcher_schedule != NULL) {
        watcher_schedule(watcher_callback, watcher_data);
    }
}

EXPORT int kawarimi_program_version(void) {
    return KAWARIMI_PROGRAM_VERSION;
}

EXPORT const char *kawarimi_program_refusal(void) {
    return refusal;
}

/* Add a BTL's name unless it is there; an endpoint may have several modules of one component. */
static void transport_add(struct kawarimi_peer *peer, const char *name) {
    for (uint32_t i = 0; i < peer->transports; i++) {
        if (strcmp(peer->names[i], name) == 0) {
            return;
        }
    }
    if (peer->transports < KAWARIMI_TRANSPORTS) {
        snprintf(peer->names[peer->transports++], KAWARIMI_NAME, "%.*s", KAWARIMI_NAME - 1, name);
    }
}

EXPORT int kawarimi_program_peers(struct kawarimi_peer *peers, int capacity) {
    size_t procs_len = 0;
    /* retains none of them */
    ompi_proc_t **procs = serving ? ompi_proc_get_allocated(&procs_len) : NULL;
    int len = 0;

    for (size_t p = 0; procs != NULL && p < procs_len; p++) {
        const mca_bml_base_endpoint_t *bml =
            procs[p]->proc_endpoints[OMPI_PROC_ENDPOINT_TAG_BML];
        const opal_process_name_t name = procs[p]->super.proc_name;

        if (bml == NULL || procs[p] == ompi_proc_local_proc ||
            name.jobid != ompi_proc_local_proc->super.proc_name.jobid) {
            continue;
        }
        if (len < capacity) {
            struct kawarimi_peer *peer = &peers[len];

            *peer = (struct kawarimi_peer){.rank = (int32_t)name.vpid};
            for (size_t i = 0; i < bml->btl_send.arr_size; i++) {
                const mca_btl_base_module_t *module = bml->btl_send.bml_btls[i].btl;

                transport_add(peer, module->btl_component->btl_version.mca_component_name);
            }
        }
        len++;
    }
    free(procs);
    return len;
}

EXPORT void kawarimi_program_last_switch(struct kawarimi_switch *result) {
    *result = last;
}

EXPORT void kawarimi_program_watch(int (*schedule)(kawarimi_callback *, void *),
                                   kawarimi_callback *callback, void *data) {
    watcher_schedule = schedule;
    watcher_callback = callback;
    watcher_data = data;
}

EXPORT void kawarimi_program_defer(const char *reason) {
    if (deferrals++ == 0) {
        snprintf(deferral_reason, sizeof deferral_reason, "%s", reason);
    }
}

EXPORT void kawarimi_program_allow(void) {
    if (deferrals > 0) {
        deferrals--;
    }
}
