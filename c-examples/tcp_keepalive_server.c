/*
 * tcp_keepalive_server [-c count] [-d idle] [-i interval] PORT
 *
 * An echo server for any number of clients that finds dead clients by keepalive. It sets keepalive once, on the
 * listener. Accepted connections inherit the settings, so they need no further call. SIGINT and SIGTERM end the server.
 */
#define _GNU_SOURCE /* accept4 */

#include <err.h>
#include <errno.h>
#include <ka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "options.h"
#include "sockets.h"

struct client {
    int fd;
    double since;
    char name[NAME_SIZE];
    /* buffer[start] to buffer[end - 1] was received and is not sent back yet. While start < end, the server does not
     * read from the client. */
    size_t start, end;
    char buffer[4096];
    struct client *next, *previous;
};

static int epoll, listener, signals;
static bool listening;
static struct client *clients;

static void usage(void)
{
    fprintf(stderr, "usage: tcp_keepalive_server [-c count] [-d idle] [-i interval] PORT\n"
                    "  -c count     unanswered probes before a client is dead, 1 to %d\n"
                    "  -d idle      seconds without traffic before the first probe, 1 to %d\n"
                    "  -i interval  seconds between unanswered probes, 1 to %d\n"
                    "  PORT         0 to 65535; 0 means any free port\n",
            KA_CNT_MAX, KA_IDLE_MAX, KA_INTVL_MAX);
    exit(EXIT_FAILURE);
}

/* Turns keepalive on, and prints the old and the new settings. If a timer cannot be set, only prints a warning:
 * keepalive with another timer is better than no keepalive. */
static void set_keepalive(int fd, const struct keepalive_options *options)
{
    struct ka_config config = KA_CONFIG_INIT;
    int enabled = ka_is_enabled(fd), missed;

    if (enabled < 0)
        err(EXIT_FAILURE, "ka_is_enabled");
    printf("SO_KEEPALIVE default is %s\n", enabled ? "ON" : "OFF");
    missed = ka_enable_lenient(fd, options->idle, options->intvl, options->cnt);
    if (missed < 0)
        err(EXIT_FAILURE, "ka_enable_lenient");
    if (missed != 0)
        warnx("keepalive is on, but not with%s%s%s", missed & KA_MISSED_IDLE ? " this idle time" : "",
              missed & KA_MISSED_INTVL ? " this interval" : "", missed & KA_MISSED_CNT ? " this count" : "");
    printf("SO_KEEPALIVE set on socket\n");
    if (ka_query(fd, &config) != 0)
        err(EXIT_FAILURE, "ka_query");
    printf("TCP_KEEPIDLE is %d\n", config.idle);
    printf("TCP_KEEPCNT is %d\n", config.cnt);
    printf("TCP_KEEPINTVL is %d\n", config.intvl);
}

static void watch(int operation, int fd, uint32_t events, void *what)
{
    struct epoll_event event = { .events = events, .data.ptr = what };

    if (epoll_ctl(epoll, operation, fd, &event) != 0)
        err(EXIT_FAILURE, "epoll_ctl");
}

static void accept_clients(void)
{
    for (;;) {
        struct sockaddr_in6 six;
        socklen_t size = sizeof six;
        struct client *client;
        int fd = accept4(listener, (struct sockaddr *)&six, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno == EAGAIN)
                return;
            /* Descriptors or memory are used up. The other connections wait in the queue; serve() tries again. */
            printf("cannot accept: %s; trying again\n", strerror(errno));
            watch(EPOLL_CTL_DEL, listener, 0, NULL);
            listening = false;
            return;
        }
        client = calloc(1, sizeof *client);
        if (client == NULL) {
            printf("cannot serve a client: %s\n", strerror(errno));
            close(fd);
            continue;
        }
        name_of(&six, client->name, sizeof client->name);
        client->fd = fd;
        client->since = now();
        client->next = clients;
        if (clients != NULL)
            clients->previous = client;
        clients = client;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, client);
        printf("client %s connected\n", client->name);
    }
}

static void end(struct client *client, const char *how)
{
    if (how != NULL)
        printf("client %s %s after %.1f s\n", client->name, how, now() - client->since);
    close(client->fd);
    if (client->previous != NULL)
        client->previous->next = client->next;
    else
        clients = client->next;
    if (client->next != NULL)
        client->next->previous = client->previous;
    free(client);
}

static void echo(struct client *client)
{
    ssize_t size;

    if (client->start == client->end) {
        size = read(client->fd, client->buffer, sizeof client->buffer);
        if (size <= 0) {
            if (size == 0 || (errno != EAGAIN && errno != EINTR))
                end(client, ending(size == 0 ? 0 : errno));
            return;
        }
        client->start = 0;
        client->end = (size_t)size;
    }
    size = write(client->fd, client->buffer + client->start, client->end - client->start);
    if (size < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            end(client, ending(errno));
            return;
        }
        size = 0;
    }
    client->start += (size_t)size;
    watch(EPOLL_CTL_MOD, client->fd, client->start < client->end ? EPOLLOUT : EPOLLIN, client);
}

static int serve(void)
{
    for (;;) {
        struct epoll_event event;
        int ready = epoll_wait(epoll, &event, 1, listening ? -1 : 1000);

        if (ready < 0 && errno != EINTR)
            err(EXIT_FAILURE, "epoll_wait");
        if (!listening) {
            watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
            listening = true;
        }
        if (ready <= 0)
            continue;
        if (event.data.ptr == &listener) {
            accept_clients();
        } else if (event.data.ptr == &signals) {
            struct signalfd_siginfo signal;
            if (read(signals, &signal, sizeof signal) != sizeof signal)
                continue;
            while (clients != NULL)
                end(clients, NULL);
            printf("ended by %s\n", strsignal((int)signal.ssi_signo));
            return EXIT_SUCCESS;
        } else {
            echo(event.data.ptr);
        }
    }
}

int main(int argc, char *argv[])
{
    struct keepalive_options options;
    sigset_t mask;
    int port;

    if (!read_options(&argc, &argv, &options))
        usage();
    if (argc != 1) {
        warnx(argc < 1 ? "missing argument: PORT" : "too many arguments: one PORT is enough");
        usage();
    }
    if (!read_number(argv[0], 0, 65535, &port)) {
        warnx("invalid PORT: \"%s\" (must be a number from 0 to 65535)", argv[0]);
        usage();
    }

    /* Flush each line, also if stdout is a pipe. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signals = signalfd(-1, &mask, SFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (signals < 0 || epoll < 0)
        err(EXIT_FAILURE, "cannot create a signalfd or an epoll instance");

    listener = bind_to(port);
    set_keepalive(listener, &options);
    if (listen(listener, SOMAXCONN) != 0)
        err(EXIT_FAILURE, "cannot listen on port %d", port);
    printf("listening on port %d\n", port_of(listener));
    listening = true;
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(EPOLL_CTL_ADD, signals, EPOLLIN, &signals);
    return serve();
}
