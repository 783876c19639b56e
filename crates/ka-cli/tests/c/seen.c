/*
 * seen ACTION [stay]: does one thing, and prints the options of the resulting socket: SO_KEEPALIVE, idle, intvl, cnt,
 * user timeout. With `stay`, it then prints `stay` and waits for the end of its standard input, so that other processes
 * can examine its sockets.
 *
 *   listen       listens
 *   connect      connects to itself
 *   fastopen     sends with MSG_FASTOPEN to itself by sendto, sendmsg and sendmmsg, and prints a line for each
 *   set          connects, then sets 15, 15, 9, a user timeout of an hour, and keepalive off
 *   before       sets keepalive on and 30, 50, 5, then connects
 *   judge        makes invalid setsockopt calls, and prints a line with the errno of each
 *   threads      connects in 200 threads at once; prints the number of sockets with the policy
 *   storm        does the same in one thread while a timer sends a signal each 50 us
 *   task         listens in a thread with its own descriptor table
 *   daemon FILE  goes into the background, waits until FILE.go exists, listens, and writes the options to FILE
 *   daemons FILE starts five daemons, each from another generation, which listen until FILE is removed
 *   unshare      listens in its own network namespace
 *   nested       listens in nested namespaces of users, networks, processes and mounts
 *   ring         creates an io_uring; prints 0 or errno
 *   ia32         connects by int 0x80
 *   closed       closes all descriptors except the first three, then listens
 *   bare         closes all descriptors, then listens and connects, and waits for a signal
 *   forks        forks five generations of children, the last of which listens
 *   undumpable   makes itself undumpable, so that only root may inspect it, then listens
 *   loop         listens repeatedly, every 20 ms; prints the number of sockets with the policy, and of all
 *   busy         listens as often as possible for half a second; prints the number of failed calls, and of all
 *   fd           prints the numbers of its descriptors
 *   limit        limits its descriptors to those that it has, then listens
 *   queue        waits for a signal sent by sigqueue(3), and prints its number and value
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

static struct sockaddr_in address = { .sin_family = AF_INET };
static int server;

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    getsockopt(fd, level, name, &value, &size);
    return value;
}

static int set(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : errno;
}

static void see(FILE *to, int fd)
{
    fprintf(to, "%d %d %d %d %d\n", get(fd, SOL_SOCKET, SO_KEEPALIVE), get(fd, IPPROTO_TCP, TCP_KEEPIDLE),
            get(fd, IPPROTO_TCP, TCP_KEEPINTVL), get(fd, IPPROTO_TCP, TCP_KEEPCNT),
            get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT));
    fflush(to);
}

static int tcp(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0)
        err(EXIT_FAILURE, "socket");
    return fd;
}

static int listening(void)
{
    int fd = tcp(), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = 0;
    socklen_t size = sizeof address;
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, 1024) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        err(EXIT_FAILURE, "listen");
    return fd;
}

static int connected(void)
{
    int fd = tcp();
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        err(EXIT_FAILURE, "connect");
    return fd;
}

static void *connects(void *count)
{
    int fd = connected();
    if (get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 60)
        __atomic_add_fetch((int *)count, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void *task(void *unused)
{
    (void)unused;
    if (unshare(CLONE_FILES) != 0)
        err(EXIT_FAILURE, "unshare");
    /* This descriptor is not open in the table of the other threads. */
    int fd = tcp();
    dup2(fd, 321);
    listen(321, 5);
    see(stdout, 321);
    return NULL;
}

static void nothing(int signal)
{
    (void)signal;
}

static int fast_open(int way)
{
    int fd = tcp();
    struct iovec part = { .iov_base = (void *)"x", .iov_len = 1 };
    struct mmsghdr messages = { .msg_hdr = {
        .msg_name = &address, .msg_namelen = sizeof address, .msg_iov = &part, .msg_iovlen = 1 } };
    long sent = way == 0 ? sendto(fd, "x", 1, MSG_FASTOPEN, (struct sockaddr *)&address, sizeof address)
        : way == 1       ? sendmsg(fd, &messages.msg_hdr, MSG_FASTOPEN)
                         : sendmmsg(fd, &messages, 1, MSG_FASTOPEN);
    if (sent != 1)
        err(EXIT_FAILURE, "fastopen %d", way);
    return fd;
}

