#include "side.h"

#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longer than any list of transports that means anything. */
enum { TEXT = 256, PREFIX = 64 };

static const struct {
    const char *name, *transports;
} variables[] = {
    [KW_UCP_FABRIC] = {"KAWARIMI_UCP_FABRIC", "KAWARIMI_UCP_FABRIC_TLS"},
    [KW_UCP_FALLBACK] = {"KAWARIMI_UCP_FALLBACK", "KAWARIMI_UCP_FALLBACK_TLS"},
};
static struct {
    char name[TEXT], transports[TEXT];
} sides[2];
static char fallback_devices[TEXT]; /* empty: all */

/* What the program made its context with. */
static unsigned version_major, version_minor;
static ucp_params_t program_params;
static char program_prefix[PREFIX];

/* The configuration that the program has read last: it is changed and released soon after. */
static const ucp_config_t *last_config;
static char last_prefix[PREFIX];

/* Newer headers may have more; what they would mean is not known here. */
#define KNOWN_PARAMS                                                                              \
    (UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_REQUEST_SIZE | UCP_PARAM_FIELD_REQUEST_INIT |     \
     UCP_PARAM_FIELD_REQUEST_CLEANUP | UCP_PARAM_FIELD_TAG_SENDER_MASK |                          \
     UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS |                      \
     UCP_PARAM_FIELD_ESTIMATED_NUM_PPN)

static bool copy(char *to, size_t size, const char *from) {
    return from != NULL && from[0] != 0 && snprintf(to, size, "%s", from) < (int)size;
}

const char *kw_sides_read(void) {
    const char *devices = getenv("KAWARIMI_UCP_FALLBACK_DEVICES");

    for (int side = KW_UCP_FABRIC; side <= KW_UCP_FALLBACK; side++) {
        if (!copy(sides[side].name, TEXT, getenv(variables[side].name)) ||
            !copy(sides[side].transports, TEXT, getenv(variables[side].transports))) {
            return "its environment names no fabric and fallback: start it by 'kawarimi run'";
        }
    }
    if (devices != NULL && devices[0] != 0 && !copy(fallback_devices, TEXT, devices)) {
        return "KAWARIMI_UCP_FALLBACK_DEVICES is too long";
    }
    return NULL;
}

const char *kw_side_name(enum kw_ucp_side side) {
    return sides[side].name;
}

KW_EXPORT ucs_status_t ucp_config_read(const char *prefix, const char *file,
                                       ucp_config_t **config) {
    ucs_status_t status;

    kw_real_find();
    status = kw_real.ucp_config_read(prefix, file, config);
    if (status == UCS_OK && snprintf(last_prefix, PREFIX, "%s", prefix != NULL ? prefix : "") <
                                PREFIX) {
        last_config = *config;
    }
    return status;
}

void kw_side_remember(unsigned major, unsigned minor, const ucp_params_t *params,
                      const ucp_config_t *config) {
    version_major = major;
    version_minor = minor;
    program_params.field_mask = params->field_mask & KNOWN_PARAMS;
    program_params.features = params->features;
    program_params.request_size = params->request_size;
    program_params.request_init = params->request_init;
    program_params.request_cleanup = params->request_cleanup;
    program_params.tag_sender_mask = params->tag_sender_mask;
    program_params.mt_workers_shared = params->mt_workers_shared;
    program_params.estimated_num_eps = params->estimated_num_eps;
    program_params.estimated_num_ppn = params->estimated_num_ppn;
    if (config == last_config && config != NULL) {
        memcpy(program_prefix, last_prefix, PREFIX);
    }
}

/* A setting that this UCX does not know, it ignores. */
void kw_side_configure(ucp_config_t *config, enum kw_ucp_side side) {
    (void)kw_real.ucp_config_modify(config, "TLS", sides[side].transports);
    /* Otherwise even a context without InfiniBand opens /dev/infiniband/rdma_cm. */
    (void)kw_real.ucp_config_modify(config, "SOCKADDR_TLS_PRIORITY", "tcp");
    if (side == KW_UCP_FALLBACK && fallback_devices[0] != 0) {
        (void)kw_real.ucp_config_modify(config, "NET_DEVICES", fallback_devices);
    }
}

ucs_status_t kw_side_open(enum kw_ucp_side side, ucp_context_h *context, bool *present) {
    ucp_config_t *config;
    ucs_status_t status = kw_real.ucp_config_read(program_prefix[0] != 0 ? program_prefix : NULL,
                                                  NULL, &config);

    if (status != UCS_OK) {
        return status;
    }
    kw_side_configure(config, side);
    status = kw_real.ucp_init_version(version_major, version_minor, &program_params, config,
                                      context);
    kw_real.ucp_config_release(config);
    if (status == UCS_OK) {
        *present = kw_side_is_present(side, *context);
    }
    return status;
}

/* UCX's names for several transports at once (ucs/config and uct's aliases), and what they
 * contain. */
static bool transport_matches(const char *alias, const char *transport) {
    static const struct {
        const char *alias, *pattern;
    } table[] = {
        {"ib", "[rud][cd]_*"}, {"rc", "rc_*"},       {"rc_v", "rc_verbs"}, {"rc_x", "rc_mlx5"},
        {"ud", "ud_*"},        {"ud_v", "ud_verbs"}, {"ud_x", "ud_mlx5"},  {"dc", "dc_*"},
        {"dc_x", "dc_mlx5"},   {"sm", "posix"},      {"sm", "sysv"},       {"shm", "posix"},
        {"shm", "sysv"},       {"ib", "dc_*"},
    };

    if (strcmp(alias, "all") == 0 || strcmp(alias, transport) == 0) {
        return true;
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(alias, table[i].alias) == 0 && fnmatch(table[i].pattern, transport, 0) == 0) {
            return true;
        }
    }
    return false;
}

#define RESOURCE_LINE "# resource %*d : md %*d dev %*d flags -- %255[^/ \n]/"

/* The one public way to learn what a context is made of is to have it printed; Open MPI's
 * common/ucx reads the same lines. */
bool kw_side_is_present(enum kw_ucp_side side, ucp_context_h context) {
    char line[TEXT], transport[TEXT], *text = NULL;
    bool present = false;
    size_t size;
    FILE *stream = open_memstream(&text, &size);

    if (stream == NULL) {
        return false;
    }
    kw_real.ucp_context_print_info(context, stream);
    fflush(stream);
    rewind(stream);
    while (!present && fgets(line, sizeof line, stream) != NULL) {
        int found = sscanf(line, RESOURCE_LINE, transport);

        present = found == 1 && transport_matches(sides[side].name, transport);
    }
    fclose(stream);
    free(text);
    return present;
}
