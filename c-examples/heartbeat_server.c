/*
 * heartbeat_server [-c count] [-d idle] [-i interval] [-f first] [-t timeout] KEYS PORT
 *
 * A server that checks that each connection belongs to a client with a key, and that the client's program runs.
 * Keepalive, set once on the listener, finds unreachable peers. Signed heartbeats expose strangers, forgers and
 * replays. A reaper finds silent peers, such as a program that hangs while its kernel still answers keepalive probes.
 * docs/heartbeat.md describes the protocol. SIGINT and SIGTERM end the server.
 */
#define _GNU_SOURCE /* accept4 */

#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <ka.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keys.h"
#include "options.h"
#include "sockets.h"

/* The most connections, events or expired entries to handle in one go, so that a flood of one kind does not delay the
 * others. */
#define TURN 64

struct connection {
    int fd;
    bool known; /* the peer has sent a valid beat, so it is a client */
    struct ka_beat last;
    uint8_t nonce[KA_BEAT_NONCE_SIZE];
    size_t received;
    uint8_t frame[KA_BEAT_SIZE];
    char name[NAME_SIZE];
};

/* Indexed by descriptor, as the reapers are. The kernel hands out the lowest free descriptor, so the array is dense. */
static struct connection **connections;
static size_t room, reaped;

/* A peer is a stranger until its first valid beat (-f). Then it is a client (-t). */
static struct ka_reaper *strangers, *clients;
static struct keys keys;
static int epoll, listener, signals;
/* While `listening` is false, epoll does not watch the listener. The server adds the listener again at the time `again`
 * (in ms), or as soon as a descriptor is freed. */
static bool listening, freed;
static uint64_t again;

static void usage(void)
{
    fprintf(stderr,
            "usage: heartbeat_server [-c count] [-d idle] [-i interval] [-f first] [-t timeout] KEYS PORT\n"
            "  -c count     unanswered probes before a client is dead, 1 to %d\n"
            "  -d idle      seconds without traffic before the first probe, 1 to %d\n"
            "  -i interval  seconds between unanswered probes, 1 to %d\n"
            "  -f first     seconds until the first valid heartbeat, 1 to 3600; 5 if not given\n"
            "  -t timeout   seconds from one valid heartbeat to the next, 1 to 86400; 30 if not given\n"
            "  KEYS         a file with a line for each client: its number, and its key in hexadecimal\n"
            "  PORT         0 to 65535; 0 means any free port\n",
            KA_CNT_MAX, KA_IDLE_MAX, KA_INTVL_MAX);
    exit(EXIT_FAILURE);
}

static uint64_t now_ms(void)
{
    return (uint64_t)(now() * 1000);
}

static void watch(int operation, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

    if (epoll_ctl(epoll, operation, fd, &event) != 0)
        err(EXIT_FAILURE, "epoll_ctl");
}

/* Ends a connection, and prints why. The reaper must forget the descriptor before close makes it free for another. */
static void end(struct connection *connection, const char *why)
{
    if (connection->known)
        printf("client %" PRIu64 " at %s %s\n", connection->last.client, connection->name, why);
    else
        printf("%s %s\n", connection->name, why);
    ka_reaper_forget(connection->known ? clients : strangers, connection->fd);
    connections[connection->fd] = NULL;
    close(connection->fd);
    free(connection);
    freed = true;
}

static bool make_room(int fd)
{
    struct connection **more;
    size_t wanted = room == 0 ? 64 : room;

    while (wanted <= (size_t)fd)
        wanted *= 2;
    if (wanted == room)
        return true;
    more = realloc(connections, wanted * sizeof *connections);
    if (more == NULL)
        return false;
    memset(more + room, 0, (wanted - room) * sizeof *more);
    connections = more;
    room = wanted;
    return true;
}

