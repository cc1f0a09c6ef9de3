#include "datatype.h"

#include <stdlib.h>
#include <string.h>

/* The generic datatypes that exist: UCX tells nobody what it was told of them. */
struct generic {
    struct generic *next;
    ucp_datatype_t datatype;
    ucp_generic_dt_ops_t ops;
    void *context;
};
static struct generic *generics;

/* What UCX packs or unpacks with, around the program's own. */
struct state {
    const struct generic *generic;
    void *program;
};

static struct kw_slot *expecting; /* the receive that UCX is being given, or NULL */
static const void *watched;       /* the state whose end is to be noticed, or NULL */

static void *start_pack(void *context, const void *buffer, size_t count) {
    const struct generic *generic = context;
    struct state *state = malloc(sizeof *state);

    if (state == NULL) {
        abort(); /* UCX knows no failure here */
    }
    *state = (struct state){generic, generic->ops.start_pack(generic->context, buffer, count)};
    return state;
}

static void *start_unpack(void *context, void *buffer, size_t count) {
    const struct generic *generic = context;
    struct state *state = malloc(sizeof *state);

    if (state == NULL) {
        abort(); /* likewise */
    }
    *state = (struct state){generic, generic->ops.start_unpack(generic->context, buffer, count)};
    if (expecting != NULL) {
        expecting->unpacking = state;
    }
    return state;
}

static size_t packed_size(void *opaque) {
    const struct state *state = opaque;

    return state->generic->ops.packed_size(state->program);
}

static size_t pack(void *opaque, size_t offset, void *to, size_t most) {
    const struct state *state = opaque;

    return state->generic->ops.pack(state->program, offset, to, most);
}

static ucs_status_t unpack(void *opaque, size_t offset, const void *from, size_t length) {
    const struct state *state = opaque;

    return state->generic->ops.unpack(state->program, offset, from, length);
}

static void finish(void *opaque) {
    struct state *state = opaque;

    if (watched == state) {
        watched = NULL;
    }
    state->generic->ops.finish(state->program);
    free(state);
}

static const ucp_generic_dt_ops_t operations = {
    .start_pack = start_pack,
    .start_unpack = start_unpack,
    .packed_size = packed_size,
    .pack = pack,
    .unpack = unpack,
    .finish = finish,
};

KW_EXPORT ucs_status_t ucp_dt_create_generic(const ucp_generic_dt_ops_t *ops, void *context,
                                             ucp_datatype_t *result) {
    struct generic *generic = malloc(sizeof *generic);
    ucs_status_t status;

    kw_real_find();
    if (generic == NULL) {
        return UCS_ERR_NO_MEMORY;
    }
    status = kw_real.ucp_dt_create_generic(&operations, generic, result);
    if (status != UCS_OK) {
        free(generic);
        return status;
    }
    *generic = (struct generic){generics, *result, *ops, context};
    generics = generic;
    return UCS_OK;
}

KW_EXPORT void ucp_dt_destroy(ucp_datatype_t datatype) {
    struct generic **link = &generics;

    kw_real_find();
    kw_real.ucp_dt_destroy(datatype);
    while (*link != NULL && (*link)->datatype != datatype) {
        link = &(*link)->next;
    }
    if (*link != NULL) {
        struct generic *generic = *link;

        *link = generic->next;
        free(generic);
    }
}

static const struct generic *generic_of(ucp_datatype_t datatype) {
    const struct generic *generic = generics;

    while (generic != NULL && generic->datatype != datatype) {
        generic = generic->next;
    }
    return generic;
}

/* ucp_dt_make_contig() keeps an element's size above the bits of the class. */
static size_t contiguous_size(ucp_datatype_t datatype) {
    return datatype >> UCP_DATATYPE_SHIFT;
}

ucs_status_t kw_datatype_unpack(const struct kw_slot *receive, const void *bytes, size_t length) {
    const struct generic *generic;
    ucs_status_t status;
    void *state;

    if (!kw_datatype_is_generic(receive->datatype)) {
        if (length > receive->count * contiguous_size(receive->datatype)) {
            return UCS_ERR_MESSAGE_TRUNCATED;
        }
        if (length > 0) { /* a receive of nothing may have no buffer */
            memcpy(receive->buffer, bytes, length);
        }
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
    const struct generic *generic =
        kw_datatype_is_generic(slot->datatype) ? generic_of(slot->datatype) : NULL;

#ifdef KW_ABLATE_PIN
    return;
#endif
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

void kw_datatype_expect(struct kw_slot *receive) {
    expecting = receive;
}

void *kw_datatype_watch(const struct kw_slot *receive) {
    watched = kw_datatype_is_generic(receive->datatype) ? receive->unpacking : NULL;
    return receive->unpacking;
}

void kw_datatype_drop(void *state) {
#ifndef KW_ABLATE_DROP /* tests/ompi shows what it costs */
    if (watched != NULL && watched == state) {
        finish(state);
    }
#endif
    watched = NULL;
}
