/*
 * allocation: makes every allocation of a reaper fail once. The call must fail with ENOMEM and leave the reaper
 * unchanged. The same call must succeed afterwards. Linked with --wrap for malloc, calloc and free. Prints the number
 * of failures.
 */
#include <ka.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void __real_free(void *memory);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void __wrap_free(void *memory);

static long made, live, failing, failed;

static bool fails(void)
{
    if (++made != failing)
        return false;
    failed++;
    return true;
}

/* A successful malloc may change errno. libka must restore it. */
static void *counted(void *memory)
{
    live += memory != NULL;
    errno = EDOM;
    return memory;
}

void *__wrap_malloc(size_t size)
{
    return counted(fails() ? NULL : __real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return counted(fails() ? NULL : __real_calloc(n, size));
}

void __wrap_free(void *memory)
{
    live -= memory != NULL;
    errno = EDOM;
    __real_free(memory);
}

static struct ka_reaper *reaper;
static size_t length;

/* Touches a connection. If the call fails for lack of memory, checks the reaper and touches the connection again. */
static void touch(int fd, uint64_t now_ms)
{
    int next = ka_reaper_next(reaper, now_ms);

    errno = 0;
    if (ka_reaper_touch(reaper, fd, now_ms) != 0) {
        CHECK(errno == ENOMEM && failed > 0);
        CHECK(ka_reaper_len(reaper) == length && ka_reaper_next(reaper, now_ms) == next);
        CHECK(ka_reaper_forget(reaper, fd) == -1 && errno == ENOENT);
        errno = 0;
        CHECK(ka_reaper_touch(reaper, fd, now_ms) == 0);
    }
    CHECK(errno == 0);
    length++;
}

static void scenario(void)
{
    const int far[] = { 65535, 65536, 131072, 1 << 30, INT_MAX, INT_MAX - 256 };
    int fds[1000], count = 0;

    errno = 0;
    reaper = ka_reaper_new(1000);
    if (reaper == NULL) {
        CHECK(errno == ENOMEM && failed > 0);
        errno = 0;
        reaper = ka_reaper_new(1000);
    }
    CHECK(reaper != NULL && errno == 0);
    length = 0;
    for (int fd = 0; fd < 600; fd++)
        touch(fd, (uint64_t)fd);
    for (size_t i = 0; i < sizeof far / sizeof *far; i++)
        touch(far[i], 600 + i);
    /* Half of the connections are forgotten, as before close, and added again. */
    for (int fd = 0; fd < 600; fd += 2)
        CHECK(ka_reaper_forget(reaper, fd) == 0 && errno == 0);
    length -= 300;
    for (int fd = 0; fd < 600; fd += 2)
        touch(fd, 700);
    /* The odd descriptors are due first, in their order. Then come the large ones, and then the even ones. */
    errno = 0;
    CHECK(ka_reaper_expired(reaper, 1700, fds, 1000) == 606 && errno == 0);
    for (int fd = 1; fd < 600; fd += 2)
        CHECK(fds[count++] == fd);
    for (size_t i = 0; i < sizeof far / sizeof *far; i++)
        CHECK(fds[count++] == far[i]);
    for (int fd = 0; fd < 600; fd += 2)
        CHECK(fds[count++] == fd);
    CHECK(ka_reaper_len(reaper) == 0 && ka_reaper_next(reaper, 1700) == -1);
    /* The reaper keeps a page, a leaf, the root, and itself. */
    CHECK(live <= 4);
    ka_reaper_free(reaper);
    CHECK(live == 0 && errno == 0);
}

int main(void)
{
    do {
        made = failed = 0;
        failing++;
        scenario();
    } while (failed > 0);
    CHECK(failing > 10);
    printf("%ld\n", failing - 1);

    /* Connections that come and go at the border of pages and leaves must not allocate each time. */
    failing = -1;
    reaper = ka_reaper_new(1);
    CHECK(ka_reaper_touch(reaper, 1, 0) == 0 && ka_reaper_touch(reaper, 65536, 0) == 0);
    made = 0;
    for (int round = 0; round < 1000; round++)
        CHECK(ka_reaper_forget(reaper, 65536) == 0 && ka_reaper_touch(reaper, 65536, 0) == 0);
    CHECK(made == 0);
    ka_reaper_free(reaper);
    CHECK(live == 0);
    return 0;
}