/* Sends the nonce, and adds the connection to the strangers and to epoll. Returns false if this fails. */
static bool begin(int fd, const struct sockaddr_in6 *six)
{
    struct connection *connection = make_room(fd) ? calloc(1, sizeof *connection) : NULL;

    if (connection == NULL)
        return false;
    connection->fd = fd;
    name_of(six, connection->name, sizeof connection->name);
    /* The send buffer of a new connection has room for 16 bytes. */
    if (ka_beat_nonce(connection->nonce) != 0 || ka_reaper_touch(strangers, fd, now_ms()) != 0 ||
        write(fd, connection->nonce, sizeof connection->nonce) != sizeof connection->nonce) {
        ka_reaper_forget(strangers, fd);
        free(connection);
        return false;
    }
    connections[fd] = connection;
    watch(EPOLL_CTL_ADD, fd);
    return true;
}

static void accept_some(void)
{
    for (int n = 0; n < TURN; n++) {
        struct sockaddr_in6 six;
        socklen_t size = sizeof six;
        int fd = accept4(listener, (struct sockaddr *)&six, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd >= 0) {
            if (!begin(fd, &six)) {
                printf("cannot serve a connection: %s\n", strerror(errno));
                close(fd);
            }
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            /* Descriptors or memory are used up. The other connections wait in the queue, until strangers expire. */
            if (now_ms() >= again)
                printf("cannot accept: %s; trying again\n", strerror(errno));
            watch(EPOLL_CTL_DEL, listener);
            listening = freed = false;
            again = now_ms() + 1000;
            return;
        }
    }
}

/* Verifies a whole frame. If it is not valid, ends the connection. */
static void check_frame(struct connection *connection)
{
    const struct key *key;
    struct ka_beat beat;
    uint64_t client;
    char why[96];

    if (ka_beat_client(connection->frame, &client) != 0) {
        end(connection, "refused: not a heartbeat");
        return;
    }
    key = find_key(&keys, client);
    if (key == NULL) {
        snprintf(why, sizeof why, "refused: no key for client %" PRIu64, client);
        end(connection, why);
        return;
    }
    if (ka_beat_verify(key->bytes, key->size, connection->nonce, connection->last.sequence, connection->frame,
                       &beat) != 0) {
        if (errno == ESTALE)
            snprintf(why, sizeof why, "refused: replay of an earlier heartbeat");
        else
            snprintf(why, sizeof why, "refused: not signed by client %" PRIu64 " for this connection", client);
        end(connection, why);
        return;
    }
    if (connection->known && beat.client != connection->last.client) {
        end(connection, "refused: claims to be another client now");
        return;
    }
    connection->last = beat;
    if (!connection->known) {
        ka_reaper_forget(strangers, connection->fd);
        connection->known = true;
        printf("client %" PRIu64 " connected from %s\n", beat.client, connection->name);
    }
    if (ka_reaper_touch(clients, connection->fd, now_ms()) != 0) {
        end(connection, strerror(errno));
        return;
    }
    /* The answer is the sequence number, copied from the frame. If the client does not read its answers, the send
     * buffer is full (EAGAIN), and the server drops the answer. */
    if (write(connection->fd, connection->frame + 16, sizeof beat.sequence) < 0 && errno != EAGAIN)
        end(connection, ending(errno));
}

static void receive(struct connection *connection)
{
    ssize_t size = read(connection->fd, connection->frame + connection->received,
                        sizeof connection->frame - connection->received);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        end(connection, ending(size < 0 ? errno : 0));
        return;
    }
    connection->received += (size_t)size;
    if (connection->received == sizeof connection->frame) {
        connection->received = 0;
        check_frame(connection);
    }
}

/* Ends the connections that have expired. If the peer's kernel still answers keepalive probes, the printed reason says
 * so: keepalive would not have found this peer. Returns whether more connections may have expired. */
static bool reap(struct ka_reaper *reaper, const char *what)
{
    int fds[TURN];
    int count = ka_reaper_expired(reaper, now_ms(), fds, TURN);

    for (int i = 0; i < count; i++) {
        struct ka_status status = KA_STATUS_INIT;
        char why[96];
        if (ka_get_status(fds[i], &status) != 0 || status.probes > 0 || status.unacked > 0)
            snprintf(why, sizeof why, "%s", what);
        else
            snprintf(why, sizeof why, "%s (its kernel answers keepalive)", what);
        end(connections[fds[i]], why);
        reaped++;
    }
    return count == TURN;
}

