/*
 * ways: measures the cost of ka's ways that use eBPF, interleaved in one run with a way that does nothing.
 *
 *   connection  socket, connect, accept and two closes over loopback, in a cgroup without a policy, in a cgroup with
 *               `ka cgroup attach`, and in a cgroup with `--mode default`
 *   sockets     10,000 sockets of another process: `ka attach --all --via bpf` and `ka attach PID`, from fork to exit.
 *               First all sockets must be set, then all have the policy already. Also a process that does nothing
 *
 * Usage: ways KA CGROUPS, in a new network namespace. CGROUPS is a folder of cgroup v2 in which folders can be made.
 * bpffs must be mounted at /sys/fs/bpf.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "loopback.h"

enum { CONNECTIONS = 2000, CONNECTION_ROUNDS = 41, SOCKETS = 10000, SOCKET_ROUNDS = 15 };

/* A process that runs one function on request, and reports the time. */
struct worker {
    pid_t pid;
    int ask, answer;
};

static struct worker start(const char *cgroup, double (*work)(void))
{
    int ask[2], answer[2];
    if (pipe(ask) != 0 || pipe(answer) != 0)
        err(EXIT_FAILURE, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char byte, path[4096];
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
        int members = open(path, O_WRONLY);
        if (write(members, "0", 1) != 1)
            err(EXIT_FAILURE, "%s", path);
        while (read(ask[0], &byte, 1) == 1) {
            double time = work();
            if (write(answer[1], &time, sizeof time) != sizeof time)
                _exit(1);
        }
        _exit(0);
    }
    close(ask[0]);
    close(answer[1]);
    return (struct worker){ pid, ask[1], answer[0] };
}

static double ask(struct worker worker)
{
    double time;
    if (write(worker.ask, "", 1) != 1 || read(worker.answer, &time, sizeof time) != sizeof time)
        errx(EXIT_FAILURE, "a worker has ended");
    return time;
}

static void end(struct worker worker)
{
    kill(worker.pid, SIGKILL);
    waitpid(worker.pid, NULL, 0);
    close(worker.ask);
    close(worker.answer);
}

/* Returns the microseconds for a connection. It ends with a reset, so that no port stays in TIME-WAIT. */
static double connect_and_accept(void)
{
    static struct sockaddr_in address;
    static int listener;
    struct linger linger = { 1, 0 };
    if (listener == 0)
        listener = listen_on_loopback(&address, 128);
    double start = now();
    for (int n = 0; n < CONNECTIONS; n++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(client, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        if (connect(client, (struct sockaddr *)&address, sizeof address) != 0)
            err(EXIT_FAILURE, "connect");
        int server = accept(listener, NULL, NULL);
        close(client);
        close(server);
    }
    return (now() - start) / 1e3 / CONNECTIONS;
}

static void bench_connections(char *ka, const char *cgroups)
{
    static const char *const names[] = { "none", "force", "default" };
    double times[3][CONNECTION_ROUNDS], more[2][CONNECTION_ROUNDS], ratios[2][CONNECTION_ROUNDS];
    struct worker workers[3];
    char paths[3][4096];
    for (int n = 0; n < 3; n++) {
        snprintf(paths[n], sizeof paths[n], "%s/ka-bench-%d-%s", cgroups, getpid(), names[n]);
        if (mkdir(paths[n], 0755) != 0)
            err(EXIT_FAILURE, "%s", paths[n]);
        char *attach[] = { ka, "cgroup", "attach", "--mode", (char *)names[n], paths[n], NULL };
        if (n > 0)
            run(attach, NULL);
        workers[n] = start(paths[n], connect_and_accept);
        ask(workers[n]);
    }
    for (int round = 0; round < CONNECTION_ROUNDS; round++) {
        for (int n = 0; n < 3; n++)
            times[n][round] = ask(workers[n]);
        for (int n = 0; n < 2; n++) {
            more[n][round] = times[n + 1][round] - times[0][round];
            ratios[n][round] = times[n + 1][round] / times[0][round];
        }
    }
    for (int n = 0; n < 3; n++) {
        char *detach[] = { ka, "cgroup", "detach", paths[n], NULL };
        end(workers[n]);
        if (n > 0)
            run(detach, NULL);
        rmdir(paths[n]);
    }
    printf("connection, us: without %.2f; cgroup, force +%.2f (ratio %.2f), default +%.2f (ratio %.2f)\n",
           median(times[0], CONNECTION_ROUNDS), median(more[0], CONNECTION_ROUNDS),
           median(ratios[0], CONNECTION_ROUNDS), median(more[1], CONNECTION_ROUNDS),
           median(ratios[1], CONNECTION_ROUNDS));
}

static int fds[SOCKETS];

/* The first call makes the sockets. Each call turns keepalive off on all of them. */
static double turn_off(void)
{
    int off = 0;
    if (fds[0] == 0) {
        struct sockaddr_in address;
        int listener = listen_on_loopback(&address, 128);
        for (int n = 0; n < SOCKETS; n += 2) {
            fds[n] = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(fds[n], (struct sockaddr *)&address, sizeof address) != 0 ||
                (fds[n + 1] = accept(listener, NULL, NULL)) < 0)
                err(EXIT_FAILURE, "connect");
        }
        close(listener);
    }
    for (int n = 0; n < SOCKETS; n++)
        setsockopt(fds[n], SOL_SOCKET, SO_KEEPALIVE, &off, sizeof off);
    return 0;
}

static void bench_sockets(char *ka, const char *cgroups)
{
    double times[5][SOCKET_ROUNDS], ratios[2][SOCKET_ROUNDS];
    struct worker worker = start(cgroups, turn_off);
    ask(worker);
    char number[16];
    snprintf(number, sizeof number, "%d", worker.pid);
    char *nothing[] = { ka, "--version", NULL };
    char *bpf[] = { ka, "attach", "--all", "--via", "bpf", NULL };
    char *pidfd[] = { ka, "attach", number, NULL };
    for (int n = 0; n < SOCKET_ROUNDS; n++) {
        ask(worker);
        times[0][n] = run(bpf, NULL);
        times[1][n] = run(bpf, NULL);
        ask(worker);
        times[2][n] = run(pidfd, NULL);
        times[3][n] = run(pidfd, NULL);
        times[4][n] = run(nothing, NULL);
        ratios[0][n] = times[0][n] / times[2][n];
        ratios[1][n] = times[1][n] / times[3][n];
    }
    printf("sockets, us each of %d, from fork to exit: to set, --via bpf %.2f, through the process %.2f (ratio %.2f); "
           "set already, %.2f and %.2f (ratio %.2f); ka --version %.0f us in all\n",
           SOCKETS, median(times[0], SOCKET_ROUNDS) / SOCKETS, median(times[2], SOCKET_ROUNDS) / SOCKETS,
           median(ratios[0], SOCKET_ROUNDS), median(times[1], SOCKET_ROUNDS) / SOCKETS,
           median(times[3], SOCKET_ROUNDS) / SOCKETS, median(ratios[1], SOCKET_ROUNDS),
           median(times[4], SOCKET_ROUNDS));
    end(worker);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(EXIT_FAILURE, "usage: ways KA CGROUPS");
    raise_descriptor_limit();
    bench_connections(argv[1], argv[2]);
    bench_sockets(argv[1], argv[2]);
}
