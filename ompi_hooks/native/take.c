#include "btl_steps.h"

#include "ompi_config.h"

#include "fabric.h"
#include "kind.h"
#include "modex.h"
#include "program.h"
#include "r2.h"
#include "routes.h"

static enum kw_outcome fabric_open(struct kw_result *result) {
    int rc;

    if (!kw_fabric_loaded()) {
        result->text = kw_fabric_check();
        if (result->text == NULL) {
            result->text = kw_kind_refusal();
        }
        if (result->text != NULL) {
            return KW_REFUSED;
        }
        rc = kw_fabric_load();
        result->unfinished = rc == OMPI_SUCCESS;
    } else {
        rc = kw_fabric_open();
    }
    if (rc == OMPI_ERR_NOT_FOUND) {
        result->text = "the fabric's BTL found no device that it can use";
        return KW_NO_DEVICE;
    }
    if (rc != OMPI_SUCCESS) {
        result->text = "the fabric's BTL could not be opened";
        return KW_FAILED;
    }
    if (!result->unfinished) {
        kw_state_set(KW_OPENED);
    }
    return KW_OK;
}

enum kw_outcome kw_step_init(const struct kw_incoming *incoming, struct kw_result *result) {
    enum kw_outcome outcome = KW_OK;
    int count;

    (void)incoming;
    if (kw_state() == KW_DETACHED) {
        outcome = fabric_open(result);
    } else if (kw_state() != KW_OPENED) {
        outcome = kw_not_in_this_state(result);
    }
    if (outcome != KW_OK || result->unfinished) {
        return outcome;
    }
    count = kw_modex_append_captured(result->message);
    if (count < 0) {
        kw_fabric_leave();
        result->text = "the fabric's addresses do not fit into a message";
        return KW_FAILED;
    }
    result->blobs = (uint32_t)count;
    return KW_OK;
}

enum kw_outcome kw_step_modex(const struct kw_incoming *incoming, struct kw_result *result) {
    const struct kw_command *command = &incoming->command;

    if (kw_state() != KW_OPENED) {
        return kw_not_in_this_state(result);
    }
    for (const struct kw_blob *blob = kw_blob_next(command, NULL); blob != NULL;
         blob = kw_blob_next(command, blob)) {
        if (kw_modex_store(blob) != OPAL_SUCCESS) {
            result->text = "out of memory";
            return KW_FAILED;
        }
    }
    return KW_OK;
}

enum kw_outcome kw_step_add(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_CONNECTED) {
        return KW_OK;
    }
    if (kw_state() != KW_OPENED) {
        return kw_not_in_this_state(result);
    }
    result->text = kw_peers_refresh();
    if (result->text == NULL) {
        result->text = kw_fabric_connect();
    }
    /* The fallback again, now with the fabric at weight 0: a peer that has passed ENABLE may ask for
     * RDMA over it. */
    if (result->text == NULL) {
        result->text = kw_fallback_select();
    }
    if (result->text == NULL) {
        result->text = kw_routes_build(KW_FABRIC);
    }
    if (result->text != NULL) {
        return KW_NO_PATH;
    }
    kw_state_set(KW_CONNECTED);
    return KW_OK;
}

enum kw_outcome kw_step_enable(const struct kw_incoming *incoming, struct kw_result *result) {
    (void)incoming;
    if (kw_state() == KW_ATTACHED) {
        return KW_OK;
    }
    if (kw_state() != KW_CONNECTED) {
        return kw_not_in_this_state(result);
    }
    if (kw_r2_offer_fabric() != OMPI_SUCCESS) {
        result->text = "out of memory";
        return KW_FAILED;
    }
    kw_side_select(KW_FABRIC);
    kw_state_set(KW_ATTACHED);
    kw_program_switched(kw_fabric_name());
    return KW_OK;
}
