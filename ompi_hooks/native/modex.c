#include "modex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ompi/proc/proc.h"
#include "opal/dss/dss.h"
#include "opal/mca/pmix/pmix.h"

/* One published value. */
struct value {
    struct value *next;
    struct kw_blob blob;
    unsigned char bytes[];
};

static struct value *captured; /* of this process, by its last opening of the fabric */
static bool capture_failed;
static struct value *stored; /* of the peers */

static opal_pmix_base_module_put_fn_t original_put;
static opal_pmix_base_module_get_fn_t original_get;

static void values_free(struct value **list) {
    while (*list != NULL) {
        struct value *next = (*list)->next;

        free(*list);
        *list = next;
    }
}

static struct value *value_make(const struct kw_blob *blob, const void *bytes) {
    struct value *value = malloc(sizeof *value + blob->size);

    if (value != NULL) {
        value->next = NULL;
        value->blob = *blob;
        if (blob->size > 0) {
            memcpy(value->bytes, bytes, blob->size);
        }
    }
    return value;
}

/* opal/mca/pmix/pmix.h: OPAL_MODEX_SEND puts a byte object under the component's name. */
static int capturing_put(opal_pmix_scope_t scope, opal_value_t *published) {
    const opal_process_name_t *me = &ompi_proc_local_proc->super.proc_name;
    struct kw_blob blob = {.jobid = me->jobid, .vpid = me->vpid};
    struct value *value;

    if (published->type != OPAL_BYTE_OBJECT) {
        return original_put(scope, published);
    }
    blob.size = (uint32_t)published->data.bo.size;
    if (snprintf(blob.key, sizeof blob.key, "%s", published->key) >= (int)sizeof blob.key ||
        blob.size > KW_MAX_MESSAGE) {
        capture_failed = true;
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    value = value_make(&blob, published->data.bo.bytes);
    if (value == NULL) {
        capture_failed = true;
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    value->next = captured;
    captured = value;
    return OPAL_SUCCESS;
}

void kw_modex_capture_begin(void) {
    values_free(&captured);
    capture_failed = false;
    original_put = opal_pmix.put;
    opal_pmix.put = capturing_put;
}

void kw_modex_capture_end(void) {
    opal_pmix.put = original_put;
}

int kw_modex_append_captured(struct kw_message *message) {
    size_t before = message->size;
    int count = 0;

    for (const struct value *value = captured; value != NULL; value = value->next) {
        if (!kw_message_append_blob(message, &value->blob, value->bytes)) {
            message->size = before;
            return -1;
        }
        count++;
    }
    return capture_failed ? -1 : count;
}

static struct value **stored_find(uint32_t jobid, uint32_t vpid, const char *key) {
    struct value **link = &stored;

    while (*link != NULL && ((*link)->blob.jobid != jobid || (*link)->blob.vpid != vpid ||
                             strcmp((*link)->blob.key, key) != 0)) {
        link = &(*link)->next;
    }
    return link;
}

/* The caller of get owns the value and its bytes (OPAL_MODEX_RECV_STRING). */
static int serving_get(const opal_process_name_t *process, const char *key, opal_list_t *info,
                       opal_value_t **result) {
    const struct value *value = *stored_find(process->jobid, process->vpid, key);
    opal_value_t *served;

    if (value == NULL) {
        return original_get(process, key, info, result);
    }
    served = OBJ_NEW(opal_value_t);
    if (served == NULL) {
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    served->key = strdup(key);
    served->type = OPAL_BYTE_OBJECT;
    served->data.bo.size = (int32_t)value->blob.size;
    served->data.bo.bytes = malloc(value->blob.size + 1);
    if (served->key == NULL || served->data.bo.bytes == NULL) {
        OBJ_RELEASE(served);
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    memcpy(served->data.bo.bytes, value->bytes, value->blob.size);
    *result = served;
    return OPAL_SUCCESS;
}

int kw_modex_store(const struct kw_blob *blob) {
    struct value **link = stored_find(blob->jobid, blob->vpid, blob->key);
    struct value *fresh = value_make(blob, blob + 1);

    if (fresh == NULL) {
        return OPAL_ERR_OUT_OF_RESOURCE;
    }
    if (*link != NULL) {
        struct value *old = *link;

        fresh->next = old->next;
        free(old);
    }
    *link = fresh;
    if (opal_pmix.get != serving_get) {
        original_get = opal_pmix.get;
        opal_pmix.get = serving_get;
    }
    return OPAL_SUCCESS;
}

void kw_modex_close(void) {
    if (opal_pmix.get == serving_get) {
        opal_pmix.get = original_get;
    }
    values_free(&captured);
    values_free(&stored);
}
