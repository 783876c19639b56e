/*
 * enable: compares the cost of ka_enable with the calls that a program would make by hand, interleaved in one run.
 *
 *   blind   the four setsockopt calls that most programs make, whatever the socket's settings are
 *   bare    the system calls of ka_enable, made by hand: 5 on a socket with keepalive off, 4 on a socket that has the
 *           policy already. This is the lower limit.
 *   ka      ka_enable
 *
 * Each round times a batch of each, in turn. A ratio is the median of the rounds' ratios.
 *
 * enable count WAY N: makes N calls of one way on a socket that has the policy, for a tool that counts instructions.
 */
#include <err.h>
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loopback.h"
#include "rounds.h"

#define BATCH 250
#define ROUNDS 401

static void set(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value) != 0)
        err(EXIT_FAILURE, "setsockopt");
}

static int get(int fd, int level, int name)
{
    int value;
    socklen_t size = sizeof value;
    if (getsockopt(fd, level, name, &value, &size) != 0)
        err(EXIT_FAILURE, "getsockopt");
    return value;
}

static void blind(int fd)
{
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 5);
}

static void bare(int fd)
{
    if (get(fd, SOL_SOCKET, SO_KEEPALIVE)) {
        if (get(fd, IPPROTO_TCP, TCP_KEEPINTVL) != 10 || get(fd, IPPROTO_TCP, TCP_KEEPCNT) != 5 ||
            get(fd, IPPROTO_TCP, TCP_KEEPIDLE) != 60)
            errx(EXIT_FAILURE, "not the policy");
    } else {
        set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
        set(fd, IPPROTO_TCP, TCP_KEEPCNT, 5);
        set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
        set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    }
}

static void ka(int fd)
{
    if (ka_enable(fd, 60, 10, 5) != 0)
        err(EXIT_FAILURE, "ka_enable");
}

static void nothing(int fd)
{
    (void)fd;
}

enum { BLIND, BARE, KA, WAYS };
static void (*const ways[WAYS])(int) = { blind, bare, ka };
static const char *const names[WAYS] = { "blind", "bare", "ka" };

static int fresh(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        err(EXIT_FAILURE, "socket");
    return fd;
}

static struct sockaddr_in address;

static int listener(void)
{
    return listen_on_loopback(&address, 2 * BATCH);
}

static int connected(void)
{
    int fd = fresh();
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        err(EXIT_FAILURE, "connect");
    return fd;
}

/* Times batches of each way. `prepare` prepares the sockets, which is not timed. */
static void measure(const char *what, int *fds, void (*prepare)(int *))
{
    static double nanoseconds[WAYS][ROUNDS], to_bare[ROUNDS], to_blind[ROUNDS];

    for (int round = 0; round < ROUNDS; round++) {
        for (int turn = 0; turn < WAYS; turn++) {
            int way = (turn + round) % WAYS;
            prepare(fds);
            double start = now();
            for (int i = 0; i < BATCH; i++)
                ways[way](fds[i]);
            nanoseconds[way][round] = (now() - start) / BATCH;
        }
        to_bare[round] = nanoseconds[KA][round] / nanoseconds[BARE][round];
        to_blind[round] = nanoseconds[KA][round] / nanoseconds[BLIND][round];
    }
    printf("%-12s %8.0f %8.0f %8.0f %13.3f %13.3f\n", what, median(nanoseconds[BLIND], ROUNDS),
           median(nanoseconds[BARE], ROUNDS), median(nanoseconds[KA], ROUNDS), median(to_bare, ROUNDS),
           median(to_blind, ROUNDS));
}

static void make_fresh(int *fds)
{
    for (int i = 0; i < BATCH; i++) {
        if (fds[i] > 0)
            close(fds[i]);
        fds[i] = fresh();
    }
}

static void turn_off(int *fds)
{
    for (int i = 0; i < BATCH; i++)
        set(fds[i], SOL_SOCKET, SO_KEEPALIVE, 0);
}

static void leave(int *fds)
{
    (void)fds;
}

/* Compares a server that sets keepalive on each accepted connection with a server that has set it on its listener. */
static void measure_server(void)
{
    static double nanoseconds[2][ROUNDS], ratio[ROUNDS];
    static int clients[BATCH], accepted[BATCH];
    void (*const per_connection[2])(int) = { blind, nothing };

    for (int round = 0; round < ROUNDS; round++) {
        for (int turn = 0; turn < 2; turn++) {
            int way = (turn + round) % 2;
            int server = listener();
            if (way == 1)
                ka(server);
            for (int i = 0; i < BATCH; i++)
                clients[i] = connected();
            double start = now();
            for (int i = 0; i < BATCH; i++) {
                accepted[i] = accept(server, NULL, NULL);
                if (accepted[i] < 0)
                    err(EXIT_FAILURE, "accept");
                per_connection[way](accepted[i]);
            }
            nanoseconds[way][round] = (now() - start) / BATCH;
            if (!get(accepted[0], SOL_SOCKET, SO_KEEPALIVE) || get(accepted[0], IPPROTO_TCP, TCP_KEEPIDLE) != 60)
                errx(EXIT_FAILURE, "an accepted connection is not set");
            for (int i = 0; i < BATCH; i++) {
                close(accepted[i]);
                close(clients[i]);
            }
            close(server);
        }
        ratio[round] = nanoseconds[1][round] / nanoseconds[0][round];
    }
    printf("\naccept(2) and keepalive, ns per connection: 4 calls on each %.0f, listener set once (0 calls) %.0f, "
           "ratio %.3f\n",
           median(nanoseconds[0], ROUNDS), median(nanoseconds[1], ROUNDS), median(ratio, ROUNDS));
}

int main(int argc, char **argv)
{
    static int fds[BATCH];

    if (argc == 4 && strcmp(argv[1], "count") == 0) {
        int fd = fresh();
        ka(fd);
        for (int way = 0; way < WAYS; way++)
            if (strcmp(argv[2], names[way]) == 0)
                for (int n = atoi(argv[3]); n > 0; n--)
                    ways[way](fd);
        return 0;
    }

    printf("ns per call   blind     bare       ka   ka over bare  ka over blind\n");
    measure("fresh", fds, make_fresh);
    for (int i = 0; i < BATCH; i++)
        close(fds[i]);
    int server = listener();
    for (int i = 0; i < BATCH; i++)
        fds[i] = connected();
    measure("established", fds, turn_off);
    for (int i = 0; i < BATCH; i++)
        ka(fds[i]);
    measure("unchanged", fds, leave);
    for (int i = 0; i < BATCH; i++)
        close(fds[i]);
    close(server);
    measure_server();
    return 0;
}
