/* A TCP listener on a free port of 127.0.0.1, for the benchmarks that make connections. */
#ifndef LOOPBACK_H
#define LOOPBACK_H

#include <err.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

/* Returns the listener, and writes its address to *address. */
static inline int listen_on_loopback(struct sockaddr_in *address, int backlog)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    *address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    if (fd < 0 || bind(fd, (struct sockaddr *)address, size) != 0 || listen(fd, backlog) != 0 ||
        getsockname(fd, (struct sockaddr *)address, &size) != 0)
        err(EXIT_FAILURE, "listener on 127.0.0.1");
    return fd;
}

#endif
