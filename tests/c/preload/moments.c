/*
 * moments WHAT: calls hooks at a special moment in the life of a process. Prints "well" at the end if all checks pass.
 */
#include "probe.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>

#define ON "1 60 10 6 0"
#define OFF "0 7200 75 9 0"

static int tcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    return fd;
}

static void is(int fd, const char *wanted)
{
    if (strcmp(five(fd), wanted) != 0) {
        fprintf(stderr, "%s, not %s\n", five(fd), wanted);
        exit(1);
    }
}

static volatile sig_atomic_t signals;

static void handler(int number)
{
    int before = errno;
    int fd = tcp();
    (void)number;
    is(fd, ON);
    close(fd);
    CHECK(errno == before);
    signals++;
}

static void in_a_signal_handler(void)
{
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };
    struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    while (signals < 500) {
        int fd = tcp(), zero = 0;
        CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero) == 0);
        is(fd, ON);
        close(fd);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

static void after_vfork(void)
{
    static volatile int round;
    for (; round < 50; round++) {
        int status;
        pid_t child = vfork();
        CHECK(child >= 0);
        if (child == 0) {
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            _exit(fd < 0 || kernel_get(fd, SOL_SOCKET, SO_KEEPALIVE) != 1);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    is(tcp(), ON);
}

/* A child that returns from syscall(2) on its own stack, which contains only the return address. */
static volatile long came_back;

static void back(void)
{
    came_back = 42;
    raw(SYS_exit, 0, 0, 0, 0, 0, 0);
}

static void by_clone(void)
{
    static long stack[8192] __attribute__((aligned(16)));
    long *top = &stack[8000];
    *top = (long)back;
    int status;
#if defined(__x86_64__)
    long pid = syscall(SYS_clone, CLONE_VM | CLONE_VFORK | SIGCHLD, top, 0L, 0L, 0L);
    CHECK(pid > 0 && waitpid((pid_t)pid, &status, 0) == pid && status == 0 && came_back == 42);
#else
    (void)top, (void)status, (void)back; /* on this architecture, the return address is in a register */
#endif
    CHECK(syscall(SYS_getpid) == getpid());
    errno = 0;
    CHECK(syscall(SYS_close, -1L) == -1 && errno == EBADF);
    /* syscall(2) must pass all six arguments and the result on. */
    char from[] = "six", to[] = "___";
    struct iovec local = { to, 3 }, remote = { from, 3 };
    CHECK(syscall(SYS_process_vm_readv, (long)getpid(), &local, 1L, &remote, 1L, 0L) == 3 && strcmp(to, "six") == 0);
}

static void after_closing_everything(void)
{
    int out = fcntl(1, F_DUPFD, 1030);
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    int fd = tcp(), zero = 0;
    CHECK(fd == 3);
    is(fd, ON);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero) == 0);
    is(fd, ON);
    close(0), close(1), close(fd);
    fd = tcp();
    CHECK(fd == 0);
    is(fd, ON);
    CHECK(dup2(out, 1) == 1);
}

static void under_a_filter(void)
{
    static const long shim_calls[] = { SYS_getsockopt, SYS_setsockopt, SYS_process_vm_readv, SYS_openat };
    for (size_t i = 0; i < sizeof shim_calls / sizeof *shim_calls; i++) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)shim_calls[i], 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog filter = { 4, code };
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
        struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
        socklen_t size = sizeof address;
        int zero = 0;
        errno = 77;
        int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(server >= 0 && client >= 0);
        CHECK(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 4) == 0);
        CHECK(getsockname(server, (struct sockaddr *)&address, &size) == 0);
        CHECK(connect(client, (struct sockaddr *)&address, size) == 0);
        CHECK(accept(server, NULL, NULL) >= 0);
        CHECK(errno == 77);
        long result = setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero);
        CHECK(result == 0 || errno == EACCES);
    }
}

static int cleaned;

static void clean(void *what)
{
    cleaned += *(int *)what;
}

/*
 * With -fexceptions, a cancelled thread is unwound as by a C++ exception. If a frame on its stack has no unwind
 * information, the destructors of its callers do not run.
 */
#ifdef __EXCEPTIONS
#define UNWOUND __attribute__((cleanup(clean_int)))
#define CLEANED 11
static void clean_int(int *what)
{
    clean(what);
}
#else
#define UNWOUND
#define CLEANED 1
#endif

