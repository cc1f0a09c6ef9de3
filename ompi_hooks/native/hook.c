/* mca_hook_kawarimi: the component by which Open MPI loads the shim.
 *
 * Order (ompi/runtime/ompi_mpi_init.c at v4.1.4): the hook framework opens first; bml opens later and
 * loads the BTLs; ob1 makes r2 select among them and registers its receive callbacks; the first
 * message follows. The counters have to stand before that message, so they are put in place between
 * selection and registration. Everything else waits for the end of MPI_Init. */
#include "ompi_config.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "counters.h"
#include "executor.h"
#include "fabric.h"
#include "layout.h"
#include "link.h"
#include "modex.h"
#include "openib.h"
#include "ompi/mca/bml/base/base.h"
#include "ompi/mca/hook/base/base.h"
#include "ompi/mca/hook/hook.h"
#include "ompi/proc/proc.h"
#include "ompi/runtime/mpiruntime.h"
#include "opal/mca/btl/base/base.h"
#include "opal/runtime/opal_progress.h"
#include "opal/util/proc.h"
#include "opal/util/show_help.h"
#include "peers.h"
#include "poke.h"
#include "program.h"
#include "steps.h"
#include "verbs_reap.h"

/* MCA parameters */
static char *parameter_fabric, *parameter_fallback, *parameter_agent;
static int parameter_ack_timeout;

/* Why the shim stays out of this job altogether; NULL while it does not. */
static const char *unusable;

static mca_base_framework_open_fn_t original_bml_open;
static mca_bml_base_component_init_fn_t original_r2_init;
static bool finalizing;
static bool progressing; /* our progress function is registered */

/* Do messages on this module go beyond the machine's memory? */
static bool leaves_machine(const mca_btl_base_module_t *module) {
    static const char *const local[] = {"self", "sm", "smcuda", "vader"};

    for (size_t i = 0; i < sizeof local / sizeof local[0]; i++) {
        if (strcmp(module->btl_component->btl_version.mca_component_name, local[i]) == 0) {
            return false;
        }
    }
    return true;
}

/* r2 has just let the BTLs look for devices. */
static mca_bml_base_module_t *after_selection(int *priority, bool progress_threads,
                                              bool mpi_threads) {
    mca_bml_base_module_t *bml = original_r2_init(priority, progress_threads, mpi_threads);
    mca_btl_base_selected_module_t *selected;

    /* An openib that found nothing leaks verbs contexts, which would block a later unplugging. */
    kw_verbs_reap();
    if (bml == NULL) {
        return NULL;
    }
    kw_fabric_set(parameter_fabric, parameter_fallback);
    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        mca_btl_base_module_t *module = selected->btl_module;

        if ((kw_fabric_has(module) || leaves_machine(module)) &&
            kw_counters_attach(module) != OPAL_SUCCESS) {
            unusable = "too many BTL modules";
        }
    }
    kw_counters_adopt(bml);
    return bml;
}

/* bml, and with it btl, has just opened its components. */
static int after_bml_open(mca_base_open_flag_t flags) {
    int rc = original_bml_open(flags);
    mca_base_component_list_item_t *item;

    kw_openib_fix_device();
    OPAL_LIST_FOREACH(item, &ompi_bml_base_framework.framework_components,
                      mca_base_component_list_item_t) {
        mca_bml_base_component_t *component = (mca_bml_base_component_t *)item->cli_component;

        if (strcmp(component->bml_version.mca_component_name, "r2") == 0 &&
            component->bml_init != after_selection) {
            original_r2_init = component->bml_init;
            component->bml_init = after_selection;
        }
    }
    return rc;
}

extern ompi_hook_base_component_t mca_hook_kawarimi_component;

