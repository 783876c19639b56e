/*
 * reaper: compares the cost of finding inactive connections among many with the alternatives, in one run:
 *
 *   ka       ka_reaper_touch, ka_reaper_expired
 *   common   libevent's timers with a common timeout, one list per timeout (event_base_init_common_timeout)
 *   timer    libevent's timers as most programs use them, a heap (evtimer_add); only up to 100,000
 *   btree    Rust's std BTreeMap by (time, descriptor), and a Vec that has each descriptor's time (btree.rs)
 *
 * touch: a random connection is active. expired: the longest inactive connection is found, removed and added again, so
 * the time includes adding it. libevent calls back for each connection in its loop. The result is the median of rounds
 * of 200,000 touches. Memory is the memory that malloc(3) has allocated, with its own overhead.
 */
#include <err.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <ka.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "rounds.h"

#define TIMEOUT_MS 30000
#define TOUCHES 200000
#define ROUNDS 21

/* btree.rs */
struct btree *btree_new(void);
void btree_free(struct btree *btree);
void btree_touch(struct btree *btree, int fd, uint64_t now_ms);
int btree_expired(struct btree *btree, uint64_t now_ms, uint64_t timeout_ms, int *fds, size_t n);

enum { KA, COMMON, TIMER, BTREE, WAYS };
static const char *const names[WAYS] = { "ka", "common", "timer", "btree" };

static uint64_t clock_ms;
static int count;

static struct ka_reaper *reaper;
static struct btree *btree;
static struct event_base *base;
static struct event *events;
static struct timeval timeout = { TIMEOUT_MS / 1000, 0 };
static const struct timeval *common, *common_short;
static const struct timeval a_millisecond = { 0, 1000 };
/* The number of callbacks of libevent. */
static int called;

static void touch(int way, int fd);

/* Returns a random descriptor (xorshift). */
static int any(void)
{
    static uint64_t state = 88172645463325252;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (int)((state >> 32) * (uint64_t)count >> 32);
}

static void due(evutil_socket_t fd, short what, void *event)
{
    (void)fd;
    (void)what;
    called++;
    touch(common_short == NULL ? TIMER : COMMON, (int)((struct event *)event - events));
}

static size_t in_use(void)
{
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static void touch(int way, int fd)
{
    switch (way) {
    case KA:
        if (ka_reaper_touch(reaper, fd, clock_ms) != 0)
            err(EXIT_FAILURE, "ka_reaper_touch");
        break;
    case COMMON:
        evtimer_add(&events[fd], common);
        break;
    case TIMER:
        evtimer_add(&events[fd], &timeout);
        break;
    case BTREE:
        btree_touch(btree, fd, clock_ms);
        break;
    }
}

static void make(int way)
{
    switch (way) {
    case KA:
        reaper = ka_reaper_new(TIMEOUT_MS);
        break;
    case COMMON:
    case TIMER:
        base = event_base_new();
        common = event_base_init_common_timeout(base, &timeout);
        common_short = way == COMMON ? event_base_init_common_timeout(base, &a_millisecond) : NULL;
        events = calloc((size_t)count, sizeof *events);
        if (base == NULL || common == NULL || events == NULL)
            err(EXIT_FAILURE, "libevent");
        for (int fd = 0; fd < count; fd++)
            evtimer_assign(&events[fd], base, due, &events[fd]);
        break;
    case BTREE:
        btree = btree_new();
        break;
    }
    for (int fd = 0; fd < count; fd++)
        touch(way, fd);
}

static void unmake(int way)
{
    switch (way) {
    case KA:
        ka_reaper_free(reaper);
        break;
    case COMMON:
    case TIMER:
        for (int fd = 0; fd < count; fd++)
            event_del(&events[fd]);
        event_base_free(base);
        free(events);
        break;
    case BTREE:
        btree_free(btree);
        break;
    }
}

static double touches(int way)
{
    static int fds[TOUCHES];
    for (int n = 0; n < TOUCHES; n++)
        fds[n] = any();
    double start = now();
    for (int n = 0; n < TOUCHES; n++) {
        clock_ms += (n & 15) == 0;
        touch(way, fds[n]);
    }
    return (now() - start) / TOUCHES;
}

/* Lets all connections expire. They are returned in groups of 64, and added again. */
static double expiries(int way)
{
    int fds[64], named = 0, n;
    double start = now();
    clock_ms += TIMEOUT_MS;
    while (named < count) {
        n = way == KA ? ka_reaper_expired(reaper, clock_ms, fds, 64)
                      : btree_expired(btree, clock_ms, TIMEOUT_MS, fds, 64);
        if (n <= 0)
            errx(EXIT_FAILURE, "%s named %d of %d", names[way], named, count);
        named += n;
        for (int i = 0; i < n; i++)
            touch(way, fds[i]);
    }
    return (now() - start) / count;
}

/* Does the same for libevent. Its clock is real, so all connections get a timeout of a millisecond, which passes before
 * the measurement. */
static double callbacks(int way)
{
    for (int fd = 0; fd < count; fd++)
        evtimer_add(&events[fd], way == COMMON ? common_short : &a_millisecond);
    usleep(5000);
    called = 0;
    double start = now();
    while (called < count)
        event_base_loop(base, EVLOOP_NONBLOCK);
    return (now() - start) / count;
}

static double expired(int way)
{
    return way == COMMON || way == TIMER ? callbacks(way) : expiries(way);
}

static void measure(const char *what, double (*measured)(int), const int *ways, int n, const double *bytes)
{
    double nanoseconds[WAYS];

    /* Measure one way after the other, so that each has the caches for itself. */
    for (int i = 0; i < n; i++) {
        double rounds[ROUNDS];
        int way = ways[i];
        make(way);
        for (int round = -1; round < ROUNDS; round++)
            rounds[round < 0 ? 0 : round] = measured(way);
        unmake(way);
        nanoseconds[way] = median(rounds, ROUNDS);
        printf("%-8s %9d  %-7s %12.1f %8.1f", what, count, names[way], nanoseconds[way],
               nanoseconds[way] / nanoseconds[KA]);
        if (bytes != NULL)
            printf(" %11.1f", bytes[way]);
        printf("\n");
    }
}

int main(void)
{
    const int counts[] = { 1000, 100000, 1000000 };

    printf("       connections             ns each  over ka  bytes each\n");
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        int ways[] = { KA, COMMON, BTREE, TIMER }, n = counts[i] > 100000 ? WAYS - 1 : WAYS;
        double bytes[WAYS];

        count = counts[i];
        for (int way = 0; way < WAYS; way++) {
            size_t before = in_use();
            make(way);
            bytes[way] = (double)(in_use() - before) / count;
            unmake(way);
        }
        measure("touch", touches, ways, n, bytes);
        measure("expired", expired, ways, n, NULL);
    }
    return 0;
}
