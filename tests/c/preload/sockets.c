/*
 * sockets: opens sockets in every way that a preloaded library can see, and prints what the kernel has in force for
 * each: "what: SO_KEEPALIVE idle intvl cnt user_timeout". `sockets received` does the same with sockets that it
 * receives from its own user.
 */
#include "probe.h"

static void show(const char *what, int fd)
{
    CHECK(fd >= 0);
    printf("%s: %s\n", what, five(fd));
}

/* Connects and accepts, through the C library or by syscall(2). */
static void connection(const char *what, int domain, int protocol, int by_number)
{
    struct sockaddr_storage address;
    socklen_t size;
    char name[64];
    int listener = listener_on(domain, protocol, &address, &size);
    int client = by_number ? (int)syscall(SYS_socket, domain, SOCK_STREAM | SOCK_CLOEXEC, protocol)
                           : socket(domain, SOCK_STREAM | SOCK_CLOEXEC, protocol);
    CHECK(client >= 0);
    errno = 77;
    CHECK((by_number ? syscall(SYS_connect, client, &address, size)
                     : connect(client, (struct sockaddr *)&address, size)) == 0);
    CHECK(errno == 77);
    int accepted = by_number ? (int)syscall(SYS_accept4, listener, NULL, NULL, SOCK_NONBLOCK)
                             : accept(listener, NULL, NULL);
    CHECK(errno == 77);
    snprintf(name, sizeof name, "%s listener", what);
    show(name, listener);
    snprintf(name, sizeof name, "%s client", what);
    show(name, client);
    snprintf(name, sizeof name, "%s accepted", what);
    show(name, accepted);
    CHECK(close(accepted) == 0 && close(client) == 0 && close(listener) == 0);
}

/* Makes a socket with the instruction, so that no hook sees it. */
static int unseen(int domain, int type, int protocol)
{
    return (int)raw(SYS_socket, domain, type, protocol, 0, 0, 0);
}

static void unseen_sockets(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    int listener = listener_on(AF_INET, 0, &address, &size);
    /* The shim records nothing about high descriptor numbers. */
    int client = unseen(AF_INET, SOCK_STREAM, 0);
    CHECK(dup2(client, 500) == 500 && close(client) == 0);
    CHECK(connect(500, (struct sockaddr *)&address, size) == 0);
    show("unseen, connected", 500);

    int bare = unseen(AF_INET, SOCK_STREAM, 0);
    CHECK(dup2(bare, 501) == 501 && close(bare) == 0);
    struct sockaddr_in any = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t any_size = sizeof any;
    CHECK(bind(501, (struct sockaddr *)&any, any_size) == 0 && raw(SYS_listen, 501, 8, 0, 0, 0, 0) == 0);
    CHECK(getsockname(501, (struct sockaddr *)&any, &any_size) == 0);
    int one = socket(AF_INET, SOCK_STREAM, 0), two = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(one, (struct sockaddr *)&any, any_size) == 0 && connect(two, (struct sockaddr *)&any, any_size) == 0);
    int accepted = accept4(501, NULL, NULL, SOCK_CLOEXEC);
    show("accepted from an unseen listener", accepted);
    show("the unseen listener", 501);
    int queued = accept(501, NULL, NULL);
    show("accepted later, queued before", queued);
    close(one), close(two), close(accepted), close(queued), close(500), close(501), close(listener);
}

/* Receives descriptors in a message from this user. */
static void rights(const char *what, enum receive way)
{
    int pair[2], sent[2] = { unseen(AF_INET, SOCK_STREAM, 0), unseen(AF_INET6, SOCK_STREAM, 0) }, received[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    send_descriptors(pair[0], sent, 2);
    close(sent[0]), close(sent[1]);
    errno = 77;
    receive_descriptors(way, pair[1], received, 2);
    CHECK(errno == 77);
    char name[64];
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s, descriptor %d", what, i);
        show(name, received[i]);
        close(received[i]);
    }
    close(pair[0]), close(pair[1]);
}

static void fastopen(const char *what, int way)
{
    struct sockaddr_storage address;
    socklen_t size;
    int listener = listener_on(AF_INET, 0, &address, &size);
    int client = unseen(AF_INET, SOCK_STREAM, 0);
    CHECK(dup2(client, 502) == 502 && close(client) == 0);
    struct iovec iov = { "x", 1 };
    struct mmsghdr message = { .msg_hdr = { .msg_name = &address, .msg_namelen = size, .msg_iov = &iov, .msg_iovlen = 1 } };
    long sent = way == 0   ? sendto(502, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, size)
                : way == 1 ? sendmsg(502, &message.msg_hdr, MSG_FASTOPEN)
                : way == 2 ? sendmmsg(502, &message, 1, MSG_FASTOPEN)
                           : syscall(SYS_sendto, 502, "x", 1L, MSG_FASTOPEN, &address, size);
    CHECK(sent == 1);
    show(what, 502);
    close(502), close(listener);
}

int main(int argc, char **argv)
{
    int fd;

    if (argc > 1 && strcmp(argv[1], "received") == 0) {
        become_an_ordinary_user();
        rights("recvmsg", BY_RECVMSG);
        rights("recvmmsg", BY_RECVMMSG);
        rights("recvmsg by number", BY_NUMBER);
        rights("recvmmsg by number", BY_NUMBER_MANY);
        return 0;
    }

    errno = 77;
    show("TCP", socket(AF_INET, SOCK_STREAM, 0));
    show("TCP, by name", socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    show("TCP, CLOEXEC and NONBLOCK", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    CHECK(errno == 77);
    show("TCP by number", (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    CHECK(errno == 77);
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    if (fd >= 0) {
        show("TCP over IPv6", fd);
        connection("IPv6", AF_INET6, 0, 0);
    }
    errno = 77;
    fd = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    if (fd >= 0) {
        show("MPTCP", fd);
        connection("MPTCP", AF_INET, IPPROTO_MPTCP, 0);
    }
    connection("IPv4", AF_INET, 0, 0);
    connection("IPv4 by number", AF_INET, 0, 1);
    unseen_sockets();
    fastopen("sendto, fast open", 0);
    fastopen("sendmsg, fast open", 1);
    fastopen("sendmmsg, fast open", 2);
    fastopen("sendto by number, fast open", 3);

    /* Sockets that are not TCP must stay unchanged. */
    show("not UDP", socket(AF_INET, SOCK_DGRAM, 0));
    show("not unix", socket(AF_UNIX, SOCK_STREAM, 0));
    fd = socket(AF_NETLINK, SOCK_RAW, 6);
    if (fd >= 0 || errno != EPROTONOSUPPORT) /* qemu's emulation fails so */
        show("not netlink", fd);
    fd = socket(AF_INET, SOCK_RAW, IPPROTO_TCP);
    if (fd >= 0)
        show("not raw", fd);
    fd = socket(AF_INET, SOCK_STREAM, 132 /* SCTP */);
    if (fd >= 0)
        show("not SCTP", fd);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    show("not a socket pair", pair[0]);
    return 0;
}