static void judge(void)
{
    int fd = listening(), udp = socket(AF_INET, SOCK_DGRAM, 0), value = 5;
    printf("range %d ", set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 99999));
    printf("%d\n", set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, -5));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (void *)16, sizeof value);
    printf("pointer %d\n", errno);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 3);
    printf("length %d\n", errno);
    printf("descriptor %d %d %d\n", set(-1, SOL_SOCKET, SO_KEEPALIVE, 1), set(STDIN_FILENO, SOL_SOCKET, SO_KEEPALIVE, 1),
           set(udp, IPPROTO_TCP, TCP_USER_TIMEOUT, 1));
    printf("udp %d ", set(udp, SOL_SOCKET, SO_KEEPALIVE, 1));
    printf("%d\n", get(udp, SOL_SOCKET, SO_KEEPALIVE));
}

static long ia32(long number, long a, long b, long c)
{
    long result = -ENOSYS;
#ifdef __x86_64__
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory", "r8", "r9", "r10", "r11");
#else
    (void)number, (void)a, (void)b, (void)c;
#endif
    return result;
}

static void up(void)
{
    int fd = tcp();
    struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP };
    if (ioctl(fd, SIOCSIFFLAGS, &loopback) != 0)
        err(EXIT_FAILURE, "lo");
    close(fd);
}

static void fill(const char *path, const char *format, unsigned id)
{
    char text[64];
    int fd = open(path, O_WRONLY), length = snprintf(text, sizeof text, format, id, id);
    if (fd < 0 || write(fd, text, (size_t)length) != length)
        err(EXIT_FAILURE, "%s", path);
    close(fd);
}

