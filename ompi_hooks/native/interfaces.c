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

/* Of interfaces such as Open MPI lists: up, IPv4, not loopback. */
static bool is_listed(const struct ifaddrs *address) {
    return address->ifa_addr != NULL && address->ifa_addr->sa_family == AF_INET &&
           (address->ifa_flags & IFF_UP) != 0 && (address->ifa_flags & IFF_LOOPBACK) == 0;
}

static void stale_remove(const struct ifaddrs *addresses) {
    opal_if_t *interface, *next;

    OPAL_LIST_FOREACH_SAFE(interface, next, &opal_if_list, opal_if_t) {
        const struct ifaddrs *address = addresses;

        while (address != NULL &&
               !(is_listed(address) && strcmp(address->ifa_name, interface->if_name) == 0)) {
            address = address->ifa_next;
        }
        if (address == NULL && interface->af_family == AF_INET &&
            (interface->if_flags & IFF_LOOPBACK) == 0) {
            opal_list_remove_item(&opal_if_list, &interface->super);
            OBJ_RELEASE(interface);
        }
    }
}

static void fresh_add(const struct ifaddrs *addresses) {
    for (const struct ifaddrs *address = addresses; address != NULL; address = address->ifa_next) {
        opal_if_t *interface;
        int index_max;

        if (!is_listed(address)) {
            continue;
        }
        interface = interface_find(address->ifa_name, &index_max);
        if (interface == NULL) {
            interface = OBJ_NEW(opal_if_t);
            if (interface == NULL) {
                return;
            }
            snprintf(interface->if_name, sizeof interface->if_name, "%s", address->ifa_name);
            interface->af_family = AF_INET;
            interface->if_index = index_max + 1;
            opal_list_append(&opal_if_list, &interface->super);
        }
        interface_update(interface, address);
    }
}

void kw_interfaces_refresh(void) {
    struct ifaddrs *addresses;

    if (getifaddrs(&addresses) == 0) {
        stale_remove(addresses);
        fresh_add(addresses);
        freeifaddrs(addresses);
    }
}
