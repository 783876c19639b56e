/*
 * preload SHIM...: measures the cost of a preloaded library. It compares a run without a library with each given
 * library, interleaved in one run: the start of /bin/true, a connection (socket, connect, accept, two closes) on the
 * loopback, and a look-up by dlsym(3) while no library is opened.
 *
 * preload connect, preload look-up: the task of a child. It prints the nanoseconds for each connection or look-up.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <err.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loopback.h"
#include "rounds.h"

#define STARTS 1500
#define ROUNDS 61
#define CONNECTIONS 3000
#define LOOK_UPS 100000
#define MOST 4

static int connections(void)
{
    struct sockaddr_in address;
    int listener = listen_on_loopback(&address, 16);
    /* End with a reset, so that no port stays in TIME-WAIT. */
    struct linger at_once = { 1, 0 };
    double start = now();
    for (int i = 0; i < CONNECTIONS; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        if (connect(client, (struct sockaddr *)&address, sizeof address) != 0)
            err(1, "connect");
        int accepted = accept(listener, NULL, NULL);
        if (accepted < 0)
            err(1, "accept");
        close(client);
        close(accepted);
    }
    printf("%.1f\n", (now() - start) / CONNECTIONS);
    return 0;
}

static int look_ups(void)
{
    double start = now();
    for (int i = 0; i < LOOK_UPS; i++)
        if (dlsym(RTLD_DEFAULT, "getpid") == NULL)
            errx(1, "%s", dlerror());
    printf("%.1f\n", (now() - start) / LOOK_UPS);
    return 0;
}

/* Runs a program under a shim. Returns its time. If `out` is not NULL, writes the number that it printed to `out`. */
static double run(const char *shim, char *const *arguments, double *out)
{
    /* libkeepalive sets only the timers that are in these variables. */
    char preload[4096], *environment[] = { preload, "KEEPIDLE=60", "KEEPINTVL=10", "KEEPCNT=6", NULL };
    posix_spawn_file_actions_t actions;
    int pipes[2], status;
    pid_t child;

    snprintf(preload, sizeof preload, "LD_PRELOAD=%s", shim);
    posix_spawn_file_actions_init(&actions);
    if (pipe(pipes) != 0)
        err(1, "pipe");
    posix_spawn_file_actions_adddup2(&actions, pipes[1], 1);
    posix_spawn_file_actions_addclose(&actions, pipes[0]);
    double start = now();
    if (posix_spawn(&child, arguments[0], &actions, NULL, arguments, environment) != 0)
        err(1, "%s", arguments[0]);
    if (waitpid(child, &status, 0) != child || status != 0)
        errx(1, "%s failed under %s", arguments[0], shim);
    double took = now() - start;
    close(pipes[1]);
    if (out != NULL) {
        char text[64] = { 0 };
        if (read(pipes[0], text, sizeof text - 1) <= 0)
            errx(1, "%s has printed nothing", arguments[0]);
        *out = atof(text);
    }
    close(pipes[0]);
    posix_spawn_file_actions_destroy(&actions);
    return took;
}

int main(int argc, char **argv)
{
    static double starts[MOST][STARTS], costs[MOST][ROUNDS], ratios[MOST][ROUNDS], finds[MOST][ROUNDS];
    char *nothing[] = { "/bin/true", NULL }, *connect[] = { argv[0], "connect", NULL };
    char *look_up[] = { argv[0], "look-up", NULL };
    const char *shims[MOST] = { "" };
    int count = 1;

    if (argc == 2 && strcmp(argv[1], "connect") == 0)
        return connections();
    if (argc == 2 && strcmp(argv[1], "look-up") == 0)
        return look_ups();
    for (; count < argc && count < MOST; count++)
        shims[count] = argv[count];

    for (int i = 0; i < STARTS; i++)
        for (int turn = 0; turn < count; turn++) {
            int which = (turn + i) % count;
            starts[which][i] = run(shims[which], nothing, NULL);
        }
    for (int i = 0; i < ROUNDS; i++) {
        for (int turn = 0; turn < count; turn++) {
            int which = (turn + i) % count;
            run(shims[which], connect, &costs[which][i]);
            run(shims[which], look_up, &finds[which][i]);
        }
        for (int which = 0; which < count; which++)
            ratios[which][i] = costs[which][i] / costs[count > 1 ? 1 : 0][i];
    }
    double none = median(starts[0], STARTS), first = count > 1 ? median(starts[1], STARTS) - none : 1;
    printf("%-44s %14s %10s %16s %10s %12s\n", "", "start adds us", "ratio", "connection ns", "ratio",
           "look-up ns");
    for (int which = 0; which < count; which++) {
        double added = (median(starts[which], STARTS) - none) / 1e3;
        printf("%-44s %14.1f %10.2f %16.0f %10.3f %12.0f\n", which == 0 ? "none" : shims[which], added,
               which == 0 ? 0.0 : added * 1e3 / first, median(costs[which], ROUNDS), median(ratios[which], ROUNDS),
               median(finds[which], ROUNDS));
    }
    return 0;
}
