#include "fabric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counters.h"
#include "interfaces.h"
#include "layout.h"
#include "modex.h"
#include "openib.h"
#include "opal/class/opal_bitmap.h"
#include "opal/mca/base/mca_base_component_repository.h"
#include "peers.h"
#include "r2.h"
#include "routes.h"
#include "verbs_reap.h"

static char fabric_name[MCA_BASE_MAX_COMPONENT_NAME_LEN + 1];
static char fallback_name[MCA_BASE_MAX_COMPONENT_NAME_LEN + 1];

/* Invariant: not NULL exactly while modules of the fabric are in mca_btl_base_modules_initialized. */
static mca_btl_base_component_t *fabric;

/* Between two parts of closing: the component whose endpoints are gone. Between two parts of opening:
 * the component that has not looked for devices. NULL at all other times. */
static mca_btl_base_component_t *closing, *loaded;

void kw_fabric_set(const char *name, const char *fallback) {
    mca_btl_base_selected_module_t *selected;

    snprintf(fabric_name, sizeof fabric_name, "%s", name);
    snprintf(fallback_name, sizeof fallback_name, "%s", fallback);
    fabric = NULL;
    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        mca_btl_base_component_t *component = selected->btl_component;

        if (strcmp(component->btl_version.mca_component_name, fabric_name) == 0) {
            fabric = component;
        }
    }
}

const char *kw_fabric_name(void) {
    return fabric_name;
}

const char *kw_fabric_fallback_name(void) {
    return fallback_name;
}

mca_btl_base_component_t *kw_fabric_component(void) {
    return fabric;
}

bool kw_fabric_has(const mca_btl_base_module_t *module) {
    return fabric != NULL && module->btl_component == fabric;
}

bool kw_fabric_replaces(const mca_btl_base_module_t *module) {
    return strcmp(module->btl_component->btl_version.mca_component_name, fallback_name) == 0;
}

bool kw_fabric_is_module(const void *pointer) {
    mca_btl_base_selected_module_t *selected;

    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        if (selected->btl_module == pointer) {
            return kw_fabric_has(selected->btl_module);
        }
    }
    return false;
}

static mca_base_component_repository_item_t *repository_item(void) {
    mca_base_component_repository_item_t *item;
    opal_list_t *items = NULL;

    if (mca_base_component_repository_get_components(&opal_btl_base_framework, &items) !=
            OPAL_SUCCESS ||
        items == NULL) {
        return NULL;
    }
    OPAL_LIST_FOREACH(item, items, mca_base_component_repository_item_t) {
        if (strcmp(item->ri_name, fabric_name) == 0) {
            return item;
        }
    }
    return NULL;
}

/* Is a component in an MCA selection list such as "a,b" or "^a,b"? */
static bool selected_by(const char *selection, const char *name) {
    bool inverted, found = false;
    char *list, *rest, *word;

    if (selection == NULL || selection[0] == 0) {
        return true;
    }
    inverted = selection[0] == '^';
    list = strdup(selection + (inverted ? 1 : 0));
    for (word = list != NULL ? strtok_r(list, ",", &rest) : NULL; word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        found |= strcmp(word, name) == 0;
    }
    free(list);
    return found != inverted;
}

const char *kw_fabric_check(void) {
    if (!selected_by(opal_btl_base_framework.framework_selection, fabric_name)) {
        return "the fabric's BTL is excluded by this job's own MCA parameter btl";
    }
    if (repository_item() == NULL) {
        return "this Open MPI has no loadable component of the fabric's name";
    }
    return NULL;
}

/* Take a component out of the framework, close it and unload it. `opened` says whether its open
 * function has run. */
static void component_drop(mca_btl_base_component_t *component, bool opened) {
    const mca_base_component_t *base = &component->btl_version;
    int output = opal_btl_base_framework.framework_output;
    mca_base_component_list_item_t *item, *next;

    OPAL_LIST_FOREACH_SAFE(item, next, &opal_btl_base_framework.framework_components,
                           mca_base_component_list_item_t) {
        if (item->cli_component == base) {
            opal_list_remove_item(&opal_btl_base_framework.framework_components, &item->super);
            OBJ_RELEASE(item);
        }
    }
    if (opened) {
        mca_base_component_close(base, output);
    } else {
        mca_base_component_unload(base, output);
    }
    kw_verbs_reap();
}

static void endpoints_delete(void) {
    size_t len;
    struct kw_peer_state *peers = kw_peers(&len);

    for (size_t p = 0; p < len; p++) {
        for (size_t i = 0; i < peers[p].paths_len; i++) {
            struct kw_path *path = &peers[p].paths[i];

            if (kw_fabric_has(path->module)) {
                path->module->btl_del_procs(path->module, 1, (opal_proc_t **)&peers[p].proc,
                                            &path->endpoint);
            }
        }
    }
    kw_paths_forget(fabric);
}

static void modules_finalize(void) {
    mca_btl_base_selected_module_t *selected, *next;

    OPAL_LIST_FOREACH_SAFE(selected, next, &mca_btl_base_modules_initialized,
                           mca_btl_base_selected_module_t) {
        if (selected->btl_component == fabric) {
            opal_list_remove_item(&mca_btl_base_modules_initialized, &selected->super);
            selected->btl_module->btl_finalize(selected->btl_module);
            OBJ_RELEASE(selected);
        }
    }
}

bool kw_fabric_closing(void) {
    return closing != NULL;
}