/* Continues in a child with its own namespaces, in which it keeps its user ID. */
static void deeper(void)
{
    unsigned user = geteuid(), group = getegid();
    int status;
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS) != 0)
        err(EXIT_FAILURE, "unshare");
    fill("/proc/self/setgroups", "deny", 0);
    fill("/proc/self/uid_map", "%u %u 1", user);
    fill("/proc/self/gid_map", "%u %u 1", group);
    pid_t pid = fork();
    if (pid > 0) {
        waitpid(pid, &status, 0);
        exit(WEXITSTATUS(status));
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    int result = EXIT_SUCCESS;
#define IS(word) (strcmp(what, word) == 0)
    if (IS("listen")) {
        see(stdout, listening());
    } else if (IS("connect")) {
        server = listening();
        see(stdout, connected());
        see(stdout, accept(server, NULL, NULL));
    } else if (IS("fastopen")) {
        server = listening();
        for (int way = 0; way < 3; way++)
            see(stdout, fast_open(way));
    } else if (IS("set") || IS("before")) {
        int before = IS("before");
        server = listening();
        int fd = before ? tcp() : connected();
        if (set(fd, IPPROTO_TCP, TCP_KEEPIDLE, before ? 30 : 15) || set(fd, IPPROTO_TCP, TCP_KEEPINTVL, before ? 50 : 15) ||
            set(fd, IPPROTO_TCP, TCP_KEEPCNT, before ? 5 : 9) || set(fd, SOL_SOCKET, SO_KEEPALIVE, before) ||
            (!before && set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 3600000)))
            errx(EXIT_FAILURE, "setsockopt fails");
        if (before && connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
            err(EXIT_FAILURE, "connect");
        see(stdout, fd);
    } else if (IS("judge")) {
        judge();
    } else if (IS("threads")) {
        pthread_t threads[200];
        int count = 0;
        server = listening();
        for (int n = 0; n < 200; n++)
            if (pthread_create(&threads[n], NULL, connects, &count) != 0)
                err(EXIT_FAILURE, "pthread_create");
        for (int n = 0; n < 200; n++)
            pthread_join(threads[n], NULL);
        printf("%d\n", count);
    } else if (IS("storm")) {
        struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
        struct itimerspec often = { { 0, 50000 }, { 0, 50000 } };
        struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };
        timer_t timer;
        int count = 0;
        server = listening();
        sigaction(SIGUSR1, &action, NULL);
        if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &often, NULL) != 0)
            err(EXIT_FAILURE, "timer");
        for (int n = 0; n < 200; n++)
            connects(&count);
        printf("%d\n", count);
    } else if (IS("task")) {
        pthread_t thread;
        pthread_create(&thread, NULL, task, NULL);
        pthread_join(thread, NULL);
    } else if (IS("daemon") && argc > 2) {
        FILE *file = fopen(argv[2], "w");
        if (!file || daemon(0, 0) != 0)
            err(EXIT_FAILURE, "daemon");
        char go[PATH_MAX];
        snprintf(go, sizeof go, "%s.go", argv[2]);
        for (int left = 1000; left > 0 && access(go, F_OK) != 0; left--)
            usleep(20000);
        see(file, listening());
    } else if (IS("daemons") && argc > 2) {
        for (int n = 0; n < 5; n++) {
            pid_t pid = fork();
            if (pid > 0)
                return EXIT_SUCCESS;
            pid = fork();
            if (pid == 0) {
                struct stat there;
                if (setsid() < 0 || daemon(0, 0) != 0)
                    err(EXIT_FAILURE, "daemon");
                usleep(100000);
                listening();
                for (int left = 1000; left > 0 && stat(argv[2], &there) == 0; left--)
                    usleep(20000);
                return EXIT_SUCCESS;
            }
        }
    } else if (IS("unshare")) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
            err(EXIT_FAILURE, "unshare");
        up();
        server = listening();
        see(stdout, connected());
    } else if (IS("nested")) {
        for (int n = 0; n < 3; n++)
            deeper();
        up();
        server = listening();
        see(stdout, connected());
    } else if (IS("ring")) {
        char parameters[120] = { 0 };
        printf("%d\n", syscall(SYS_io_uring_setup, 4, parameters) < 0 ? errno : 0);
    } else if (IS("ia32")) {
        /* Pointers of such a call have 32 bits. */
        struct sockaddr_in *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        server = listening();
        int fd = tcp(), other = tcp();
        *low = address;
        long result = ia32(362, fd, (long)low, sizeof *low);
        printf("%ld\n", result);
        see(stdout, fd);
        uint32_t *arguments = (uint32_t *)(low + 1);
        arguments[0] = (uint32_t)other;
        arguments[1] = (uint32_t)(uintptr_t)low;
        arguments[2] = sizeof *low;
        printf("%ld\n", ia32(102, 3, (long)arguments, 0));
        see(stdout, other);
    } else if (IS("closed")) {
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        see(stdout, listening());
    } else if (IS("bare")) {
        for (int fd = 0; fd < 1024; fd++)
            close(fd);
        server = listening();
        connected();
        pause();
    } else if (IS("forks")) {
        for (int n = 0; n < 5; n++) {
            pid_t pid = fork();
            if (pid != 0) {
                int status;
                waitpid(pid, &status, 0);
                return WEXITSTATUS(status);
            }
        }
        see(stdout, listening());
        result = 5;
    } else if (IS("undumpable")) {
        prctl(PR_SET_DUMPABLE, 0);
        see(stdout, listening());
    } else if (IS("loop")) {
        int had = 0;
        for (int n = 0; n < 100; n++) {
            int fd = listening();
            had += get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1;
            close(fd);
            usleep(20000);
        }
        printf("%d of 100\n", had);
    } else if (IS("busy")) {
        struct timespec start, now;
        int calls = 0, failed = 0, fd = listening();
        clock_gettime(CLOCK_MONOTONIC, &start);
        do {
            failed += listen(fd, 5) != 0;
            calls++;
            clock_gettime(CLOCK_MONOTONIC, &now);
        } while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 500000000L);
        printf("%d of %d\n", failed, calls);
    } else if (IS("fd")) {
        for (int fd = 0; fd < 1024; fd++)
            if (fcntl(fd, F_GETFD) != -1)
                printf("%d ", fd);
        puts("");
    } else if (IS("limit")) {
        int fd = tcp();
        struct rlimit limit = { (rlim_t)fd + 1, (rlim_t)fd + 1 };
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || socket(AF_INET, SOCK_STREAM, 0) != -1 || listen(fd, 5) != 0)
            err(EXIT_FAILURE, "limit");
        see(stdout, fd);
    } else if (IS("queue")) {
        sigset_t set;
        siginfo_t info;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN + 2);
        sigprocmask(SIG_BLOCK, &set, NULL);
        puts("ready");
        fflush(stdout);
        int number = sigwaitinfo(&set, &info);
        printf("%d %d\n", number - SIGRTMIN, info.si_value.sival_int);
    } else {
        errx(2, "seen WHAT");
    }
    if (argc > 2 && strcmp(argv[argc - 1], "stay") == 0) {
        char end;
        puts("stay");
        fflush(stdout);
        while (read(STDIN_FILENO, &end, 1) > 0)
            ;
    }
    return result;
}
