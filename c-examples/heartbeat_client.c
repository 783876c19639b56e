/*
 * heartbeat_client [-c count] [-d idle] [-i interval] [-b beat] KEYS HOST:PORT
 *
 * Keeps a connection to heartbeat_server, and sends a signed heartbeat at once and then every few seconds. Keepalive
 * finds a server that is unreachable. Missing answers show a server that hangs. In both cases the client connects
 * again, after 1 s, 2 s, 4 s, ... 60 s. KEYS has one line: the client's number and its key. docs/heartbeat.md describes
 * the protocol.
 */
#include <err.h>
#include <errno.h>
#include <inttypes.h>
#include <ka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keys.h"
#include "options.h"
#include "sockets.h"

/* If a beat has no answer after this many beat intervals, the client assumes that the server hangs. */
#define PATIENCE 3
/* The longest time from one attempt to connect to the next, in seconds. */
#define LONGEST_WAIT 60

static void usage(void)
{
    fprintf(stderr,
            "usage: heartbeat_client [-c count] [-d idle] [-i interval] [-b beat] KEYS HOST:PORT\n"
            "  -c count     unanswered probes before the server is dead, 1 to %d\n"
            "  -d idle      seconds without traffic before the first probe, 1 to %d\n"
            "  -i interval  seconds between unanswered probes, 1 to %d\n"
            "  -b beat      seconds from one heartbeat to the next, 1 to 86400; 10 if not given\n"
            "  KEYS         a file with one line: this client's number, and its key in hexadecimal\n"
            "  HOST:PORT    as 192.0.2.1:5050, [2001:db8::1]:5050 or example.net:5050\n",
            KA_CNT_MAX, KA_IDLE_MAX, KA_INTVL_MAX);
    exit(EXIT_FAILURE);
}

/* Reads `wanted` bytes before the time `until`. Returns NULL, or the reason why it failed. */
static const char *receive(int fd, uint8_t *bytes, size_t wanted, double until)
{
    size_t received = 0;

    while (received < wanted) {
        double left = until - now();
        struct pollfd ready = { .fd = fd, .events = POLLIN };
        ssize_t size;

        if (left <= 0 || poll(&ready, 1, (int)(left * 1000) + 1) == 0)
            return "hangs: no answer";
        size = recv(fd, bytes + received, wanted - received, MSG_DONTWAIT);
        if (size == 0)
            return "closed the connection";
        if (size > 0)
            received += (size_t)size;
        else if (errno != EAGAIN && errno != EINTR)
            return ending(errno);
    }
    return NULL;
}

static uint64_t number(const uint8_t *bytes)
{
    uint64_t number = 0;

    for (size_t i = 0; i < sizeof number; i++)
        number = number << 8 | bytes[i];
    return number;
}

/* Sends heartbeats until the connection fails. Returns the reason. *answered is the last beat that was answered. */
static const char *beat_on(int fd, const struct key *key, int every, uint64_t *answered)
{
    struct ka_beat beat = { key->client, 0 };
    uint8_t nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE], answer[sizeof beat.sequence];
    const char *why = receive(fd, nonce, sizeof nonce, now() + PATIENCE * every);

    while (why == NULL) {
        double next = now() + every;
        beat.sequence++;
        if (ka_beat_sign(key->bytes, key->size, nonce, &beat, frame) != 0)
            err(EXIT_FAILURE, "ka_beat_sign");
        if (send(fd, frame, sizeof frame, MSG_NOSIGNAL) != sizeof frame)
            return ending(errno);
        why = receive(fd, answer, sizeof answer, now() + PATIENCE * every);
        if (why != NULL)
            return why;
        if (number(answer) != beat.sequence)
            return "sent a wrong answer";
        if (*answered == 0)
            printf("connected as client %" PRIu64 "\n", beat.client);
        *answered = beat.sequence;
        /* The server has nothing to send before the next beat. If the socket is readable, the connection has ended. */
        struct pollfd ended = { .fd = fd, .events = POLLIN };
        double left = next - now();
        if (left > 0 && poll(&ended, 1, (int)(left * 1000) + 1) > 0)
            why = receive(fd, answer, 1, now() + 1);
        if (why == NULL && ended.revents != 0)
            why = "sent data that was not requested";
    }
    return why;
}

int main(int argc, char *argv[])
{
    struct keepalive_options policy = { KA_KEEP, KA_KEEP, KA_KEEP };
    int every = 10, port, wait = 1;
    const struct number_option options[] = {
        KEEPALIVE_OPTIONS(&policy),
        { 'b', "seconds between heartbeats", 86400, &every },
    };
    struct keys keys;
    char *host;

    if (!read_numbers(&argc, &argv, options, sizeof options / sizeof *options))
        usage();
    if (argc != 2) {
        warnx(argc < 2 ? "missing argument: KEYS and HOST:PORT" : "too many arguments: KEYS and HOST:PORT are enough");
        usage();
    }
    host = split(argv[1], &port);
    if (host == NULL)
        usage();
    keys = read_keys(argv[0]);
    if (keys.count != 1)
        errx(EXIT_FAILURE, "%s has the keys of %zu clients: it must have one", argv[0], keys.count);

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        const char *why = "";
        uint64_t answered = 0;
        struct addrinfo *addresses = resolve(host, port, &why);
        int fd = addresses == NULL ? -1 : connect_to(addresses, &policy);

        if (fd >= 0)
            why = beat_on(fd, keys.key, every, &answered);
        else if (addresses != NULL)
            why = strerror(errno);
        if (fd >= 0)
            close(fd);
        if (addresses != NULL)
            freeaddrinfo(addresses);
        /* If the server has answered at least once, start again at 1 s. Otherwise wait twice as long each time. */
        if (answered > 0)
            wait = 1;
        printf("%s: %s; connecting again in %d s\n", argv[1], why, wait);
        sleep((unsigned)wait);
        wait = 2 * wait > LONGEST_WAIT ? LONGEST_WAIT : 2 * wait;
    }
}
