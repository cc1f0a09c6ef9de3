/* memory: writes to many pages without a pause, and checks that no write is ever lost.
 *
 *   memory PAGES MARKER
 *
 * Every page holds the number of its last write, and a table on other pages repeats it. A write
 * that live migration did not carry to the destination leaves the two different for good. MARKER
 * is created when all pages have been written once; the program runs until it is removed, then
 * prints one line of JSON: writes, and pages that have lost one.
 *
 * It makes no system call but once in 2^20 writes: a switch of address spaces would refill the TLB
 * of an emulated processor, which hides what QEMU has lost (see memory_kib in qemu.py). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WORDS = 4096 / sizeof(uint64_t), BETWEEN_CALLS = 1 << 20 };

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: memory PAGES MARKER\n");
        return 2;
    }
    const size_t pages = strtoul(argv[1], NULL, 10);
    const char *marker = argv[2];
    const size_t bytes = pages * WORDS * sizeof(uint64_t);
    const int access_mode = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS;
    uint64_t *page = mmap(NULL, bytes, access_mode, kind, -1, 0);
    uint64_t *last = calloc(pages, sizeof *last);
    if (pages == 0 || page == MAP_FAILED || !last) {
        fprintf(stderr, "memory: no memory for %zu pages\n", pages);
        return 1;
    }
    for (size_t i = 0; i < pages; i++)
        page[i * WORDS] = last[i] = i + 1;
    close(open(marker, O_CREAT | O_WRONLY, 0644));

    uint64_t writes = pages, state = 1;
    while (writes % BETWEEN_CALLS || access(marker, F_OK) == 0) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const size_t i = (state >> 33) % pages;
        page[i * WORDS] = last[i] = ++writes;
    }
    size_t lost = 0;
    for (size_t i = 0; i < pages; i++)
        lost += page[i * WORDS] != last[i];
    printf("{\"writes\": %llu, \"lost\": %zu}\n", (unsigned long long)writes, lost);
    return lost != 0;
}