static int component_register(void) {
    static const char *const fabric_default = "openib", *const fallback_default = "tcp",
                             *const agent_default = "/run/kawarimi/ranks.sock";
    mca_base_component_t *component = (mca_base_component_t *)&mca_hook_kawarimi_component;
    const struct {
        const char *name, *help, *value;
        char **storage;
    } strings[] = {
        {"fabric", "BTL that a switch leaves and takes again", fabric_default, &parameter_fabric},
        {"fallback", "BTL that carries the job meanwhile", fallback_default, &parameter_fallback},
        {"agent", "Socket of the guest agent", agent_default, &parameter_agent},
    };

    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        *strings[i].storage = (char *)strings[i].value;
        if (mca_base_component_var_register(component, strings[i].name, strings[i].help,
                                            MCA_BASE_VAR_TYPE_STRING, NULL, 0, 0, OPAL_INFO_LVL_4,
                                            MCA_BASE_VAR_SCOPE_READONLY, strings[i].storage) < 0) {
            return OMPI_ERROR;
        }
    }
    parameter_ack_timeout = 0;
    return mca_base_component_var_register(
               component, "ack_timeout",
               "Local acknowledge time-out of openib's rdmacm connections, as the exponent of "
               "4.096 us * 2^n; 0 keeps librdmacm's",
               MCA_BASE_VAR_TYPE_INT, NULL, 0, 0, OPAL_INFO_LVL_6, MCA_BASE_VAR_SCOPE_READONLY,
               &parameter_ack_timeout) < 0
               ? OMPI_ERROR
               : OMPI_SUCCESS;
}

static int component_open(void) {
    unusable = kw_layout_version_check();
    if (unusable == NULL && (parameter_ack_timeout < 0 || parameter_ack_timeout > 31)) {
        unusable = "hook_kawarimi_ack_timeout is not between 0 and 31";
    }
    if (unusable == NULL) {
        kw_verbs_set_ack_timeout(parameter_ack_timeout);
        original_bml_open = ompi_bml_base_framework.framework_open;
        ompi_bml_base_framework.framework_open = after_bml_open;
    }
    return OMPI_SUCCESS;
}

/* Open MPI's low priority progress function. */
static int progress(void) {
    if (OPAL_UNLIKELY(atomic_load_explicit(&kw_executor_needed, memory_order_relaxed) != 0)) {
        kw_executor_serve();
    }
    return 0;
}

static void stop(void) {
    if (progressing) {
        progressing = false;
        opal_progress_unregister(progress);
    }
    kw_executor_stop();
    kw_link_stop();
    kw_poke_stop();
}

static int component_close(void) {
    stop();
    kw_modex_close();
    if (original_bml_open != NULL) {
        ompi_bml_base_framework.framework_open = original_bml_open;
        original_bml_open = NULL;
    }
    return OMPI_SUCCESS;
}

/* MPI_Finalize waits for the other ranks with the progress loop running; the shim serves until the
 * first process is deleted after that. */
static void at_delete(void) {
    if (finalizing) {
        stop();
    }
}

static const mca_btl_base_module_t *module_of(const char *name) {
    mca_btl_base_selected_module_t *selected;

    OPAL_LIST_FOREACH(selected, &mca_btl_base_modules_initialized,
                      mca_btl_base_selected_module_t) {
        if (strcmp(selected->btl_component->btl_version.mca_component_name, name) == 0) {
            return selected->btl_module;
        }
    }
    return NULL;
}

/* Why this job cannot be switched although the shim understands it; NULL if it can. */
static const char *job_refusal(void) {
    if (ompi_mpi_thread_multiple) {
        return "the program asked for MPI_THREAD_MULTIPLE: another thread could be inside the "
               "fabric's BTL when it is closed (mpi4py asks for it, unless "
               "MPI4PY_RC_THREAD_LEVEL=serialized is in the environment)";
    }
    if (kw_pml.ob1->use_all_rdma) {
        return "pml_ob1_use_all_rdma is set: ob1 would start RDMA on a fabric that drains";
    }
    if (strcmp(parameter_fabric, parameter_fallback) == 0) {
        return "fabric and fallback are the same BTL";
    }
    if (module_of(parameter_fallback) == NULL) {
        return "the fallback BTL is not in use in this job: it is unknown, excluded, or found no "
               "interface";
    }
    return kw_fabric_check();
}

/* Where the job begins. r2 gives each peer to the most exclusive of the BTLs that reach it. */
static enum kw_state first_state(void) {
    const mca_btl_base_module_t *fabric = module_of(parameter_fabric);
    const mca_btl_base_module_t *fallback = module_of(parameter_fallback);

