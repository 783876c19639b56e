/*
 * guard: tests the program's own calls in a mode, each by setsockopt(2) and by syscall(2). Prints "call: result errno",
 * and then the settings in force. Then makes calls that the kernel rejects, and compares them with the kernel's own
 * result.
 */
#include "probe.h"

static long by_function(int fd, int level, int name, const void *value, socklen_t size)
{
    return setsockopt(fd, level, name, value, size);
}

static long by_number(int fd, int level, int name, const void *value, socklen_t size)
{
    return syscall(SYS_setsockopt, fd, level, name, value, size);
}

typedef long (*set_option)(int, int, int, const void *, socklen_t);

static void try(const char *what, set_option set, int fd, int level, int name, int value)
{
    struct {
        int value, beyond;
    } wide = { value, 12345 };
    for (socklen_t size = 4; size <= 8; size += 4) {
        errno = 77;
        long result = set(fd, level, name, &wide, size);
        printf("%s: %ld %d, %s\n", what, result, errno, five(fd));
    }
}

/* Compares the result under the shim with the kernel's result on another socket. */
static void refused(const char *what, set_option set, int fd, int twin, int level, int name, const void *value, socklen_t size)
{
    char before[64];
    strcpy(before, five(fd));
    long kernel = raw(SYS_setsockopt, twin, level, name, (long)value, size, 0);
    errno = 77;
    long result = set(fd, level, name, value, size);
    long answer = result == 0 ? 0 : -errno;
    if (answer != kernel || strcmp(before, five(fd)) != 0) {
        printf("%s: %ld, the kernel says %ld; %s became %s\n", what, answer, kernel, before, five(fd));
        exit(1);
    }
}

static void all_refusals(set_option set)
{
    static const int options[5][2] = { { SOL_SOCKET, SO_KEEPALIVE },
                                       { IPPROTO_TCP, TCP_KEEPIDLE },
                                       { IPPROTO_TCP, TCP_KEEPINTVL },
                                       { IPPROTO_TCP, TCP_KEEPCNT },
                                       { IPPROTO_TCP, TCP_USER_TIMEOUT } };
    int fd = socket(AF_INET, SOCK_STREAM, 0), twin = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    int udp = socket(AF_INET, SOCK_DGRAM, 0), pipes[2];
    int values[] = { 0, -1, -2147483647 - 1, 32768, 128, 2147483647 };
    int good = 5;
    CHECK(pipe(pipes) == 0);
    for (int i = 0; i < 5; i++) {
        int level = options[i][0], name = options[i][1];
        for (int j = 0; i > 0 && j < 6; j++) {
            int grants = i == 4 ? values[j] >= 0 : values[j] == 128 && i < 3;
            if (!grants)
                refused("value", set, fd, twin, level, name, &values[j], 4);
        }
        for (socklen_t size = 0; size < 4; size++)
            refused("length", set, fd, twin, level, name, &good, size);
        if (getenv("QEMU_LD_PREFIX") == NULL) /* qemu does not pass a negative length to the kernel */
            refused("negative length", set, fd, twin, level, name, &good, (socklen_t)-1);
        refused("pointer", set, fd, twin, level, name, (void *)8, 4);
        refused("null pointer", set, fd, twin, level, name, NULL, 4);
        refused("descriptor", set, 999, 999, level, name, &good, 4);
        refused("negative descriptor", set, -1, -1, level, name, &good, 4);
        refused("pipe", set, pipes[0], pipes[0], level, name, &good, 4);
        if (i > 0)
            refused("UDP", set, udp, udp, level, name, &good, 4);
        refused("level", set, fd, twin, 12345, name, &good, 4);
    }
    refused("option", set, fd, twin, IPPROTO_TCP, 12345, &good, 4);
    int mptcp = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    int mptcp_twin = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, IPPROTO_MPTCP, 0, 0, 0);
    for (int i = 0; i < 5 && mptcp >= 0; i++) {
        refused("MPTCP, pointer", set, mptcp, mptcp_twin, options[i][0], options[i][1], (void *)8, 4);
        refused("MPTCP, null pointer", set, mptcp, mptcp_twin, options[i][0], options[i][1], NULL, 4);
        refused("MPTCP, length", set, mptcp, mptcp_twin, options[i][0], options[i][1], &good, 3);
    }
    if (mptcp >= 0)
        close(mptcp), close(mptcp_twin);
    /* The shim passes other options on unchanged. */
    int one = 1;
    CHECK(set(fd, IPPROTO_TCP, TCP_NODELAY, &one, 4) == 0 && kernel_get(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
    CHECK(set(fd, SOL_SOCKET, SO_REUSEADDR, &one, 4) == 0 && kernel_get(fd, SOL_SOCKET, SO_REUSEADDR) == 1);
    CHECK(set(udp, SOL_SOCKET, SO_KEEPALIVE, &one, 4) == 0 && kernel_get(udp, SOL_SOCKET, SO_KEEPALIVE) == 1);
    close(fd), close(twin), close(udp), close(pipes[0]), close(pipes[1]);
}

static void all_tries(const char *how, set_option set)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    printf("%s\n", how);
    try("off", set, fd, SOL_SOCKET, SO_KEEPALIVE, 0);
    try("on", set, fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    try("idle 600", set, fd, IPPROTO_TCP, TCP_KEEPIDLE, 600);
    try("intvl 75", set, fd, IPPROTO_TCP, TCP_KEEPINTVL, 75);
    try("cnt 9", set, fd, IPPROTO_TCP, TCP_KEEPCNT, 9);
    try("idle 5", set, fd, IPPROTO_TCP, TCP_KEEPIDLE, 5);
    try("intvl 2", set, fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
    try("cnt 3", set, fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    try("user timeout 1000", set, fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 1000);
    try("user timeout 999999", set, fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 999999);
    try("user timeout 0", set, fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 0);
    int again = dup(fd);
    try("off by a duplicate", set, again, SOL_SOCKET, SO_KEEPALIVE, 0);
    close(fd), close(again);

    fd = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    if (fd >= 0) {
        /* The kernel accepts any number for this option before connect. */
        int many = 99999;
        CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, &many, 4) == 0);
        printf("MPTCP, idle 99999: %s\n", five(fd));
        close(fd);
    }
}

int main(void)
{
    all_tries("by setsockopt", by_function);
    all_tries("by syscall", by_number);
    all_refusals(by_function);
    all_refusals(by_number);
    return 0;
}