static int blocked_on;
static struct sockaddr_in unanswered;

/* Fills the queue of a listener, so that further connects wait. */
static void fill(void)
{
    socklen_t size = sizeof unanswered;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    unanswered = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    CHECK(bind(listener, (struct sockaddr *)&unanswered, size) == 0 && listen(listener, 0) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&unanswered, &size) == 0);
    for (int i = 0; i < 4; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connect(fd, (struct sockaddr *)&unanswered, size) == 0 || errno == EINPROGRESS);
        usleep(20000);
    }
}

static void *block(void *how)
{
    int one = 1;
    char byte;
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
    struct mmsghdr messages = { .msg_hdr = message };
    UNWOUND int ten = 10;
    (void)ten;
    pthread_cleanup_push(clean, &one);
    switch ((intptr_t)how) {
    case 0:
        accept(blocked_on, NULL, NULL);
        break;
    case 1:
        accept4(blocked_on, NULL, NULL, SOCK_CLOEXEC);
        break;
    case 2:
        recvmsg(blocked_on, &message, 0);
        break;
    case 3:
        recvmmsg(blocked_on, &messages, 1, 0, NULL);
        break;
    case 4:
        connect(blocked_on, (struct sockaddr *)&unanswered, sizeof unanswered);
        break;
    }
    pthread_cleanup_pop(0);
    return NULL;
}

static void cancelled(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    for (intptr_t how = 0; how < 5; how++) {
        pthread_t thread;
        void *result;
        blocked_on = how < 2 ? listener_on(AF_INET, 0, &address, &size) : how < 4 ? pair[0] : tcp();
        if (how == 4)
            fill();
        cleaned = 0;
        CHECK(pthread_create(&thread, NULL, block, (void *)how) == 0);
        usleep(100000);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
        CHECK(result == PTHREAD_CANCELED && cleaned == CLEANED);
    }
}

static void with_another_environment(void)
{
    CHECK(setenv("KA_IDLE", "9", 1) == 0 && setenv("KA_POLICY", "off", 1) == 0);
    is(tcp(), ON);
    CHECK(clearenv() == 0);
    is(tcp(), ON);
}

#define HAMMERS 64
static struct sockaddr_storage hammer_address;
static socklen_t hammer_size;
static int hammer_listener;
static _Atomic int hammering = 1;
/* 1 if the threads fork. */
static int forking = 1;

static void *hammer(void *number)
{
    long rounds = 0;
    while (hammering) {
        int client = tcp();
        CHECK(connect(client, (struct sockaddr *)&hammer_address, hammer_size) == 0);
        int accepted = accept(hammer_listener, NULL, NULL);
        CHECK(accepted >= 0);
        is(accepted, ON);
        if (rounds++ % 64 == (intptr_t)number && forking) {
            int status;
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                int fd = socket(AF_INET, SOCK_STREAM, 0);
                /* If rules match the peer, a new socket has no policy yet. */
                _exit(fd < 0 || (getenv("KA_RULES") == NULL && kernel_get(fd, SOL_SOCKET, SO_KEEPALIVE) != 1));
            }
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        close(client), close(accepted);
    }
    return (void *)rounds;
}

static void hammered(int seconds)
{
    pthread_t threads[HAMMERS];
    long total = 0;
    void *rounds;
    hammer_listener = listener_on(AF_INET, 0, &hammer_address, &hammer_size);
    for (intptr_t i = 0; i < HAMMERS; i++)
        CHECK(pthread_create(&threads[i], NULL, hammer, (void *)i) == 0);
    sleep((unsigned)seconds);
    hammering = 0;
    for (int i = 0; i < HAMMERS; i++) {
        CHECK(pthread_join(threads[i], &rounds) == 0);
        total += (long)rounds;
    }
    CHECK(total > HAMMERS);
}

static void turn_off(int fd)
{
    int zero = 0, two_hours = 7200;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &two_hours, sizeof two_hours) == 0);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero) == 0);
}

/* With a rule for peers, a connection in SYN-SENT has no peer yet, and keeps the policy that connect has set. */
static void in_syn_sent(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 0) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    for (int i = 0; i < 8; i++) {
        struct sockaddr_in peer;
        socklen_t peer_size = sizeof peer;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connect(fd, (struct sockaddr *)&address, size) == 0 || errno == EINPROGRESS);
        usleep(20000);
        if (getpeername(fd, (struct sockaddr *)&peer, &peer_size) != 0) {
            is(fd, ON);
            turn_off(fd);
            is(fd, ON);
            return;
        }
    }
    CHECK(!"no connection stayed in SYN-SENT");
}

