#include "interfaces.h"

#include "ompi_config.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "opal/mca/if/if.h"

static opal_if_t *interface_find(const char *name, int *index_max) {
    opal_if_t *interface, *found = NULL;

    *index_max = 0;
    OPAL_LIST_FOREACH(interface, &opal_if_list, opal_if_t) {
        if (interface->if_index > *index_max) {
            *index_max = interface->if_index;
        }
        if (interface->af_family == AF_INET && strcmp(interface->if_name, name) == 0) {
            found = interface;
        }
    }
    return found;
}

/* The fields that opal/mca/if/posix_ipv4/if_posix.c fills in and that the BTLs read. */
static void interface_update(opal_if_t *interface, const struct ifaddrs *address) {
    const struct sockaddr_in *mask = (const void *)address->ifa_netmask;

    memcpy(&interface->if_addr, address->ifa_addr, sizeof(struct sockaddr_in));
    interface->if_mask = mask != NULL ? (uint32_t)__builtin_popcount(mask->sin_addr.s_addr) : 32;
    interface->if_flags = (int)address->ifa_flags;
    interface->if_kernel_index = (uint16_t)if_nametoindex(address->ifa_name);
}

void kw_interfaces_merge(void) {
    struct ifaddrs *addresses, *address;

    if (getifaddrs(&addresses) != 0) {
        return;
    }
    for (address = addresses; address != NULL; address = address->ifa_next) {
        opal_if_t *interface;
        int index_max;

        if (address->ifa_addr == NULL || address->ifa_addr->sa_family != AF_INET ||
            (address->ifa_flags & IFF_UP) == 0 || (address->ifa_flags & IFF_LOOPBACK) != 0) {
            continue;
        }
        interface = interface_find(address->ifa_name, &index_max);
        if (interface == NULL) {
            interface = OBJ_NEW(opal_if_t);
            if (interface == NULL) {
                break;
            }
            snprintf(interface->if_name, sizeof interface->if_name, "%s", address->ifa_name);
            interface->af_family = AF_INET;
            interface->if_index = index_max + 1;
            opal_list_append(&opal_if_list, &interface->super);
        }
        interface_update(interface, address);
    }
    freeifaddrs(addresses);
}
