/*
 * tcp_keepalive_client [-c count] [-d idle] [-i interval] HOST:PORT
 *
 * Connects with keepalive on, waits, and says how the connection ended: closed by the peer, or found dead by the
 * kernel's probes. Without an option, the system's default holds. What the peer sends goes to standard output.
 */
#include <err.h>
#include <errno.h>
#include <ka.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "options.h"

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

/* Splits HOST:PORT or [HOST]:PORT in place. */
static int split(char *address, char **host, int *port)
{
    char *colon = strrchr(address, ':');

    if (colon == NULL || colon == address || !read_number(colon + 1, 1, 65535, port))
        return -1;
    *colon = '\0';
    *host = address;
    if (address[0] == '[' && colon[-1] == ']') {
        *host = address + 1;
        colon[-1] = '\0';
    } else if (strpbrk(address, ":[]") != NULL) {
        return -1; /* an IPv6 address without its brackets, or half of them */
    }
    return **host == '\0' ? -1 : 0;
}

static struct addrinfo *resolve(const char *host, int port)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    struct addrinfo *found;
    char service[6];
    int error;

    snprintf(service, sizeof service, "%d", port);
    error = getaddrinfo(host, service, &hints, &found);
    if (error != 0)
        errx(EXIT_FAILURE, "cannot find %s: %s", host, error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
    return found;
}

/* Connects to the first of the addresses that answers, with keepalive on before the handshake. */
static int connect_to(const struct addrinfo *addresses, const struct keepalive_options *options)
{
    int error = 0;

    for (const struct addrinfo *address = addresses; address != NULL; address = address->ai_next) {
        int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        if (fd >= 0 && ka_enable(fd, options->idle, options->intvl, options->cnt) == 0 &&
            connect(fd, address->ai_addr, address->ai_addrlen) == 0)
            return fd;
        error = errno;
        if (fd >= 0)
            close(fd);
    }
    errno = error;
    return -1;
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
        /* The same, and a router or the neighbour table said why. */
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
    char *host, *given;
    int port, fd;

    if (!read_options(&argc, &argv, &options))
        usage();
    if (argc != 1) {
        warnx(argc < 1 ? "missing argument: HOST:PORT" : "too many arguments: one HOST:PORT is enough");
        usage();
    }
    given = strdup(argv[0]);
    if (given == NULL)
        err(EXIT_FAILURE, "strdup");
    if (split(given, &host, &port) != 0) {
        warnx("invalid HOST:PORT: \"%s\"", argv[0]);
        usage();
    }

    fprintf(stderr, "going connect to: %s port %d\n", host, port);
    fprintf(stderr, "set SO_KEEPALIVE  = %d\n", 1);
    fprintf(stderr, "set TCP_KEEPIDLE  = %d\n", options.idle);
    fprintf(stderr, "set TCP_KEEPCNT   = %d\n", options.cnt);
    fprintf(stderr, "set TCP_KEEPINTVL = %d\n", options.intvl);
    addresses = resolve(host, port);
    fd = connect_to(addresses, &options);
    if (fd < 0)
        err(EXIT_FAILURE, "cannot connect to %s", argv[0]);
    freeaddrinfo(addresses);
    free(given);
    fprintf(stderr, "connected\n");
    return wait_for_the_end(fd);
}
