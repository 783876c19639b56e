/*
 * calls SEED COUNT: makes random socket calls, and prints the result of each on a line. Two runs with the same seed can
 * be compared.
 *
 * It has a listener on loopback, and 16 slots for descriptors, some of which are never open. It does not print values
 * that depend on the machine (addresses, ports, times). It makes some of the calls by syscall(2) instead of the
 * functions of the C library.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PLACES = 16, FIRST = 100 };

static uint64_t state;

/* xorshift64 */
static unsigned pick(unsigned below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 33) % below;
}

#define ONE_OF(array) array[pick(sizeof array / sizeof *array)]

static void tell(const char *call, long result)
{
    printf("%s %ld %d\n", call, result, result < 0 ? errno : 0);
}

/* Moves a new descriptor to a slot that does not depend on other open descriptors. */
static void place(const char *call, int fd)
{
    int to = FIRST + (int)pick(PLACES);
    tell(call, fd < 0 ? fd : 0);
    if (fd >= 0) {
        dup2(fd, to);
        close(fd);
        /* An accepted socket must not block either. */
        fcntl(to, F_SETFL, O_NONBLOCK);
    }
}

int main(int argc, char **argv)
{
    static const int domains[] = { AF_INET, AF_INET, AF_INET, AF_INET6, AF_UNIX, AF_NETLINK, 99 };
    static const int types[] = { SOCK_STREAM, SOCK_STREAM, SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, 77 };
    static const int protocols[] = { 0, 0, 0, IPPROTO_TCP, IPPROTO_UDP, 262 };
    static const int levels[] = { SOL_SOCKET, IPPROTO_TCP, IPPROTO_TCP, IPPROTO_IP };
    static const int names[] = { SO_KEEPALIVE, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT, TCP_NODELAY,
                                 SO_REUSEADDR, TCP_FASTOPEN_CONNECT };
    static const int values[] = { 0, 1, 2, 30, 32767, 32768, -1, 99999 };
    static const socklen_t sizes[] = { 0, 3, 4, 4, 4, 8, (socklen_t)-1 };
    if (argc != 3)
        return 2;
    state = strtoull(argv[1], NULL, 10) * 2654435761 + 1;
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sockaddr_in nobody = here, any = here;
    nobody.sin_port = htons(1);
    socklen_t length = sizeof here;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    /* The accept queue is long enough for all connections, even if none is accepted. */
    if (bind(server, (struct sockaddr *)&here, length) != 0 || listen(server, 4096) != 0 ||
        getsockname(server, (struct sockaddr *)&here, &length) != 0)
        return 2;
    for (int n = atoi(argv[2]); n > 0; n--) {
        int fd = pick(20) == 0 ? -1 : FIRST + (int)pick(PLACES);
        int level = ONE_OF(levels), name = ONE_OF(names), value = ONE_OF(values);
        socklen_t size = ONE_OF(sizes);
        const void *bad = (const void *)16;
        int flags = pick(2) ? MSG_FASTOPEN : 0;
        struct sockaddr_in *to = pick(3) ? &here : &nobody;
        struct iovec part = { .iov_base = (void *)"x", .iov_len = 1 };
        struct msghdr message = { .msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &part, .msg_iovlen = 1 };
        struct mmsghdr messages = { .msg_hdr = message };
        struct pollfd waited = { .fd = fd, .events = POLLIN | POLLOUT };
        char data[4];
        struct iovec room = { .iov_base = data, .iov_len = sizeof data };
        struct msghdr taken = { .msg_iov = &room, .msg_iovlen = 1 };
        int by_number = pick(4) == 0, pair[2];
        socklen_t four = sizeof value;
        switch (pick(25)) {
        case 0:
        case 1:
            place("socket", socket(ONE_OF(domains), ONE_OF(types) | SOCK_NONBLOCK, ONE_OF(protocols)));
            break;
        case 2:
            size = pick(5) ? sizeof *to : 3;
            tell("connect", by_number ? syscall(SYS_connect, fd, to, size) : connect(fd, (struct sockaddr *)to, size));
            break;
        case 3:
            tell("connect", connect(fd, pick(2) ? NULL : bad, sizeof here));
            break;
        case 4:
            tell("listen", by_number ? syscall(SYS_listen, fd, (int)pick(8)) : listen(fd, (int)pick(8)));
            break;
        case 5:
            tell("bind", bind(fd, (struct sockaddr *)&any, sizeof any));
            break;
        case 6:
        case 7:
            tell("setsockopt", setsockopt(fd, level, name, pick(20) ? &value : bad, size));
            break;
        case 8:
            tell("close", close(fd));
            break;
        case 9:
            place("dup", dup(fd));
            break;
        case 10:
            tell("sendto", sendto(fd, "x", 1, flags | MSG_NOSIGNAL, (struct sockaddr *)to, sizeof *to));
            break;
        case 11:
            tell("sendmsg", sendmsg(fd, pick(8) ? &message : (struct msghdr *)bad, flags | MSG_NOSIGNAL));
            break;
        case 14:
        case 15:
            place("accept", accept(pick(4) ? fd : server, NULL, NULL));
            break;
        case 16:
            place("accept4", accept4(pick(4) ? fd : server, NULL, pick(4) ? NULL : &four, pick(4) ? SOCK_NONBLOCK : 3));
            break;
        case 17:
            tell("sendmmsg", sendmmsg(fd, &messages, pick(3), flags | MSG_NOSIGNAL));
            break;
        case 18:
            tell("recvmsg", recvmsg(fd, pick(8) ? &taken : (struct msghdr *)bad, MSG_DONTWAIT));
            break;
        case 19:
            messages.msg_hdr = taken;
            tell("recvmmsg", recvmmsg(fd, &messages, pick(3), MSG_DONTWAIT, NULL));
            break;
        case 20:
            value = -1;
            tell("getsockopt", getsockopt(fd, SOL_SOCKET, pick(2) ? SO_TYPE : SO_ACCEPTCONN, &value, &four));
            tell("value", value);
            break;
        case 21:
            tell("poll", poll(&waited, 1, 0));
            tell("events", waited.revents);
            break;
        case 22:
            tell("socketpair", socketpair(pick(2) ? AF_UNIX : AF_INET, ONE_OF(types), 0, pair) == 0
                                   ? close(pair[0]) + close(pair[1]) : -1);
            break;
        case 23:
            size = sizeof any;
            tell("getpeername", getpeername(fd, (struct sockaddr *)&(struct sockaddr_in){ 0 }, &size));
            break;
        case 24:
            place("socket", (int)syscall(SYS_socket, ONE_OF(domains), ONE_OF(types) | SOCK_NONBLOCK, ONE_OF(protocols)));
            break;
        case 12:
            tell("shutdown", shutdown(fd, (int)pick(4)));
            break;
        default:
            place("open", open(pick(2) ? "/dev/null" : "/no/such", O_RDONLY));
        }
    }
    return 0;
}
