/* What the test programs for the shim share: the kernel's own word, by system calls that no hook sees. */
#ifndef PROBE_H
#define PROBE_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#ifndef TCP_USER_TIMEOUT
#define TCP_USER_TIMEOUT 18
#endif

#define CHECK(condition)                                                                              \
    do {                                                                                              \
        if (!(condition)) {                                                                           \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);         \
            exit(1);                                                                                  \
        }                                                                                             \
    } while (0)

/* A system call as an instruction: the kernel's answer, negated error numbers and all. */
static inline long raw(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#endif
}

static inline int kernel_get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    long result = raw(SYS_getsockopt, fd, level, name, (long)&value, (long)&size, 0);
    return result == 0 ? value : (int)result;
}

static inline int kernel_set(int fd, int level, int name, int value)
{
    return (int)raw(SYS_setsockopt, fd, level, name, (long)&value, sizeof value, 0);
}

/* The descriptor that a library's loading is reported to. */
#define OPENING 99

/* "1 60 10 6 0": SO_KEEPALIVE, idle, intvl, cnt and user timeout. */
static inline const char *five(int fd)
{
    static __thread char texts[8][64];
    static __thread int next;
    char *text = texts[next++ % 8];
    snprintf(text, sizeof texts[0], "%d %d %d %d %d", kernel_get(fd, SOL_SOCKET, SO_KEEPALIVE),
             kernel_get(fd, IPPROTO_TCP, TCP_KEEPIDLE), kernel_get(fd, IPPROTO_TCP, TCP_KEEPINTVL),
             kernel_get(fd, IPPROTO_TCP, TCP_KEEPCNT), kernel_get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT));
    return text;
}

/* A listener on the loopback; its address in *address. */
static inline int listener_on(int domain, int protocol, struct sockaddr_storage *address, socklen_t *size)
{
    int fd = socket(domain, SOCK_STREAM, protocol);
    CHECK(fd >= 0);
    memset(address, 0, sizeof *address);
    address->ss_family = (sa_family_t)domain;
    if (domain == AF_INET) {
        ((struct sockaddr_in *)address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        *size = sizeof(struct sockaddr_in);
    } else {
        ((struct sockaddr_in6 *)address)->sin6_addr = in6addr_loopback;
        *size = sizeof(struct sockaddr_in6);
    }
    CHECK(bind(fd, (struct sockaddr *)address, *size) == 0);
    CHECK(listen(fd, 16) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, size) == 0);
    return fd;
}

#endif
