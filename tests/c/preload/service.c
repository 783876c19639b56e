/*
 * service: a server and its clients in one process. It makes all calls that the shim hooks. Prints a line with the
 * result and errno of each call, and lines with a colon for the keepalive settings of each socket, from the kernel.
 * Only the lines with a colon may differ under the shim.
 *
 * service wild: only makes calls with wrong pointers.
 */
#include "probe.h"

static void said(const char *what, long result)
{
    int error = errno;
    printf("%s %ld %d\n", what, result < 0 ? result : 0, result < 0 ? error : 0);
    errno = 77;
}

/* Makes a call and prints its result. A successful call must not change errno. */
#define SAY(call)                                      \
    ({                                                 \
        errno = 77;                                    \
        long result = call;                            \
        said(#call, result);                           \
        if (result >= 0 && errno != 77)                \
            printf("%s changed errno\n", #call);       \
        (int)result;                                   \
    })

static int wild(void)
{
    int fd = SAY(socket(AF_INET, SOCK_STREAM, 0));
    void *nowhere = (void *)16;

    SAY(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, nowhere, sizeof(int)));
    SAY(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, nowhere, sizeof(int)));
    SAY(connect(fd, nowhere, sizeof(struct sockaddr_in)));
    SAY(sendmsg(fd, nowhere, MSG_FASTOPEN));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "wild") == 0)
        return wild();
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sockaddr *to = (struct sockaddr *)&address;
    socklen_t size = sizeof address;
    int zero = 0, one = 1, idle = 300, bad = 99999, pair[2];
    char byte = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec part = { &byte, 1 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };

    int server = SAY(socket(AF_INET, SOCK_STREAM, 0));
    int udp = SAY(socket(AF_INET, SOCK_DGRAM, 0));
    SAY(bind(server, to, size));
    SAY(listen(server, 8));
    SAY(getsockname(server, to, &size));
    int client = SAY(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    SAY(connect(client, to, size));
    int accepted = SAY(accept(server, NULL, NULL));
    int second = (int)SAY(syscall(SYS_socket, AF_INET, SOCK_STREAM, 0));
    SAY(syscall(SYS_connect, second, to, size));
    int other = SAY(accept4(server, NULL, NULL, SOCK_CLOEXEC));
    SAY(setsockopt(client, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    SAY(setsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle));
    SAY(setsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &bad, sizeof bad));
    SAY(setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero));
    SAY(setsockopt(udp, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
    SAY(setsockopt(-1, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one));
    SAY(setsockopt(accepted, IPPROTO_TCP, TCP_USER_TIMEOUT, &idle, sizeof idle));
    SAY(send(client, &byte, 1, 0));
    SAY(recv(accepted, &byte, 1, 0));

    /* A socket that no hook has seen, received in a message. */
    int stranger = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    SAY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
    memcpy(CMSG_DATA(header), &stranger, sizeof stranger);
    SAY(sendmsg(pair[0], &message, 0));
    memset(control, 0, sizeof control);
    SAY(recvmsg(pair[1], &message, 0));
    int sent = -1;
    memcpy(&sent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof sent);
    int fast = SAY(socket(AF_INET, SOCK_STREAM, 0));
    SAY(sendto(fast, &byte, 1, MSG_FASTOPEN | MSG_NOSIGNAL, to, size));

    /* Sockets that the hooks see for the first time in connect and listen. */
    int raw_client = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    SAY(connect(raw_client, to, size));
    int raw_server = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    SAY(listen(raw_server, 8));

    const int all[] = { server, client, accepted, second, other, sent, fast, raw_client, raw_server };
    for (size_t n = 0; n < sizeof all / sizeof *all; n++)
        printf("socket %zu: %s\n", n, five(all[n]));
    printf("udp: %d\n", kernel_get(udp, SOL_SOCKET, SO_KEEPALIVE));
    printf("next descriptor %d\n", dup(0));

    /* Root never trusts a sender; an ordinary user trusts itself. */
    become_an_ordinary_user();
    SAY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    stranger = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    send_descriptors(pair[0], &stranger, 1);
    memset(control, 0, sizeof control);
    message.msg_controllen = sizeof control;
    SAY(recvmsg(pair[1], &message, 0));
    memcpy(&sent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof sent);
    printf("socket that this user sends: %s\n", five(sent));
    return 0;
}
