#include "sockets.h"

#include <err.h>
#include <errno.h>
#include <ka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int bind_to(int port)
{
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int yes = 1, no = 0;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        if (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no) != 0 ||
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0)
            err(EXIT_FAILURE, "setsockopt");
        if (bind(fd, (struct sockaddr *)&six, sizeof six) == 0)
            return fd;
        if (errno != EADDRNOTAVAIL)
            err(EXIT_FAILURE, "cannot bind port %d", port);
        close(fd);
    }
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        err(EXIT_FAILURE, "socket");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0)
        err(EXIT_FAILURE, "setsockopt");
    if (bind(fd, (struct sockaddr *)&four, sizeof four) != 0)
        err(EXIT_FAILURE, "cannot bind port %d", port);
    return fd;
}

int port_of(int fd)
{
    struct sockaddr_in6 address; /* sin_port and sin6_port are in the same place */
    socklen_t size = sizeof address;

    if (getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        err(EXIT_FAILURE, "getsockname");
    return ntohs(address.sin6_port);
}

void name_of(const struct sockaddr_in6 *six, char *name, size_t size)
{
    const struct sockaddr_in *four = (const struct sockaddr_in *)six; /* the port is in the same place */
    char host[INET6_ADDRSTRLEN] = "?";
    bool mapped = six->sin6_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&six->sin6_addr);

    if (mapped)
        inet_ntop(AF_INET, &six->sin6_addr.s6_addr[12], host, sizeof host);
    else if (six->sin6_family == AF_INET6)
        inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
    else
        inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
    snprintf(name, size, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, ntohs(six->sin6_port));
}

char *split(const char *address, int *port)
{
    const char *host = address, *colon = strrchr(address, ':');
    size_t size = colon == NULL ? 0 : (size_t)(colon - address);
    char *copy;

    if (size > 2 && address[0] == '[' && colon[-1] == ']') {
        host++;
        size -= 2;
    } else if (strcspn(address, ":[]") != size) {
        size = 0; /* an IPv6 address without its brackets, or with one of them */
    }
    if (size == 0 || !read_number(colon + 1, 1, 65535, port)) {
        warnx("invalid HOST:PORT: \"%s\"", address);
        return NULL;
    }
    copy = strndup(host, size);
    if (copy == NULL)
        err(EXIT_FAILURE, "strndup");
    return copy;
}

struct addrinfo *resolve(const char *host, int port, const char **why)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    struct addrinfo *found;
    char service[6];
    int error;

    snprintf(service, sizeof service, "%d", port);
    error = getaddrinfo(host, service, &hints, &found);
    if (error == 0)
        return found;
    *why = error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error);
    return NULL;
}

int connect_to(const struct addrinfo *addresses, const struct keepalive_options *options)
{
    int error = 0;

    for (const struct addrinfo *address = addresses; address != NULL; address = address->ai_next) {
        int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC, address->ai_protocol);
        if (fd >= 0 && ka_enable(fd, options->idle, options->intvl, options->cnt) == 0 &&
            connect(fd, address->ai_addr, address->ai_addrlen) == 0)
            return fd;
        error = errno;
        if (fd >= 0)
            close(fd);
    }
    errno = error;
    return -1;
}

const char *ending(int error)
{
    switch (error) {
    case 0:
    case EPIPE:
        return "left";
    case ECONNRESET:
        return "reset the connection (ECONNRESET)";
    case ETIMEDOUT:
        return "died silently (ETIMEDOUT)";
    case EHOSTUNREACH:
        return "died silently (EHOSTUNREACH)";
    case ENETUNREACH:
        return "died silently (ENETUNREACH)";
    default:
        return strerror(error);
    }
}
