/*
 * pool_check [-a age] [-t timeout] HOST:PORT
 *
 * A small connection pool that checks each connection before it hands it out. Sends each line of standard input over a
 * connection of the pool, and prints the answer of the server, which must return each line, as tcp_keepalive_server
 * does. Prints the number of each connection that it uses or throws away, and the reason.
 */
#include <err.h>
#include <errno.h>
#include <ka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "options.h"
#include "sockets.h"

#define MOST 8

/* A connection that is not in use. */
struct idle_connection {
    int fd;
    unsigned number;
    double since; /* when it was last used */
};

struct pool {
    struct addrinfo *addresses;
    int max_age;    /* seconds: use less than the idle timeouts of the server and of the path */
    int timeout_ms; /* the time that the server has to answer a probe */
    unsigned made;  /* the number of connections made so far */
    int count;
    struct idle_connection idle[MOST]; /* the last one was used most recently */
};

/* Returns the reason why a connection must not be used any more, or NULL if it is good. */
static const char *why_unusable(const struct pool *pool, const struct idle_connection *connection)
{
    char byte;
    ssize_t size;

    if (now() - connection->since > pool->max_age)
        return "it is too old";
    /* This call waits for nothing and costs less than a microsecond, so it comes before the probe. */
    size = recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (size == 0)
        return "the server has closed it";
    if (size > 0)
        return "it has unexpected data";
    if (errno != EAGAIN && errno != EWOULDBLOCK)
        return strerror(errno);
    /* If a firewall has dropped the connection, or the server has lost power, only a probe shows it. */
    switch (ka_probe(connection->fd, pool->timeout_ms)) {
    case 1:
        return NULL;
    case 0:
        return "the server does not answer";
    default:
        return strerror(errno);
    }
}

/* Takes a good connection out of the pool, or makes one. Returns false and sets errno if that fails. */
static bool check_out(struct pool *pool, struct idle_connection *connection)
{
    static const struct keepalive_options policy = { .cnt = 5, .idle = 60, .intvl = 10 };

    while (pool->count > 0) {
        *connection = pool->idle[--pool->count];
        double begin = now();
        const char *why = why_unusable(pool, connection);
        printf("connection %u: checked in %.0f us%s%s\n", connection->number, (now() - begin) * 1e6,
               why == NULL ? "" : ", thrown away: ", why == NULL ? "" : why);
        if (why == NULL)
            return true;
        close(connection->fd);
    }
    connection->fd = connect_to(pool->addresses, &policy);
    if (connection->fd < 0)
        return false;
    connection->number = ++pool->made;
    printf("connection %u: new\n", connection->number);
    return true;
}

/* Puts a connection back. If a call on it has failed, close it instead. */
static void check_in(struct pool *pool, struct idle_connection *connection)
{
    if (pool->count == MOST) {
        close(connection->fd);
        return;
    }
    connection->since = now();
    pool->idle[pool->count++] = *connection;
}

/* Sends a line, and reads the answer into the same buffer. Returns false and sets errno if that fails. */
static bool ask(int fd, char *line, size_t size)
{
    size_t done = 0;

    if (send(fd, line, size, MSG_NOSIGNAL) != (ssize_t)size)
        return false;
    while (done < size) {
        ssize_t got = recv(fd, line + done, size - done, 0);
        if (got <= 0) {
            errno = got == 0 ? EPIPE : errno;
            return false;
        }
        done += (size_t)got;
    }
    return true;
}

static void usage(void)
{
    fprintf(stderr, "usage: pool_check [-a age] [-t timeout] HOST:PORT\n"
                    "  -a age      seconds after which an unused connection is thrown away (default 300)\n"
                    "  -t timeout  milliseconds that the server has to answer a probe (default 500)\n"
                    "  HOST:PORT   a server that returns each line, such as tcp_keepalive_server\n");
    exit(EXIT_FAILURE);
}

int main(int argc, char *argv[])
{
    struct pool pool = { .max_age = 300, .timeout_ms = 500 };
    const struct number_option options[] = {
        { 'a', "age", 86400, &pool.max_age },
        { 't', "timeout", 60000, &pool.timeout_ms },
    };
    struct idle_connection connection;
    const char *why;
    char *host, line[1024];
    int port;

    if (!read_numbers(&argc, &argv, options, sizeof options / sizeof *options))
        usage();
    if (argc != 1) {
        warnx(argc < 1 ? "missing argument: HOST:PORT" : "too many arguments: one HOST:PORT is enough");
        usage();
    }
    host = split(argv[0], &port);
    if (host == NULL)
        usage();
    pool.addresses = resolve(host, port, &why);
    if (pool.addresses == NULL)
        errx(EXIT_FAILURE, "cannot find %s: %s", host, why);
    free(host);

    setlinebuf(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (!check_out(&pool, &connection))
            err(EXIT_FAILURE, "cannot connect to %s", argv[0]);
        if (ask(connection.fd, line, strlen(line))) {
            printf("connection %u: %s", connection.number, line);
            check_in(&pool, &connection);
        } else {
            printf("connection %u: the server %s\n", connection.number, ending(errno));
            close(connection.fd);
        }
    }
    while (pool.count > 0)
        close(pool.idle[--pool.count].fd);
    freeaddrinfo(pool.addresses);
    return EXIT_SUCCESS;
}
