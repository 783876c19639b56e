/*
 * ping: compares `ka ping`, from fork to exit, with calls of ka_probe one after the other, on the same 1,000 idle
 * connections of this process over loopback.
 *
 *   alive   each peer answers
 *   silent  a filter drops all that arrives at the connections. Each call of ka_probe waits for the whole timeout, so
 *           only some connections are probed one after the other
 *
 * Usage: ping KA, in a new network namespace. A ratio is the median of the rounds' ratios.
 */
#include <err.h>
#include <ka.h>
#include <linux/filter.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "command.h"
#include "loopback.h"

#define CONNECTIONS 1000
#define ROUNDS 5
#define TIMEOUT_MS 2000
/* The number of silent connections that are probed one after the other. */
#define FEW 3

static int clients[CONNECTIONS];

/* Makes the connections. A child has the other ends. */
static void connect_all(void)
{
    struct sockaddr_in address;
    int listener = listen_on_loopback(&address, CONNECTIONS), ready[2];
    char byte;

    if (pipe(ready) != 0)
        err(EXIT_FAILURE, "pipe");
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int n = 0; n < CONNECTIONS; n++)
            if (accept(listener, NULL, NULL) < 0)
                err(EXIT_FAILURE, "accept");
        if (write(ready[1], "", 1) != 1)
            err(EXIT_FAILURE, "write");
        pause();
    }
    close(ready[1]);
    for (int n = 0; n < CONNECTIONS; n++) {
        clients[n] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(clients[n], (struct sockaddr *)&address, sizeof address) != 0)
            err(EXIT_FAILURE, "connect");
    }
    if (read(ready[0], &byte, 1) != 1)
        errx(EXIT_FAILURE, "not all connections were accepted");
    close(listener);
}

/* Makes a peer silent: a socket filter drops all segments that arrive. */
static void silence(int fd)
{
    struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = { .len = 1, .filter = &drop };
    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) != 0)
        err(EXIT_FAILURE, "SO_ATTACH_FILTER");
}

/* Probes connections one after the other. Returns the time in microseconds. */
static double one_by_one(int connections, int expected)
{
    double start = microseconds();
    for (int n = 0; n < connections; n++)
        if (ka_probe(clients[n], TIMEOUT_MS) != expected)
            errx(EXIT_FAILURE, "ka_probe did not return %d", expected);
    return microseconds() - start;
}

/* Waits until the kernel can send a probe on each connection. */
static void idle(void)
{
    usleep(1100000);
}

int main(int argc, char *argv[])
{
    static double pings[ROUNDS], probes[ROUNDS], ratios[ROUNDS];
    char pid[16], timeout[16];

    if (argc != 2)
        errx(EXIT_FAILURE, "usage: ping KA");
    raise_descriptor_limit();
    connect_all();
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    snprintf(timeout, sizeof timeout, "%dms", TIMEOUT_MS);
    char *alive[] = { argv[1], "ping", "--timeout", timeout, pid, NULL };
    char *silent[] = { "sh", "-c", "\"$@\"; [ $? -eq 1 ]", "sh", argv[1], "ping", "--timeout", timeout, pid, NULL };

    for (int round = 0; round < ROUNDS; round++) {
        idle();
        pings[round] = run(alive, NULL);
        idle();
        probes[round] = one_by_one(CONNECTIONS, 1);
        ratios[round] = pings[round] / probes[round];
    }
    printf("%d connections   ka ping, s  ka_probe in a loop, s     ratio\n", CONNECTIONS);
    printf("alive   %22.2f %22.2f %9.3f\n", median(pings, ROUNDS) / 1e6, median(probes, ROUNDS) / 1e6,
           median(ratios, ROUNDS));
    for (int n = 0; n < CONNECTIONS; n++)
        silence(clients[n]);
    for (int round = 0; round < ROUNDS; round++) {
        idle();
        pings[round] = run(silent, NULL);
        probes[round] = one_by_one(FEW, 0) / FEW * CONNECTIONS;
        ratios[round] = pings[round] / probes[round];
    }
    printf("silent  %22.2f %22.0f %9.4f\n", median(pings, ROUNDS) / 1e6, median(probes, ROUNDS) / 1e6,
           median(ratios, ROUNDS));
    printf("(silent, in a loop: calculated from %d connections)\n", FEW);
    return 0;
}
