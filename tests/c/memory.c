/*
 * memory: what a reaper takes of the process, as the kernel and malloc count it, and that it gives it back. Prints the
 * bytes. To whom the kernel's pages belong that malloc has back is malloc's affair: glibc's keeps those below something
 * in use until malloc_trim(3).
 */
#include <ka.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>

#include "check.h"

#define KIB 1024L
#define MIB (1024 * KIB)
#define MILLION 1000000

/* All pages of this process, or those that are resident. */
static long bytes(int resident)
{
    long pages[2];
    FILE *statm = fopen("/proc/self/statm", "r");
    CHECK(statm != NULL && fscanf(statm, "%ld %ld", &pages[0], &pages[1]) == 2 && fclose(statm) == 0);
    return pages[resident] * sysconf(_SC_PAGESIZE);
}

/* A million connections come and go, but for one. */
static void flood(void)
{
    struct ka_reaper *reaper = ka_reaper_new(1000);
    int fds[64];

    CHECK(reaper != NULL && ka_reaper_touch(reaper, 3, 0) == 0);
    long before = bytes(1), used = (long)mallinfo2().uordblks;
    for (int fd = 4; fd < MILLION; fd++)
        CHECK(ka_reaper_touch(reaper, fd, 0) == 0);
    long during = bytes(1);
    CHECK(ka_reaper_touch(reaper, 3, 500) == 0);
    while (ka_reaper_expired(reaper, 1000, fds, 64) > 0)
        ;
    CHECK(ka_reaper_len(reaper) == 1 && ka_reaper_next(reaper, 1000) == 500);
    used = (long)mallinfo2().uordblks - used;
    malloc_trim(0);
    long after = bytes(1);
    printf("a million: %ld bytes each; after they went %ld in use, %ld resident\n", (during - before) / MILLION, used,
           after - before);
    CHECK(during - before > 15 * MIB && during - before < 32 * MILLION);
    CHECK(used < 10 * KIB && after - before < 256 * KIB);
    ka_reaper_free(reaper);
}

/* One alone, as far away as there is. */
static void far_away(void)
{
    long mapped = bytes(0), resident = bytes(1);
    struct ka_reaper *reaper = ka_reaper_new(1000);

    CHECK(reaper != NULL && ka_reaper_touch(reaper, INT_MAX, 0) == 0);
    mapped = bytes(0) - mapped;
    resident = bytes(1) - resident;
    printf("one at INT_MAX: %ld bytes mapped, %ld resident\n", mapped, resident);
    CHECK(mapped < 800 * KIB && resident < 64 * KIB);
    ka_reaper_free(reaper);
}

int main(void)
{
    bytes(1); /* stdio has its memory */
    printf("what a reaper takes:\n");
    far_away();
    flood();
    return 0;
}