bool kw_fabric_close_part(void) {
    mca_btl_base_component_t *component = closing;

    if (component == NULL && fabric == NULL) {
        return true;
    }
    if (component == NULL) {
        endpoints_delete();
        kw_r2_progress_remove(fabric);
        closing = fabric;
        return false;
    }
    if (fabric != NULL) {
        modules_finalize();
        kw_counters_forget(fabric);
        fabric = NULL;
        return false;
    }
    closing = NULL;
    component_drop(component, true);
    return true;
}

/* Load the DSO, register its parameters and open it, as mca_base_framework_components_register and
 * _open do. Sets *result on success only. */
static int component_load(mca_btl_base_component_t **result) {
    mca_base_component_repository_item_t *item = repository_item();
    mca_btl_base_component_t *component;
    int rc;

    if (item == NULL) {
        return OMPI_ERR_NOT_AVAILABLE;
    }
    rc = mca_base_component_repository_open(&opal_btl_base_framework, item);
    if (rc != OPAL_SUCCESS) {
        return rc;
    }
    component = (mca_btl_base_component_t *)item->ri_component_struct;
    if (component->btl_version.mca_register_component_params != NULL) {
        rc = component->btl_version.mca_register_component_params();
    }
    if (rc == OPAL_SUCCESS && component->btl_version.mca_open_component != NULL) {
        rc = component->btl_version.mca_open_component();
    }
    if (rc != OPAL_SUCCESS) {
        component_drop(component, false);
        return rc;
    }
    *result = component;
    return OPAL_SUCCESS;
}

/* Make one module known to the framework, to ob1 and to the counters. */
static int module_adopt(mca_btl_base_component_t *component, mca_btl_base_module_t *module) {
    mca_btl_base_selected_module_t *selected = OBJ_NEW(mca_btl_base_selected_module_t);
    int rc;

    if (selected == NULL) {
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    selected->btl_component = component;
    selected->btl_module = module;
    opal_list_append(&mca_btl_base_modules_initialized, &selected->super);
    rc = kw_counters_attach(module);
    if (rc == OPAL_SUCCESS) {
        rc = kw_counters_register_callbacks(module);
    }
    if (rc == OPAL_SUCCESS && module->btl_register_error != NULL) {
        rc = module->btl_register_error(module, kw_pml.error_handler);
    }
    return rc;
}

bool kw_fabric_loaded(void) {
    return loaded != NULL;
}

int kw_fabric_load(void) {
    kw_interfaces_refresh();
    return component_load(&loaded);
}

int kw_fabric_open(void) {
    mca_btl_base_component_t *component = loaded;
    mca_btl_base_module_t **modules;
    int rc = OPAL_SUCCESS, len = 0;

    loaded = NULL;
    kw_openib_fix_device();
    kw_modex_capture_begin();
    modules = component->btl_init(&len, false, opal_using_threads());
    kw_modex_capture_end();
    if (modules == NULL || len == 0) {
        free(modules);
        component_drop(component, true);
        return OMPI_ERR_NOT_FOUND;
    }
    fabric = component;
    /* Every module is adopted even after a failure, so that closing finds and finalizes them. */
    for (int i = 0; i < len; i++) {
        int adopted = module_adopt(component, modules[i]);

        rc = rc == OPAL_SUCCESS ? adopted : rc;
    }
    free(modules);
    if (rc == OPAL_SUCCESS) {
        rc = kw_r2_progress_add(component);
    }
    if (rc != OPAL_SUCCESS) {
        while (!kw_fabric_close_part()) {
        }
    }
    return rc;
}

/* Make the endpoints of one module. All processes of the job in one call and in order, this one
 * included: openib resizes its completion queues with each call, and vader takes the position for
 * the local rank. The endpoint to this process itself is deleted again, as r2 does where `self` is
 * more exclusive. */
static const char *module_connect(mca_btl_base_module_t *module) {
    size_t procs_len = 0, peers_len;
    ompi_proc_t **procs = ompi_proc_world(&procs_len); /* retains none of them */
    struct mca_btl_base_endpoint_t **endpoints = calloc(procs_len + 1, sizeof *endpoints);
    struct kw_peer_state *peers = kw_peers(&peers_len);
    const char *failed = procs == NULL || endpoints == NULL ? "no memory for endpoints" : NULL;
    opal_bitmap_t reachable;

    OBJ_CONSTRUCT(&reachable, opal_bitmap_t);
    if (failed == NULL && opal_bitmap_init(&reachable, (int)procs_len) != OPAL_SUCCESS) {
        failed = "no memory for endpoints";
    }
    if (failed == NULL && module->btl_add_procs(module, procs_len, (opal_proc_t **)procs, endpoints,
                                                &reachable) != OPAL_SUCCESS) {
        failed = "the fabric's module refused its peers";
    }
    for (size_t i = 0; failed == NULL && i < procs_len; i++) {
        if (endpoints[i] == NULL || !opal_bitmap_is_set_bit(&reachable, (int)i)) {
            continue;
        }
        if (procs[i] == ompi_proc_local_proc) {
            module->btl_del_procs(module, 1, (opal_proc_t **)&procs[i], &endpoints[i]);
            continue;
        }
        for (size_t p = 0; p < peers_len; p++) {
            if (peers[p].proc == procs[i] &&
                kw_path_add(&peers[p], module, endpoints[i]) != OMPI_SUCCESS) {
                failed = "no memory for endpoints";
            }
        }
    }
    OBJ_DESTRUCT(&reachable);
    free(procs);
    free(endpoints);
    return failed;
}

const char *kw_fabric_connect(void) {
    mca_btl_base_selected_module_t *selected;

    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        if (kw_fabric_has(selected->btl_module)) {
            const char *failed = module_connect(selected->btl_module);

            if (failed != NULL) {
                return failed;
            }
        }
    }
    return NULL;
}
