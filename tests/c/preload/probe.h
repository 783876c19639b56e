/* Functions that the test programs for the shim share. They read settings by system calls that the hooks do not see. */
#ifndef PROBE_H
#define PROBE_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
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

#include "../check.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#ifndef TCP_USER_TIMEOUT
#define TCP_USER_TIMEOUT 18
#endif

/* Makes a system call with the instruction. Returns the kernel's result; an error is a negative errno. */
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

/* The descriptor to which the loading of a library is reported. */
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

/* Turns root into an ordinary user for good. As root, the shim never trusts the maker of the other end of a unix
 * socket. */
static inline void become_an_ordinary_user(void)
{
    const unsigned user = 12345;
    if (geteuid() != 0 || (setresgid(user, user, user) == 0 && setresuid(user, user, user) == 0))
        return;
    /* A user namespace that maps only root: in it, this user has another number. */
    CHECK(unshare(CLONE_NEWUSER) == 0);
    int map = open("/proc/self/uid_map", O_WRONLY | O_CLOEXEC);
    CHECK(map >= 0 && dprintf(map, "%u 0 1", user) > 0 && close(map) == 0 && geteuid() == user);
}

/* Sends descriptors with a message of one byte, without a hook. */
static inline void send_descriptors(int to, const int *fds, size_t count)
{
    char byte = 'x';
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(8 * sizeof(int))] = { 0 };
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space };
    CHECK(count <= 8);
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(control), fds, count * sizeof(int));
    CHECK(raw(SYS_sendmsg, to, (long)&message, 0, 0, 0, 0) == 1);
}

/* Makes a connection that no hook has seen. */
static inline void connect_unseen(int *client, int *accepted)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    *client = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && raw(SYS_listen, listener, 1, 0, 0, 0, 0) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(raw(SYS_connect, *client, (long)&address, size, 0, 0, 0) == 0);
    *accepted = (int)raw(SYS_accept4, listener, 0, 0, 0, 0, 0);
    CHECK(*accepted >= 0 && close(listener) == 0);
}

enum receive { BY_RECVMSG, BY_RECVMMSG, BY_NUMBER, BY_NUMBER_MANY, WAYS_TO_RECEIVE };

static inline long receive_message(enum receive way, int from, struct mmsghdr *message)
{
    return way == BY_RECVMSG    ? recvmsg(from, &message->msg_hdr, 0)
           : way == BY_RECVMMSG ? recvmmsg(from, message, 1, 0, NULL)
           : way == BY_NUMBER   ? syscall(SYS_recvmsg, from, &message->msg_hdr, 0)
                                : syscall(SYS_recvmmsg, from, message, 1, 0, NULL);
}

/* Receives a message with `count` descriptors. */
static inline void receive_descriptors(enum receive way, int from, int *fds, size_t count)
{
    char byte;
    _Alignas(struct cmsghdr) char space[CMSG_SPACE(8 * sizeof(int))] = { 0 };
    struct iovec iov = { &byte, 1 };
    struct mmsghdr message = {
        .msg_hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space }
    };
    CHECK(receive_message(way, from, &message) == 1);
    struct cmsghdr *control = CMSG_FIRSTHDR(&message.msg_hdr);
    CHECK(control != NULL && control->cmsg_type == SCM_RIGHTS && control->cmsg_len == CMSG_LEN(count * sizeof(int)));
    memcpy(fds, CMSG_DATA(control), count * sizeof(int));
}

/* Makes a listener on the loopback. Writes its address into *address. */
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
