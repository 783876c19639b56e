/*
 * A library for deepbind.c, which opens it in several ways. Macros select the variant:
 *
 *   TABLE  the addresses of the functions are in its data
 *   EARLY  its constructor makes a socket
 *   SLOW   the loader waits while it binds the library
 *   OWN    a library that a plugin brings along, which defines its own socket()
 */
#include "probe.h"

#include <dlfcn.h>

#ifdef OWN

/* Makes a datagram socket, unlike other socket() functions. */
int socket(int domain, int type, int protocol)
{
    (void)type, (void)protocol;
    return (int)syscall(SYS_socket, domain, SOCK_DGRAM, 0);
}

#else

#ifdef TABLE
static struct {
    int (*socket)(int, int, int);
    int (*connect)(int, const struct sockaddr *, socklen_t);
    int (*listen)(int, int);
    int (*accept)(int, struct sockaddr *, socklen_t *);
    int (*setsockopt)(int, int, int, const void *, socklen_t);
    long (*syscall)(long, ...);
} table = { socket, connect, listen, accept, setsockopt, syscall };
#define socket table.socket
#define connect table.connect
#define listen table.listen
#define accept table.accept
#define setsockopt table.setsockopt
#define syscall table.syscall
#endif

int early = -1;

#ifdef EARLY
__attribute__((constructor)) static void make(void)
{
    early = socket(AF_INET, SOCK_STREAM, 0);
}
#endif

#ifdef SLOW
/* The loader calls this while it fills the library's data, before it binds the calls. */
static void (*resolve(void))(void)
{
    struct timespec time = { 0, 500000000 };
    raw(SYS_write, OPENING, (long)"", 1, 0, 0, 0);
    raw(SYS_nanosleep, (long)&time, 0, 0, 0, 0, 0);
    return abort;
}
void chosen(void) __attribute__((ifunc("resolve")));
void (*pointer)(void) = chosen;
#endif

/* Six sockets: made by socket(), made by syscall(), listening, connected, accepted, keepalive turned off. */
int plugin_sockets(int fds[6])
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int zero = 0;
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    fds[1] = (int)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
    fds[2] = socket(AF_INET, SOCK_STREAM, 0);
    if (listen(fds[2], 1) != 0 || getsockname(fds[2], (struct sockaddr *)&address, &size) != 0)
        return -1;
    fds[3] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fds[3], (struct sockaddr *)&address, size) != 0)
        return -1;
    fds[4] = accept(fds[2], 0, 0);
    fds[5] = socket(AF_INET, SOCK_STREAM, 0);
    return setsockopt(fds[5], SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero);
}

/* Makes one socket, to show which socket() is called. */
int plugin_socket(void)
{
    return socket(AF_INET, SOCK_STREAM, 0);
}

/* Only a call of dlsym that comes from here finds this by RTLD_DEFAULT. */
int plugin_mark;

int plugin_is_the_caller(void)
{
    return dlsym(RTLD_DEFAULT, "plugin_mark") == &plugin_mark;
}

/* Looks a function up by RTLD_DEFAULT. This library searches the C library before any other. */
void *plugin_look_up(const char *name)
{
    return dlsym(RTLD_DEFAULT, name);
}

#endif
