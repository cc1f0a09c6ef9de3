#include "address.h"

#include <stdlib.h>
#include <string.h>

#define MARK 0x4b57ad5e71a6c0f3ull

static struct kw_address **kept;
static uint32_t kept_len;

struct kw_address *kw_address_make(uint32_t jobid, uint32_t vpid, const void *bytes, size_t size) {
    struct kw_address *address = size <= KW_ADDRESS_MAX ? malloc(sizeof *address + size) : NULL;

    if (address != NULL) {
        *address = (struct kw_address){
            .mark = MARK, .jobid = jobid, .vpid = vpid, .size = (uint32_t)size};
        memcpy(address + 1, bytes, size);
    }
    return address;
}

bool kw_address_is_ours(const void *bytes) {
    uint64_t mark;

    memcpy(&mark, bytes, sizeof mark);
    return mark == MARK;
}

const struct kw_address *kw_address_check(const void *bytes, size_t size) {
    const struct kw_address *address = bytes;

    if (size < sizeof *address || !kw_address_is_ours(bytes) || address->size > KW_ADDRESS_MAX ||
        address->size == 0 || kw_address_length(address) != size) {
        return NULL;
    }
    return address;
}

static bool grow(uint32_t ranks) {
    struct kw_address **grown = realloc(kept, ranks * sizeof *grown);

    if (grown == NULL) {
        return false;
    }
    memset(grown + kept_len, 0, (ranks - kept_len) * sizeof *grown);
    kept = grown;
    kept_len = ranks;
    return true;
}

bool kw_addresses_keep(const struct kw_address *address, uint32_t ranks) {
    struct kw_address *copy;

    if (address->vpid >= ranks || (kept_len < ranks && !grow(ranks))) {
        return false;
    }
    copy = kw_address_make(address->jobid, address->vpid, address + 1, address->size);
    if (copy == NULL) {
        return false;
    }
    free(kept[address->vpid]);
    kept[address->vpid] = copy;
    return true;
}

const struct kw_address *kw_addresses_find(uint32_t vpid) {
    return vpid < kept_len ? kept[vpid] : NULL;
}

void kw_addresses_forget(void) {
    for (uint32_t i = 0; i < kept_len; i++) {
        free(kept[i]);
    }
    free(kept);
    kept = NULL;
    kept_len = 0;
}