/* Returns how long epoll may wait, in ms: until the next connection of either reaper expires, and at most 1000 while
 * the listener is not watched. -1 means forever. */
static int patience(void)
{
    int one = ka_reaper_next(strangers, now_ms()), other = ka_reaper_next(clients, now_ms());
    int first = one < 0 || (other >= 0 && other < one) ? other : one;

    return listening || (first >= 0 && first < 1000) ? first : 1000;
}

static int serve(void)
{
    for (;;) {
        struct epoll_event events[TURN];
        int ready = epoll_wait(epoll, events, TURN, patience());
        bool more;

        if (ready < 0 && errno != EINTR)
            err(EXIT_FAILURE, "epoll_wait");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_some();
            else if (fd == signals)
                return EXIT_SUCCESS;
            else
                receive(connections[fd]);
        }
        more = reap(strangers, "fell silent: no heartbeat since it connected");
        more |= reap(clients, "fell silent: no heartbeat any more");
        if (reaped >= 1000 && !more) {
            /* After a flood, return the unused memory of the C library to the system. */
            reaped = 0;
#ifdef __GLIBC__
            malloc_trim(0);
#endif
        }
        if (!listening && (freed || now_ms() >= again)) {
            watch(EPOLL_CTL_ADD, listener);
            listening = true;
        }
    }
}

/* Raises the limit of descriptors as far as the system allows. */
static void raise_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
            warn("setrlimit");
    }
}

int main(int argc, char *argv[])
{
    struct keepalive_options policy = { KA_KEEP, KA_KEEP, KA_KEEP };
    int first = 5, timeout = 30, port;
    const struct number_option options[] = {
        KEEPALIVE_OPTIONS(&policy),
        { 'f', "seconds until the first heartbeat", 3600, &first },
        { 't', "seconds from one heartbeat to the next", 86400, &timeout },
    };
    sigset_t mask;

    if (!read_numbers(&argc, &argv, options, sizeof options / sizeof *options))
        usage();
    if (argc != 2) {
        warnx(argc < 2 ? "missing argument: KEYS and PORT" : "too many arguments: KEYS and PORT are enough");
        usage();
    }
    if (!read_number(argv[1], 0, 65535, &port)) {
        warnx("invalid PORT: \"%s\" (must be a number from 0 to 65535)", argv[1]);
        usage();
    }
    keys = read_keys(argv[0]);

    /* Flush each line, also if stdout is a pipe. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&mask);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signals = signalfd(-1, &mask, SFD_CLOEXEC);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    strangers = ka_reaper_new(1000 * (uint32_t)first);
    clients = ka_reaper_new(1000 * (uint32_t)timeout);
    if (signals < 0 || epoll < 0 || strangers == NULL || clients == NULL)
        err(EXIT_FAILURE, "cannot create a signalfd, an epoll instance or a reaper");
    raise_limit();

    listener = bind_to(port);
    /* While an answer is unacknowledged, the kernel sends no probes. Then the user timeout ends the connection. */
    if (ka_apply(listener, &KA_CONFIG(.keepalive = KA_ON, .idle = policy.idle, .intvl = policy.intvl,
                                      .cnt = policy.cnt, .user_timeout = KA_AUTO)) != 0)
        err(EXIT_FAILURE, "cannot enable keepalive");
    if (listen(listener, SOMAXCONN) != 0)
        err(EXIT_FAILURE, "cannot listen on port %d", port);
    printf("listening on port %d\n", port_of(listener));
    listening = true;
    watch(EPOLL_CTL_ADD, listener);
    watch(EPOLL_CTL_ADD, signals);
    int status = serve();

    printf("ended, with %zu clients and %zu strangers\n", ka_reaper_len(clients), ka_reaper_len(strangers));
    for (size_t fd = 0; fd < room; fd++) {
        if (connections[fd] == NULL)
            continue;
        close(connections[fd]->fd);
        free(connections[fd]);
    }
    free(connections);
    ka_reaper_free(strangers);
    ka_reaper_free(clients);
    forget_keys(&keys);
    return status;
}
