#include "r2.h"

#include <stdlib.h>
#include <string.h>

#include "fabric.h"
#include "layout.h"
#include "opal/runtime/opal_progress.h"
#include "peers.h"

bool kw_r2_is_self(const mca_btl_base_module_t *module) {
    return strcmp(module->btl_component->btl_version.mca_component_name, "self") == 0;
}

int kw_r2_progress_list(mca_btl_base_component_t *component) {
    struct kw_r2 *r2 = kw_pml.r2;
    mca_btl_base_component_progress_fn_t *grown;

    for (size_t i = 0; i < r2->num_btl_progress; i++) {
        if (r2->btl_progress[i] == component->btl_progress) {
            return OMPI_SUCCESS;
        }
    }
    if (component->btl_progress == NULL) {
        return OMPI_SUCCESS;
    }
    grown = realloc(r2->btl_progress, (r2->num_btl_progress + 1) * sizeof *grown);
    if (grown == NULL) {
        return OMPI_ERR_OUT_OF_RESOURCE;
    }
    r2->btl_progress = grown;
    r2->btl_progress[r2->num_btl_progress++] = component->btl_progress;
    return OMPI_SUCCESS;
}

static int by_falling_exclusivity(const void *a, const void *b) {
    uint32_t left = (*(mca_btl_base_module_t *const *)a)->btl_exclusivity;
    uint32_t right = (*(mca_btl_base_module_t *const *)b)->btl_exclusivity;

    return left > right ? -1 : left < right ? 1 : 0;
}

int kw_r2_offer_fabric(void) {
    size_t all = opal_list_get_size(&mca_btl_base_modules_initialized), len = 0;
    mca_btl_base_module_t **modules =
        realloc(kw_pml.r2->btl_modules, (all + 1) * sizeof *modules);
    mca_btl_base_selected_module_t *selected;

    if (modules == NULL) {
        return OMPI_ERR_OUT_OF_RESOURCE;
    }
    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        modules[len++] = selected->btl_module;
    }
    qsort(modules, len, sizeof *modules, by_falling_exclusivity);
    kw_pml.r2->btl_modules = modules;
    kw_pml.r2->num_btl_modules = len;
    return OMPI_SUCCESS;
}

void kw_r2_withhold_fabric(void) {
    size_t kept = 0;

    for (size_t i = 0; i < kw_pml.r2->num_btl_modules; i++) {
        mca_btl_base_module_t *module = kw_pml.r2->btl_modules[i];

        if (!kw_fabric_has(module)) {
            kw_pml.r2->btl_modules[kept++] = module;
        }
    }
    kw_pml.r2->num_btl_modules = kept;
}

int kw_r2_progress_add(mca_btl_base_component_t *component) {
    int rc = kw_r2_progress_list(component);

    if (rc != OMPI_SUCCESS || component->btl_progress == NULL) {
        return rc;
    }
    return opal_progress_register(component->btl_progress);
}

void kw_r2_progress_remove(mca_btl_base_component_t *component) {
    struct kw_r2 *r2 = kw_pml.r2;

    if (component->btl_progress == NULL) {
        return;
    }
    opal_progress_unregister(component->btl_progress);
    for (size_t i = 0; i < r2->num_btl_progress; i++) {
        if (r2->btl_progress[i] == component->btl_progress) {
            r2->btl_progress[i] = r2->btl_progress[--r2->num_btl_progress];
            return;
        }
    }
}

static bool array_names(const mca_bml_base_btl_array_t *array,
                        const mca_btl_base_component_t *component) {
    for (size_t i = 0; i < array->arr_size; i++) {
        if (array->bml_btls[i].btl->btl_component == component) {
            return true;
        }
    }
    return false;
}

/* Does any peer's published array name a module of this component? */
static bool component_in_use(const mca_btl_base_component_t *component) {
    size_t len;
    const struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        if (array_names(&peers[p].bml->btl_send, component) ||
            array_names(&peers[p].bml->btl_rdma, component)) {
            return true;
        }
    }
    return false;
}

void kw_r2_progress_rank(void) {
    mca_btl_base_selected_module_t *selected;

    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        mca_btl_base_component_t *component = selected->btl_component;

        if (component->btl_progress == NULL || kw_r2_is_self(selected->btl_module)) {
            continue;
        }
        if (component == kw_fabric_component() || component_in_use(component)) {
            opal_progress_register(component->btl_progress);
        } else {
            opal_progress_register_lp(component->btl_progress);
        }
    }
}
