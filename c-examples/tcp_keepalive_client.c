/*
 * tcp_keepalive_client [-c count] [-d idle] [-i interval] HOST:PORT
 *
 * Connects with keepalive on, waits, and prints how the connection ended: the peer closed it, or the kernel's probes
 * found the peer dead. Without an option, the timer keeps the system's default, and the client prints -1 for it. Data
 * from the peer goes to standard output.
 */
#include <err.h>
#include <errno.h>
#include <ka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "sockets.h"

static void usage(void)
{
    fprintf(stderr, "usage: tcp_keepalive_client [-c count] [-d idle] [-i interval] HOST:PORT\n"
                    "  -c count     unanswered probes before the connection is dead, 1 to %d\n"
                    "  -d idle      seconds without traffic before the first probe, 1 to %d\n"
                    "  -i interval  seconds between unanswered probes, 1 to %d\n"
                    "  HOST:PORT    as 192.0.2.1:5050, [2001:db8::1]:5050 or example.net:5050\n",
            KA_CNT_MAX, KA_IDLE_MAX, KA_INTVL_MAX);
    exit(EXIT_FAILURE);
}

static int wait_for_the_end(int fd)
{
    char buffer[4096];
    ssize_t size;
    double start = now();

    while ((size = read(fd, buffer, sizeof buffer)) > 0 || (size < 0 && errno == EINTR)) {
        if (size > 0) {
            fwrite(buffer, 1, (size_t)size, stdout);
            fflush(stdout);
        }
    }
    int error = size < 0 ? errno : 0;
    double seconds = now() - start;
    switch (error) {
    case 0:
        fprintf(stderr, "closed by the peer after %.1f s\n", seconds);
        return EXIT_SUCCESS;
    case ETIMEDOUT:
        fprintf(stderr, "timed out: dead peer (ETIMEDOUT) after %.1f s\n", seconds);
        return EXIT_FAILURE;
    case EHOSTUNREACH:
    case ENETUNREACH:
        /* A router, or a failed ARP lookup of this machine, reported that the peer cannot be reached. */
        fprintf(stderr, "timed out: dead peer (%s: %s) after %.1f s\n",
                error == EHOSTUNREACH ? "EHOSTUNREACH" : "ENETUNREACH", strerror(error), seconds);
        return EXIT_FAILURE;
    case ECONNRESET:
        fprintf(stderr, "reset: the peer restarted (ECONNRESET) after %.1f s\n", seconds);
        return EXIT_FAILURE;
    default:
        fprintf(stderr, "failed: %s after %.1f s\n", strerror(error), seconds);
        return EXIT_FAILURE;
    }
}

int main(int argc, char *argv[])
{
    struct keepalive_options options;
    struct addrinfo *addresses;
    const char *why;
    char *host;
    int port, fd;

    if (!read_options(&argc, &argv, &options))
        usage();
    if (argc != 1) {
        warnx(argc < 1 ? "missing argument: HOST:PORT" : "too many arguments: one HOST:PORT is enough");
        usage();
    }
    host = split(argv[0], &port);
    if (host == NULL)
        usage();

    fprintf(stderr, "going connect to: %s port %d\n", host, port);
    fprintf(stderr, "set SO_KEEPALIVE  = %d\n", 1);
    fprintf(stderr, "set TCP_KEEPIDLE  = %d\n", options.idle);
    fprintf(stderr, "set TCP_KEEPCNT   = %d\n", options.cnt);
    fprintf(stderr, "set TCP_KEEPINTVL = %d\n", options.intvl);
    addresses = resolve(host, port, &why);
    if (addresses == NULL)
        errx(EXIT_FAILURE, "cannot find %s: %s", host, why);
    fd = connect_to(addresses, &options);
    if (fd < 0)
        err(EXIT_FAILURE, "cannot connect to %s", argv[0]);
    freeaddrinfo(addresses);
    free(host);
    fprintf(stderr, "connected\n");
    return wait_for_the_end(fd);
}
