/*
 * peers PORT: a program for rules. It connects to 127.0.0.1:PORT and 127.0.0.2:PORT, with blocking and non-blocking
 * sockets, and accepts a connection from 127.0.0.1. Prints the settings of each socket from the kernel.
 */
#include "probe.h"

static void connect_to(const char *what, uint32_t host, uint16_t port, int type)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(host) };
    int fd = socket(AF_INET, SOCK_STREAM | type, 0);
    printf("%s, before: %s\n", what, five(fd));
    int result = connect(fd, (struct sockaddr *)&address, sizeof address);
    CHECK(result == 0 || errno == EINPROGRESS);
    printf("%s: %s\n", what, five(fd));
    int zero = 0;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero) == 0);
    printf("%s, turned off: %s\n", what, five(fd));
    close(fd);
}

int main(int argc, char **argv)
{
    uint16_t port = (uint16_t)atoi(argc > 1 ? argv[1] : "0");
    struct sockaddr_storage address;
    socklen_t size;

    connect_to("one", 0x7f000001, port, 0);
    connect_to("two", 0x7f000002, port, SOCK_NONBLOCK);
    int six = socket(AF_INET6, SOCK_STREAM, 0);
    if (six >= 0) {
        struct sockaddr_in6 mapped = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
        CHECK(inet_pton(AF_INET6, "::ffff:127.0.0.2", &mapped.sin6_addr) == 1);
        CHECK(connect(six, (struct sockaddr *)&mapped, sizeof mapped) == 0);
        printf("mapped: %s\n", five(six));
    }
    int listener = listener_on(AF_INET, 0, &address, &size);
    printf("listener: %s\n", five(listener));
    int client = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    CHECK(raw(SYS_connect, client, (long)&address, size, 0, 0, 0) == 0);
    printf("accepted: %s\n", five(accept(listener, NULL, NULL)));
    /* The kernel must reject a wrong pointer. */
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)8, sizeof(struct sockaddr_in)) == -1 && errno == EFAULT);
    CHECK(sendmsg(fd, (struct msghdr *)8, MSG_FASTOPEN) == -1 && errno == EFAULT);
    printf("well\n");
    return 0;
}
