/*
 * Another shim, to test two in either order. It counts the calls, and makes its sockets by number, as mptcpize does. If
 * BY_HANDLE is defined, it looks the next functions up in the C library itself, as torsocks does. With CHAIN_SHOW=1 it
 * prints its counts at the end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int sockets, connects, options;

#ifdef BY_HANDLE
#define NEXT dlopen("libc.so.6", RTLD_LAZY)
#else
#define NEXT RTLD_NEXT
#endif

int socket(int domain, int type, int protocol)
{
    sockets++;
    return (int)syscall(SYS_socket, domain, type, protocol);
}

int connect(int fd, const struct sockaddr *address, socklen_t size)
{
    int (*next)(int, const struct sockaddr *, socklen_t);
    connects++;
    *(void **)&next = dlsym(NEXT, "connect");
    return next(fd, address, size);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
    int (*next)(int, int, int, const void *, socklen_t);
    options++;
    *(void **)&next = dlsym(NEXT, "setsockopt");
    return next(fd, level, name, value, size);
}

__attribute__((destructor)) static void show(void)
{
    if (getenv("CHAIN_SHOW"))
        fprintf(stderr, "counted %d %d %d\n", sockets > 0, connects > 0, options > 0);
}
