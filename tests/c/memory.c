/*
 * memory: measures the memory of a reaper with the kernel and with malloc, and checks that the reaper frees it. Prints
 * the bytes. malloc may keep freed pages. glibc keeps those below memory in use until malloc_trim(3).
 */
#include <ka.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>

#include "check.h"

#define KIB 1024L
#define MIB (1024 * KIB)
#define MILLION 1000000

/* Returns the resident anonymous memory of this process in bytes. statm is not exact: it includes pages of libraries,
 * and each processor reports its counts late. */
static long resident(void)
{
    char line[256];
    long kib = -1;
    FILE *rollup = fopen("/proc/self/smaps_rollup", "r");

    CHECK(rollup != NULL);
    while (kib < 0 && fgets(line, sizeof line, rollup) != NULL)
        sscanf(line, "Anonymous: %ld kB", &kib);
    CHECK(kib >= 0 && fclose(rollup) == 0);
    return kib * KIB;
}

/* Returns the size of the address space in use, in bytes. */
static long mapped(void)
{
    long pages;
    FILE *statm = fopen("/proc/self/statm", "r");

    CHECK(statm != NULL && fscanf(statm, "%ld", &pages) == 1 && fclose(statm) == 0);
    return pages * sysconf(_SC_PAGESIZE);
}

/* Adds a million connections, and removes all but one. */
static void flood(void)
{
    struct ka_reaper *reaper = ka_reaper_new(1000);
    int fds[64];

    CHECK(reaper != NULL && ka_reaper_touch(reaper, 3, 0) == 0);
    long before = resident(), used = (long)mallinfo2().uordblks;
    for (int fd = 4; fd < MILLION; fd++)
        CHECK(ka_reaper_touch(reaper, fd, 0) == 0);
    long during = resident();
    CHECK(ka_reaper_touch(reaper, 3, 500) == 0);
    while (ka_reaper_expired(reaper, 1000, fds, 64) > 0)
        ;
    CHECK(ka_reaper_len(reaper) == 1 && ka_reaper_next(reaper, 1000) == 500);
    used = (long)mallinfo2().uordblks - used;
    malloc_trim(0);
    long after = resident();
    printf("a million: %ld bytes each; after their removal %ld in use, %ld resident\n", (during - before) / MILLION,
           used, after - before);
    fflush(stdout);
    CHECK(during - before > 15 * MIB && during - before < 32 * MILLION);
    CHECK(used < 10 * KIB && after - before < 256 * KIB);
    ka_reaper_free(reaper);
}

/* Adds one connection with the largest descriptor. */
static void far_away(void)
{
    long addresses = mapped(), memory = resident();
    struct ka_reaper *reaper = ka_reaper_new(1000);

    CHECK(reaper != NULL && ka_reaper_touch(reaper, INT_MAX, 0) == 0);
    addresses = mapped() - addresses;
    memory = resident() - memory;
    printf("one at INT_MAX: %ld bytes mapped, %ld resident\n", addresses, memory);
    fflush(stdout);
    CHECK(addresses < 800 * KIB && memory < 64 * KIB);
    ka_reaper_free(reaper);
}

int main(void)
{
    /* The first call makes stdio and the loader allocate their memory. */
    mapped();
    resident();
    printf("memory of a reaper:\n");
    far_away();
    flood();
    return 0;
}
