#include "address.h"

#include <stdlib.h>
#include <string.h>

#define MARK 0x4b57ad5e71a6c0f3ull

static struct table {
    struct kw_address **entries;
    uint32_t len;
} current, coming;

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

static bool grow(struct table *table, uint32_t ranks) {
    struct kw_address **grown = realloc(table->entries, ranks * sizeof *grown);

    if (grown == NULL) {
        return false;
    }
    memset(grown + table->len, 0, (ranks - table->len) * sizeof *grown);
    table->entries = grown;
    table->len = ranks;
    return true;
}

static void clear(struct table *table) {
    for (uint32_t i = 0; i < table->len; i++) {
        free(table->entries[i]);
    }
    free(table->entries);
    *table = (struct table){0};
}

static const struct kw_address *find(const struct table *table, uint32_t vpid) {
    return vpid < table->len ? table->entries[vpid] : NULL;
}

bool kw_addresses_keep_new(const struct kw_address *address, uint32_t ranks) {
    struct kw_address *copy;

    if (address->vpid >= ranks || (coming.len < ranks && !grow(&coming, ranks))) {
        return false;
    }
    copy = kw_address_make(address->jobid, address->vpid, address + 1, address->size);
    if (copy == NULL) {
        return false;
    }
    free(coming.entries[address->vpid]);
    coming.entries[address->vpid] = copy;
    return true;
}

const struct kw_address *kw_addresses_find(uint32_t vpid) {
    return find(&current, vpid);
}

const struct kw_address *kw_addresses_find_new(uint32_t vpid) {
    return find(&coming, vpid);
}

void kw_addresses_adopt_new(void) {
    clear(&current);
    current = coming;
    coming = (struct table){0};
}

void kw_addresses_drop_new(void) {
    clear(&coming);
}

void kw_addresses_forget(void) {
    clear(&current);
    clear(&coming);
}
