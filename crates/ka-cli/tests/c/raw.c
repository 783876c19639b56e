/*
 * raw: makes system calls by its own instructions, and prints the options of the socket that it has made: SO_KEEPALIVE,
 * idle, intvl, cnt, user timeout. With an argument, it then prints `stay`, and waits for the end of its standard input.
 *
 *   (nothing)    a program that listens by its own instructions
 *   -DBOTH       a program that also listens through the C library
 *   -DOTHER      a program whose own instruction makes a call unrelated to sockets
 *   -DLIBRARY    a library with a function that listens
 *   -DPROGRAM    a program that is linked to that library
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int serve(void);

#ifndef PROGRAM
static long call(long number, long one, long two, long three)
{
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(one), "S"(two), "d"(three)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = one;
    register long x1 __asm__("x1") = two;
    register long x2 __asm__("x2") = three;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#else
#error "this program supports only x86_64 and aarch64"
#endif
}
#endif

#if !defined(PROGRAM) && !defined(OTHER)
int serve(void)
{
    int fd = (int)call(SYS_socket, AF_INET, SOCK_STREAM, 0);
    return call(SYS_listen, fd, 1, 0) == 0 ? fd : -1;
}
#endif

#if !defined(LIBRARY) && !defined(OTHER)
static int look(int fd)
{
    static const int options[5][2] = {{SOL_SOCKET, SO_KEEPALIVE},
                                      {IPPROTO_TCP, TCP_KEEPIDLE},
                                      {IPPROTO_TCP, TCP_KEEPINTVL},
                                      {IPPROTO_TCP, TCP_KEEPCNT},
                                      {IPPROTO_TCP, TCP_USER_TIMEOUT}};
    for (int at = 0; at < 5; at++) {
        int value;
        socklen_t size = sizeof value;
        if (getsockopt(fd, options[at][0], options[at][1], &value, &size) != 0)
            return 1;
        printf("%d%c", value, at < 4 ? ' ' : '\n');
    }
    return 0;
}
#endif

#ifndef LIBRARY
int main(int argc, char **argv)
{
    (void)argv;
    int failed = 0;
#ifdef OTHER
    printf("%d\n", call(SYS_getpid, 0, 0, 0) == getpid());
#else
    failed = look(serve());
#endif
#ifdef BOTH
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    failed |= listen(fd, 1) | look(fd);
#endif
    if (argc > 1) {
        puts("stay");
        fflush(stdout);
        while (getchar() != EOF)
            ;
    }
    return failed;
}
#endif
