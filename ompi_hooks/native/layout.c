/* The proof by which the shim trusts its private declarations, or refuses to run. */
#include "layout.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>

#include "mpi.h"
#include "ompi/mca/bml/base/base.h"
#include "ompi/mca/pml/base/base.h"

struct kw_pml kw_pml;

#define KW_TEXT_OF(x) #x
#define KW_VERSION_TEXT(major, minor, release) \
    KW_TEXT_OF(major) "." KW_TEXT_OF(minor) "." KW_TEXT_OF(release)
#define KW_BUILT_FOR KW_VERSION_TEXT(OMPI_MAJOR_VERSION, OMPI_MINOR_VERSION, OMPI_RELEASE_VERSION)

const char *kw_layout_version_check(void) {
    char running[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;

    if (strcmp(KW_BUILT_FOR, KW_LAYOUT_VERSIONS) != 0) {
        return "the component was built for Open MPI " KW_BUILT_FOR
               ", whose private layout is not known (known: " KW_LAYOUT_VERSIONS ")";
    }
    if (MPI_Get_library_version(running, &length) != MPI_SUCCESS ||
        strncmp(running, "Open MPI v" KW_BUILT_FOR ",", strlen("Open MPI v" KW_BUILT_FOR ",")) !=
            0) {
        return "the component was built for Open MPI " KW_BUILT_FOR ", and this is another one";
    }
    return NULL;
}

/* The address of an exported object, if its size in the symbol table is what we declared. */
static void *object_of_size(const char *name, size_t size) {
    void *address = dlsym(RTLD_DEFAULT, name);
    const ElfW(Sym) *symbol = NULL;
    Dl_info info;

    if (address == NULL ||
        dladdr1(address, &info, (void **)&symbol, RTLD_DL_SYMENT) == 0 || symbol == NULL ||
        info.dli_saddr != address || symbol->st_size != size) {
        return NULL;
    }
    return address;
}

static bool is_list(opal_list_t *list) {
    return ((opal_object_t *)list)->obj_class == OBJ_CLASS(opal_list_t);
}

/* A free list of elements of the class `name`, of which we declared `size` bytes. */
static bool is_free_list(opal_free_list_t *list, const char *name, size_t size) {
    const opal_class_t *class = dlsym(RTLD_DEFAULT, name);

    return ((opal_object_t *)list)->obj_class == OBJ_CLASS(opal_free_list_t) && class != NULL &&
           list->fl_frag_class == class && class->cls_sizeof == size &&
           list->fl_frag_size >= size && is_list(&list->fl_allocations);
}

/* ob1 registers fields of its struct as MCA parameters: the registry knows where they are. */
static bool is_parameter(const char *name, const void *field) {
    int index = mca_base_var_find("ompi", "pml", "ob1", name);
    const void *storage = NULL;

    return index >= 0 && mca_base_var_get_value(index, &storage, NULL, NULL) == OPAL_SUCCESS &&
           storage == field;
}

static bool functions_find(struct kw_pml *pml) {
    *(void **)&pml->process_pending_packets =
        dlsym(RTLD_DEFAULT, "mca_pml_ob1_process_pending_packets");
    *(void **)&pml->send_process_pending =
        dlsym(RTLD_DEFAULT, "mca_pml_ob1_send_request_process_pending");
    *(void **)&pml->recv_process_pending =
        dlsym(RTLD_DEFAULT, "mca_pml_ob1_recv_request_process_pending");
    *(void **)&pml->rdma_process_pending = dlsym(RTLD_DEFAULT, "mca_pml_ob1_process_pending_rdma");
    *(void **)&pml->error_handler = dlsym(RTLD_DEFAULT, "mca_pml_ob1_error_handler");
    return pml->process_pending_packets != NULL && pml->send_process_pending != NULL &&
           pml->recv_process_pending != NULL && pml->rdma_process_pending != NULL &&
           pml->error_handler != NULL;
}

const char *kw_layout_prove(void) {
    struct kw_pml pml = {0};

    if (strcmp(mca_pml_base_selected_component.pmlm_version.mca_component_name, "ob1") != 0) {
        return "the selected PML is not ob1";
    }
    pml.ob1 = object_of_size("mca_pml_ob1", sizeof *pml.ob1);
    pml.r2 = object_of_size("mca_bml_r2", sizeof *pml.r2);
    if (pml.ob1 == NULL || pml.r2 == NULL) {
        return "ob1 or r2 is absent, or of another size than known";
    }
    if (!is_list(&pml.ob1->pckt_pending) || !is_list(&pml.ob1->send_pending) ||
        !is_list(&pml.ob1->recv_pending) || !is_list(&pml.ob1->rdma_pending) ||
        !is_list(&pml.ob1->non_existing_communicator_pending)) {
        return "ob1's pending queues are not where they should be";
    }
    if (!is_parameter("max_rdma_per_request", &pml.ob1->max_rdma_per_request) ||
        !is_parameter("use_all_rdma", &pml.ob1->use_all_rdma) ||
        !is_parameter("unexpected_limit", &pml.ob1->unexpected_limit)) {
        return "ob1's parameters are not where they should be";
    }
    if (!is_free_list(&pml.ob1->recv_frags, "mca_pml_ob1_recv_frag_t_class",
                      sizeof(struct kw_ob1_recv_frag)) ||
        !is_free_list(&pml.ob1->pending_pckts, "mca_pml_ob1_pckt_pending_t_class",
                      sizeof(struct kw_ob1_pckt_pending)) ||
        !is_free_list(&pml.ob1->send_ranges, "mca_pml_ob1_send_range_t_class",
                      sizeof(struct kw_ob1_send_range)) ||
        !is_free_list(&mca_pml_base_send_requests, "mca_pml_ob1_send_request_t_class",
                      sizeof(struct kw_ob1_send_request))) {
        return "ob1's free lists or their elements are not of the known layout";
    }
    if (!pml.r2->btls_added || pml.r2->num_btl_modules == 0 ||
        mca_bml.bml_component != pml.r2->super.bml_component) {
        return "bml/r2 is not in use";
    }
    if (!functions_find(&pml)) {
        return "ob1 lacks a function that the shim calls";
    }
    kw_pml = pml;
    return NULL;
}
