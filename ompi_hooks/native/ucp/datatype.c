#include "datatype.h"

#include <stdlib.h>
#include <string.h>

/* The generic datatypes that exist: UCX tells nobody what it was told of them. */
static struct generic {
    struct generic *next;
    ucp_datatype_t datatype;
    ucp_generic_dt_ops_t ops;
    void *context;
} *generics;

KW_EXPORT ucs_status_t ucp_dt_create_generic(const ucp_generic_dt_ops_t *ops, void *context,
                                             ucp_datatype_t *result) {
    struct generic *generic = malloc(sizeof *generic);
    ucs_status_t status;

    kw_real_find();
    if (generic == NULL) {
        return UCS_ERR_NO_MEMORY;
    }
    status = kw_real.ucp_dt_create_generic(ops, context, result);
    if (status != UCS_OK) {
        free(generic);
        return status;
    }
    *generic = (struct generic){generics, *result, *ops, context};
    generics = generic;
    return UCS_OK;
}

KW_EXPORT void ucp_dt_destroy(ucp_datatype_t datatype) {
    kw_real_find();
    for (struct generic **link = &generics; *link != NULL; link = &(*link)->next) {
        struct generic *generic = *link;

        if (generic->datatype == datatype) {
            *link = generic->next;
            free(generic);
            break;
        }
    }
    kw_real.ucp_dt_destroy(datatype);
}

static const struct generic *generic_of(ucp_datatype_t datatype) {
    const struct generic *generic = generics;

    while (generic != NULL && generic->datatype != datatype) {
        generic = generic->next;
    }
    return generic;
}

static bool is_generic(ucp_datatype_t datatype) {
    return (datatype & UCP_DATATYPE_CLASS_MASK) == UCP_DATATYPE_GENERIC;
}

/* ucp_dt_make_contig() keeps an element's size above the bits of the class. */
static size_t contiguous_size(ucp_datatype_t datatype) {
    return datatype >> UCP_DATATYPE_SHIFT;
}

ucs_status_t kw_datatype_unpack(const struct kw_slot *receive, const void *bytes, size_t length) {
    const struct generic *generic;
    ucs_status_t status;
    void *state;

    if (!is_generic(receive->datatype)) {
        if (length > receive->count * contiguous_size(receive->datatype)) {
            return UCS_ERR_MESSAGE_TRUNCATED;
        }
        memcpy(receive->buffer, bytes, length);
        return UCS_OK;
    }
    generic = generic_of(receive->datatype);
    if (generic == NULL) {
        return UCS_ERR_INVALID_PARAM;
    }
    state = generic->ops.start_unpack(generic->context, receive->buffer, receive->count);
    if (length > generic->ops.packed_size(state)) {
        status = UCS_ERR_MESSAGE_TRUNCATED;
    } else {
        status = generic->ops.unpack(state, 0, bytes, length);
    }
    generic->ops.finish(state);
    return status;
}

void kw_datatype_pin(struct kw_slot *slot) {
    const struct generic *generic = is_generic(slot->datatype) ? generic_of(slot->datatype) : NULL;

    if (generic == NULL || slot->pin != NULL) {
        return;
    }
    slot->pin = slot->kind == KW_SEND
                    ? generic->ops.start_pack(generic->context, slot->buffer, slot->count)
                    : generic->ops.start_unpack(generic->context, slot->buffer, slot->count);
}

void kw_datatype_unpin(struct kw_slot *slot) {
    if (slot->pin != NULL) {
        void *state = slot->pin;

        slot->pin = NULL;
        generic_of(slot->datatype)->ops.finish(state);
    }
}
