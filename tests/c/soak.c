/* An echo server that allocates nothing for a connection. If its memory grows, the cause is libka or the shim.
 *
 *     soak PORT [fd|memory]
 *
 * With fd or memory, it leaks a descriptor or 64 bytes with each connection. At the end of its standard input,
 * it prints the numbers of connections (made, ended by the peer, found dead, reset), and exits. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int listener, epoll;
static unsigned long made, ended, dead, reset;
static const char *leak = "";
void *volatile lost;

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        perror("epoll_ctl");
        exit(1);
    }
}

static void take(void) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        /* Many programs set this option, and the shim sees each call. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){0}, sizeof(int));
        watch(fd);
        made++;
        if (strcmp(leak, "fd") == 0)
            dup(fd);
        if (strcmp(leak, "memory") == 0)
            memset(lost = malloc(64), 1, 64);
    }
}

static void give_back(int fd) {
    char data[4096];
    ssize_t size;
    while ((size = recv(fd, data, sizeof data, 0)) > 0)
        if (send(fd, data, (size_t)size, MSG_NOSIGNAL) != size)
            break;
    if (size < 0 && errno == EAGAIN)
        return;
    ended += size == 0;
    dead += size < 0 && errno == ETIMEDOUT;
    reset += size < 0 && errno == ECONNRESET;
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
}

int main(int count, char **args) {
    if (count < 2)
        return 2;
    if (count > 2)
        leak = args[2];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(args[1]))};
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0) {
        perror("listen");
        return 1;
    }
    watch(listener);
    watch(STDIN_FILENO);
    puts("listening");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) {
                printf("made %lu, ended %lu, dead %lu, reset %lu\n", made, ended, dead, reset);
                return 0;
            }
            if (fd == listener)
                take();
            else
                give_back(fd);
        }
    }
}
