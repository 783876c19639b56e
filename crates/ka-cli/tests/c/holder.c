/*
 * holder: a process with TCP sockets, which prints their options on request.
 *
 * It listens on a port of loopback and connects to itself. Then it reads commands, one on each line:
 *   look    prints a line for each socket: descriptor, SO_KEEPALIVE, idle, intvl, cnt, user timeout; then "end"
 *   open    opens another connection, both ends; then prints "end"
 * It ends at the end of its input. It accepts any of these arguments:
 *   undumpable  only root may inspect the process
 *   task        a thread with its own descriptor table makes the connection
 *   leaderless  the same, and the first thread ends
 *   udp         the process also has a UDP and a unix socket
 *   keepalive   the connecting end has keepalive on, with 10, 5, 2
 */
#define _GNU_SOURCE
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int fds[4096], count, listener, keepalive;
static struct sockaddr_in address;

static int keep(int fd)
{
    if (fd < 0)
        err(EXIT_FAILURE, "socket");
    return fds[count++] = fd;
}

static void set(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value) != 0)
        err(EXIT_FAILURE, "setsockopt");
}

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    getsockopt(fd, level, name, &value, &size);
    return value;
}

static void open_pair(void)
{
    int fd = keep(socket(AF_INET, SOCK_STREAM, 0));
    if (keepalive) {
        set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10);
        set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
        set(fd, IPPROTO_TCP, TCP_KEEPCNT, 2);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        err(EXIT_FAILURE, "connect");
    keep(accept(listener, NULL, NULL));
}

static void look(void)
{
    for (int n = 0; n < count; n++)
        printf("%d %d %d %d %d %d\n", fds[n], get(fds[n], SOL_SOCKET, SO_KEEPALIVE),
               get(fds[n], IPPROTO_TCP, TCP_KEEPIDLE), get(fds[n], IPPROTO_TCP, TCP_KEEPINTVL),
               get(fds[n], IPPROTO_TCP, TCP_KEEPCNT), get(fds[n], IPPROTO_TCP, TCP_USER_TIMEOUT));
}

static void serve(void)
{
    char line[64];
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (strcmp(line, "open\n") == 0)
            open_pair();
        else
            look();
        puts("end");
        fflush(stdout);
    }
    exit(EXIT_SUCCESS);
}

static void *task(void *unused)
{
    (void)unused;
    if (unshare(CLONE_FILES) != 0)
        err(EXIT_FAILURE, "unshare");
    open_pair();
    serve();
    return NULL;
}

int main(int argc, char **argv)
{
    int in_task = 0, leaderless = 0, others = 0;
    for (int n = 1; n < argc; n++) {
        if (strcmp(argv[n], "undumpable") == 0 && prctl(PR_SET_DUMPABLE, 0) != 0)
            err(EXIT_FAILURE, "prctl");
        in_task |= strcmp(argv[n], "task") == 0;
        leaderless |= strcmp(argv[n], "leaderless") == 0;
        others |= strcmp(argv[n], "udp") == 0;
        keepalive |= strcmp(argv[n], "keepalive") == 0;
    }
    socklen_t size = sizeof address;
    address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    listener = keep(socket(AF_INET, SOCK_STREAM, 0));
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 128) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        err(EXIT_FAILURE, "listener");
    if (others) {
        keep(socket(AF_INET, SOCK_DGRAM, 0));
        keep(socket(AF_UNIX, SOCK_STREAM, 0));
    }
    if (in_task || leaderless) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, task, NULL) != 0)
            err(EXIT_FAILURE, "pthread_create");
        if (leaderless)
            pthread_exit(NULL);
        pthread_join(thread, NULL);
    }
    open_pair();
    serve();
}
