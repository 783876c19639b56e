/*
 * trace on|off POLICY: makes one call of ka_apply between two marks, on a socket with keepalive on or off. strace logs
 * its system calls, or makes one fail. Prints the result of the call, and the six values before and after it.
 *
 * trace enable N: makes N calls of ka_enable(fd, 60, 10, 5) on a new socket, each between two marks.
 *
 * trace probe TIMEOUT...: probes an idle connection with each timeout, each between two marks. Prints the results.
 *
 * trace server: sets keepalive on a listener once, and accepts a connection after each mark.
 */
#include <errno.h>
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void mark(void)
{
    close(-77);
}

/* The last is TCP_RTO_MAX_MS. */
static const int six[6][2] = {
    { SOL_SOCKET, SO_KEEPALIVE }, { IPPROTO_TCP, TCP_KEEPIDLE },     { IPPROTO_TCP, TCP_KEEPINTVL },
    { IPPROTO_TCP, TCP_KEEPCNT }, { IPPROTO_TCP, TCP_USER_TIMEOUT }, { IPPROTO_TCP, 44 },
};

static void show(int fd)
{
    for (int i = 0; i < 6; i++) {
        int value = -1;
        socklen_t size = sizeof value;
        /* Kernels before Linux 6.15 lack the last option. */
        if (getsockopt(fd, six[i][0], six[i][1], &value, &size) != 0 && i < 5)
            exit(2);
        printf("%d ", value);
    }
}

static int apply(int on, const char *policy)
{
    const int start[6] = { on, 600, 60, 6, 60000, 60000 };
    struct ka_config config = KA_CONFIG_INIT;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || ka_parse(policy, &config) != 0)
        return 2;
    /* The test counts on exactly six writes before the mark. */
    for (int i = 5; i >= 0; i--)
        if (setsockopt(fd, six[i][0], six[i][1], &start[i], sizeof start[i]) != 0 && i < 5)
            return 2;
    show(fd);
    mark();
    errno = 0;
    int result = ka_apply(fd, &config);
    int error = errno;
    mark();
    show(fd);
    printf("%d %d\n", result, error);
    return 0;
}

static int enable(int calls)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    mark();
    while (calls-- > 0) {
        if (ka_enable(fd, 60, 10, 5) != 0)
            return 2;
        mark();
    }
    return 0;
}

/* Returns a listener on loopback, and its address. */
static int make_listener(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    *address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (bind(listener, (struct sockaddr *)address, size) != 0 || listen(listener, 8) != 0 ||
        getsockname(listener, (struct sockaddr *)address, &size) != 0)
        exit(2);
    return listener;
}

static int probe(char **timeouts)
{
    struct sockaddr_in address;
    make_listener(&address);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, (struct sockaddr *)&address, sizeof address) != 0)
        return 2;
    usleep(1200000);
    for (; *timeouts != NULL; timeouts++) {
        mark();
        int result = ka_probe(client, atoi(*timeouts));
        mark();
        printf("%d ", result);
    }
    return 0;
}

static int server(void)
{
    struct sockaddr_in address;
    int listener = make_listener(&address);
    if (ka_enable(listener, 60, 10, 5) != 0)
        return 2;
    for (int i = 0; i < 3; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(client, (struct sockaddr *)&address, sizeof address) != 0)
            return 2;
        mark();
        int accepted = accept(listener, NULL, NULL);
        mark();
        show(accepted);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "enable") == 0)
        return enable(atoi(argv[2]));
    if (argc >= 3 && strcmp(argv[1], "probe") == 0)
        return probe(argv + 2);
    if (argc == 2 && strcmp(argv[1], "server") == 0)
        return server();
    if (argc == 3)
        return apply(strcmp(argv[1], "on") == 0, argv[2]);
    return 2;
}