/* Reuses the descriptor numbers of closed sockets. With a rule for local ports, a new socket has no policy yet. */
static void with_another_number(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    int listener = listener_on(AF_INET, 0, &address, &size), status;
    int number = socket(AF_UNIX, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(dup2(fd, number) == number && connect(number, (struct sockaddr *)&address, size) == 0);
    is(number, ON);
    turn_off(number);
    is(number, ON);

    fd = socket(AF_INET, SOCK_STREAM, 0);
    pid_t child = vfork();
    if (child == 0) {
        close(fd);
        socket(AF_UNIX, SOCK_STREAM, 0);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(connect(fd, (struct sockaddr *)&address, size) == 0);
    is(fd, ON);
    (void)listener;
}

static void *after_main(void *nothing)
{
    struct sockaddr_storage address;
    socklen_t size;
    usleep(100000);
    int listener = listener_on(AF_INET, 0, &address, &size), fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&address, size) == 0);
    is(fd, ON);
    printf("well\n");
    exit(listener < 0 || nothing != NULL);
}

/* Tests a rule for peers, in a thread that continues after the main thread has ended. */
static void outlived(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, after_main, NULL) == 0);
    pthread_exit(NULL);
}

/* If a rule skips a socket, options that the program has set before bind stay. If a hook sees a socket for the first
 * time in setsockopt, it sets the policy first. */
static void before_the_rule(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, idle = 300;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle) == 0);
    CHECK(bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4) == 0);
    is(fd, "1 300 75 9 0");
}

static void unseen_then_set(void)
{
    int fd = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0), one = 1;
    CHECK(raw(SYS_dup3, fd, 900, 0, 0, 0, 0) == 900);
    CHECK(setsockopt(900, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0);
    is(900, ON);
}

/* Makes two datagram sockets, the first of which sends to the second. The kernel does not report the user at the other
 * end of the second, because neither connect() nor socketpair() was called on it. */
static void make_carrier(int carrier[2])
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    socklen_t size = sizeof name.sun_family;
    for (int end = 0; end < 2; end++)
        CHECK((carrier[end] = socket(AF_UNIX, SOCK_DGRAM, 0)) >= 0);
    /* With this size, the kernel chooses a free abstract name. */
    CHECK(bind(carrier[1], (struct sockaddr *)&name, size) == 0);
    size = sizeof name;
    CHECK(getsockname(carrier[1], (struct sockaddr *)&name, &size) == 0);
    CHECK(connect(carrier[0], (struct sockaddr *)&name, size) == 0);
}

/* Returns a connection from a process that may be another user's, because the kernel does not report its user. The
 * first byte of the connection is ready to be read. */
static int from_a_stranger(int *peer)
{
    int carrier[2], received, client;
    connect_unseen(&client, peer);
    CHECK(raw(SYS_write, *peer, (long)"x", 1, 0, 0, 0) == 1);
    make_carrier(carrier);
    send_descriptors(carrier[0], &client, 1);
    receive_descriptors(BY_RECVMSG, carrier[1], &received, 1);
    close(client), close(carrier[0]), close(carrier[1]);
    is(received, OFF);
    return received;
}

/* Each call that takes the socket's lock sets the policy on the socket, even if the call fails. */
static void used_by_a_stranger(void)
{
    int client, peer, one = 1, zero = 0;
    char byte = 'x';
    struct iovec iov = { &byte, 1 };
    struct mmsghdr messages = { .msg_hdr = { .msg_iov = &iov, .msg_iovlen = 1 } };
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(1)
    };
    struct sockaddr *to = (struct sockaddr *)&address;