    if (fabric == NULL) {
        return KW_DETACHED;
    }
    return fallback == NULL || fabric->btl_exclusivity > fallback->btl_exclusivity ? KW_ATTACHED
                                                                                   : KW_OPENED;
}

/* Say something to the user, once per machine. The text is rendered by Open MPI from our help file,
 * but not sent through its aggregation: with the PMIx of Debian 12, mpirun loses or garbles messages
 * that take that way ("Data unpack would read past end of buffer", orte/util/show_help.c). */
static void help_show(const char *topic, const char *reason) {
    char directory[PATH_MAX];
    char *slash, *text;
    Dl_info self;

    if (opal_process_info.my_local_rank != 0) {
        return;
    }

    /* Open MPI looks for help files where it is installed; ours lies beside the component. */
    if (dladdr(&mca_hook_kawarimi_component, &self) != 0 && self.dli_fname != NULL) {
        snprintf(directory, sizeof directory, "%s", self.dli_fname);
        slash = strrchr(directory, '/');
        if (slash != NULL) {
            *slash = 0;
            opal_show_help_add_dir(directory);
        }
    }
    text = opal_show_help_string("help-hook-kawarimi.txt", topic, true, reason);
    if (text != NULL) {
        fputs(text, stderr);
        free(text);
    }
}

static void dial_agent(void) {
    struct kw_hello hello = {
        .jobid = ompi_proc_local_proc->super.proc_name.jobid,
        .vpid = ompi_proc_local_proc->super.proc_name.vpid,
        .ranks = (uint32_t)ompi_proc_world_size(),
        .local_ranks = (uint32_t)opal_process_info.num_local_peers + 1,
        .pid = getpid(),
    };

    snprintf(hello.fabric, sizeof hello.fabric, "%s", parameter_fabric);
    snprintf(hello.fallback, sizeof hello.fallback, "%s", parameter_fallback);
    kw_steps_describe(&hello);
    /* Where MPI may be in another thread than this one, a poke could enter it twice. */
    if (ompi_mpi_thread_provided <= MPI_THREAD_FUNNELED) {
        kw_poke_start();
    }
    progressing = opal_progress_register_lp(progress) == OPAL_SUCCESS;
    if (!progressing ||
        kw_link_start(parameter_agent, &hello, kw_executor_attention, kw_poke) != 0) {
        stop();
        help_show("no-link", parameter_agent);
    }
}

static void init_bottom(int argc, char **argv, int requested, int *provided) {
    const char *refusal;

    (void)argc;
    (void)argv;
    (void)requested;
    (void)provided;
    if (unusable == NULL) {
        unusable = kw_layout_prove();
    }
    if (unusable != NULL) {
        kw_counters_withdraw();
        kw_program_begin(unusable);
        help_show("unusable", unusable);
        return;
    }
    refusal = job_refusal();
    if (refusal != NULL) {
        /* None of the reasons passes, and with several threads in MPI the counts are not safe. */
        kw_counters_withdraw();
    }
    kw_steps_begin(first_state(), refusal);
    kw_program_begin(refusal);
    kw_peers_watch(at_delete);
    dial_agent();
}

static void finalize_top(void) {
    /* Nobody is told any more: an interpreter that calls MPI_Finalize at its exit is no more. */
    kw_program_end();
    finalizing = true;
}

__attribute__((visibility("default"))) ompi_hook_base_component_t mca_hook_kawarimi_component = {
    .hookm_version =
        {
            OMPI_HOOK_BASE_VERSION_1_0_0,
            .mca_component_name = "kawarimi",
            MCA_BASE_MAKE_VERSION(component, OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION,
                                  OMPI_RELEASE_VERSION),
            .mca_open_component = component_open,
            .mca_close_component = component_close,
            .mca_register_component_params = component_register,
        },
    .hookm_data = {MCA_BASE_METADATA_PARAM_CHECKPOINT},
    .hookm_mpi_init_bottom = init_bottom,
    .hookm_mpi_finalize_top = finalize_top,
};
