#include "btl_steps.h"

#include "ompi_config.h"

#include "counters.h"
#include "drain.h"
#include "fabric.h"
#include "kind.h"
#include "r2.h"
#include "program.h"
#include "routes.h"
#include "status.h"

const char *kw_kind_refusal(void) {
    /* Also after MPI_Comm_disconnect: Open MPI 4.1 keeps the other job's processes, and their
     * endpoints on the fabric, until MPI_Finalize. */
    if (kw_peers_of_other_jobs()) {
        return "the program is connected to another job (spawn or connect), or was: Open MPI keeps "
               "the connections until MPI_Finalize";
    }
    return kw_status_windows_refusal();
}

static const char *fallback_make_ready(void) {
    const char *failed = kw_peers_refresh();

    if (failed == NULL) {
        failed = kw_routes_reach_fallback();
    }
    return failed != NULL ? failed : kw_routes_build(KW_FALLBACK);
}

const char *kw_fallback_select(void) {
    const char *failed = fallback_make_ready();

    if (failed == NULL) {
        kw_side_select(KW_FALLBACK);
    }
    return failed;
}

bool kw_fabric_leave_part(void) {
    if (!kw_fabric_closing()) {
        kw_r2_withhold_fabric();
        kw_drain_tend();
        kw_drain_release_registrations();
        kw_routes_drop_fabric();
    }
    if (!kw_fabric_close_part()) {
        return false;
    }
    kw_state_set(KW_DETACHED);
    return true;
}

void kw_fabric_leave(void) {
    while (!kw_fabric_leave_part()) {
    }
}

/* Every peer reachable on both sides, and r2 makes no new endpoint on the fabric: from the barrier
 * after it on, of any two ranks either both or neither have an endpoint there. */
enum kw_outcome kw_step_prepare(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_PREPARED || kw_state() == KW_DRAINING) {
        return KW_OK;
    }
    if (kw_state() != KW_ATTACHED) {
        return kw_not_in_this_state(result);
    }
    result->text = kw_kind_refusal();
    if (result->text != NULL) {
        return KW_REFUSED;
    }
    result->text = fallback_make_ready();
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_r2_withhold_fabric();
    kw_state_set(KW_PREPARED);
    return KW_OK;
}

enum kw_outcome kw_step_select(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_DRAINING) {
        return KW_OK;
    }
    if (kw_state() != KW_PREPARED) {
        return kw_not_in_this_state(result);
    }
    kw_side_select(KW_FALLBACK);
    kw_state_set(KW_DRAINING);
    kw_drain_tend();
    return KW_OK;
}

/* The reply's counters are this step's product. */
enum kw_outcome kw_step_drain(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() != KW_DRAINING) {
        return kw_not_in_this_state(result);
    }
    kw_drain_tend();
    return KW_OK;
}

enum kw_outcome kw_step_fini(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_DETACHED) {
        return KW_OK;
    }
    if (kw_state() == KW_ATTACHED || kw_state() == KW_PREPARED) {
        return kw_not_in_this_state(result);
    }
    if (!kw_fabric_closing() &&
        (kw_counters_of(kw_fabric_component()).outstanding > 0 || kw_drain_pending() > 0)) {
        result->text = "operations on the fabric are still outstanding";
        return KW_BUSY;
    }
    result->unfinished = !kw_fabric_leave_part();
    if (!result->unfinished) {
        kw_program_switched(kw_fabric_fallback_name());
    }
    return KW_OK;
}

/* Draining has an intact fabric to go back to; a fabric that carries nothing yet is closed. */
enum kw_outcome kw_step_abort(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    switch (kw_state()) {
    case KW_ATTACHED:
    case KW_DETACHED:
        return KW_OK;
    case KW_OPENED:
    case KW_CONNECTED:
        result->text = kw_kind_refusal();
        if (result->text != NULL) {
            return KW_REFUSED;
        }
        result->text = kw_fallback_select();
        if (result->text != NULL) {
            return KW_NO_PATH;
        }
        kw_fabric_leave();
        return KW_OK;
    case KW_DRAINING:
        result->text = kw_routes_build(KW_FABRIC);
        if (result->text != NULL) {
            return KW_FAILED;
        }
        kw_side_select(KW_FABRIC);
        kw_state_set(KW_PREPARED);
        break;
    case KW_PREPARED:
        break;
    case KW_HELD:
    case KW_CROSSING:
        return kw_not_in_this_state(result);
    }
    if (kw_r2_offer_fabric() != OMPI_SUCCESS) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    kw_state_set(KW_ATTACHED);
    return KW_OK;
}