#define USED(call, expected)                                          \
    do {                                                              \
        client = from_a_stranger(&peer);                              \
        errno = 77;                                                   \
        if ((call) != (expected) || ((expected) >= 0 && errno != 77)) \
            CHECK(!#call);                                            \
        is(client, ON);                                               \
        close(client), close(peer);                                   \
    } while (0)
    USED(setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
    USED(syscall(SYS_setsockopt, client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), 0);
    USED(connect(client, to, sizeof address), -1);
    USED(listen(client, 1), -1);
    USED(sendto(client, "x", 1, 0, NULL, 0), 1);
    USED(sendmsg(client, &messages.msg_hdr, 0), 1);
    USED(sendmmsg(client, &messages, 1, 0), 1);
    USED(recvmsg(client, &messages.msg_hdr, 0), 1);
    USED(recvmmsg(client, &messages, 1, 0, NULL), 1);
    USED(syscall(SYS_sendto, client, "x", 1L, 0L, NULL, 0L), 1);
    USED(syscall(SYS_sendmsg, client, &messages.msg_hdr, 0L), 1);
    USED(syscall(SYS_sendmmsg, client, &messages, 1L, 0L), 1);
    USED(syscall(SYS_recvmsg, client, &messages.msg_hdr, 0L), 1);
    USED(syscall(SYS_recvmmsg, client, &messages, 1L, 0L, NULL), 1);

    /* In a mode where the program's setting wins, the shim does not undo the program's first call later. */
    if (getenv("KA_MODE") != NULL) {
        client = from_a_stranger(&peer);
        CHECK(setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero) == 0);
        is(client, "0 60 10 6 0");
        CHECK(sendto(client, "x", 1, 0, NULL, 0) == 1);
        is(client, "0 60 10 6 0");
        close(client), close(peer);
    }

    /* Test the connections that a listener accepts. */
    int carrier[2], listener = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0), received;
    socklen_t size = sizeof address;
    address.sin_port = 0;
    CHECK(bind(listener, to, size) == 0 && raw(SYS_listen, listener, 1, 0, 0, 0, 0) == 0);
    CHECK(getsockname(listener, to, &size) == 0);
    make_carrier(carrier);
    send_descriptors(carrier[0], &listener, 1);
    receive_descriptors(BY_RECVMSG, carrier[1], &received, 1);
    is(received, OFF);
    client = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
    CHECK(raw(SYS_connect, client, (long)to, size, 0, 0, 0) == 0);
    peer = accept(received, NULL, NULL);
    is(peer, ON);
    is(received, ON);
}

/* The program sets a user timeout of 12 s, which replaces the count. Then the network is taken down. */
static void dead_peer(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    int listener = listener_on(AF_INET, 0, &address, &size), client = tcp(), own = 12000;
    char byte;
    struct timespec from, to;
    CHECK(setsockopt(client, IPPROTO_TCP, TCP_USER_TIMEOUT, &own, sizeof own) == 0);
    CHECK(connect(client, (struct sockaddr *)&address, size) == 0 && accept(listener, NULL, NULL) >= 0);
    CHECK(system("ip link set lo down") == 0);
    clock_gettime(CLOCK_MONOTONIC, &from);
    CHECK(read(client, &byte, 1) == -1);
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%d %.1f\n", errno, (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "signal") == 0)
        in_a_signal_handler();
    else if (strcmp(what, "vfork") == 0)
        after_vfork();
    else if (strcmp(what, "clone") == 0)
        by_clone();
    else if (strcmp(what, "close") == 0)
        after_closing_everything();
    else if (strcmp(what, "filter") == 0)
        under_a_filter();
    else if (strcmp(what, "cancel") == 0)
        cancelled();
    else if (strcmp(what, "environment") == 0)
        with_another_environment();
    else if (strcmp(what, "hammer") == 0)
        hammered(argc > 2 ? atoi(argv[2]) : 5);
    else if (strcmp(what, "threads") == 0) {
        forking = 0;
        hammered(1);
    }
    else if (strcmp(what, "syn-sent") == 0)
        in_syn_sent();
    else if (strcmp(what, "number") == 0)
        with_another_number();
    else if (strcmp(what, "outlived") == 0)
        outlived();
    else if (strcmp(what, "before") == 0)
        before_the_rule();
    else if (strcmp(what, "unseen") == 0)
        unseen_then_set();
    else if (strcmp(what, "stranger") == 0)
        used_by_a_stranger();
    else if (strcmp(what, "accept") == 0)
        printf("%s\n", five(accept(5, NULL, NULL)));
    else if (strcmp(what, "dead") == 0)
        dead_peer();
    else if (strcmp(what, "inherited") == 0)
        printf("%s\n", five(5));
    else if (strcmp(what, "one") == 0)
        printf("%s\n", five(tcp()));
    else
        return 2;
    printf("well\n");
    return 0;
}
