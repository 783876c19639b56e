/*
 * seccomp: compares the cost of a connection under `ka run --via seccomp`, under a supervisor that does nothing, and
 * without a supervisor.
 *
 * Workers make connections on the loopback (socket, connect, accept, two closes), some hundreds at a time, in turn. One
 * worker has no supervisor. One has a bare supervisor in C, which gets notifications for connect and listen and answers
 * CONTINUE, with SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, which makes this faster. There is one worker under ka in each
 * mode. Another worker sets keepalive itself by four setsockopt calls, to show the cost of the policy without a
 * supervisor. A ratio is the median of the rounds' ratios.
 *
 * Usage: seccomp KA
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "command.h"
#include "loopback.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

enum { BATCH = 400, ROUNDS = 41, WAYS = 6 };

/* For each byte that it reads, makes connections and writes the time for one. */
static void work(int by_hand)
{
    struct sockaddr_in address;
    int listener = listen_on_loopback(&address, 128);
    for (char byte; read(STDIN_FILENO, &byte, 1) == 1;) {
        double start = microseconds();
        for (int n = 0; n < BATCH; n++) {
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            if (by_hand) {
                set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
                set(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
                set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
                set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
            }
            if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
                err(EXIT_FAILURE, "connect");
            close(accept(listener, NULL, NULL));
            close(fd);
        }
        double each = (microseconds() - start) / BATCH;
        if (write(STDOUT_FILENO, &each, sizeof each) != sizeof each)
            exit(EXIT_FAILURE);
    }
    exit(EXIT_SUCCESS);
}

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* Installs the filter in this process. Returns the listener. */
static int notified(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_connect, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_listen, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                        SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &program);
}

static void answer_all(int listener)
{
    struct seccomp_notif call;
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
    for (;;) {
        memset(&call, 0, sizeof call);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) {
            if (errno == EINTR)
                continue;
            exit(EXIT_SUCCESS);
        }
        struct seccomp_notif_resp response = { .id = call.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
    }
}

/* Runs a worker under a supervisor that only answers CONTINUE. */
static void work_under_a_bare_one(void)
{
    int numbers[2];
    if (pipe(numbers) != 0)
        err(EXIT_FAILURE, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int listener = notified();
        if (write(numbers[1], &listener, sizeof listener) != sizeof listener)
            exit(EXIT_FAILURE);
        work(0);
    }
    int theirs;
    if (read(numbers[0], &theirs, sizeof theirs) != sizeof theirs || theirs < 0)
        errx(EXIT_FAILURE, "no listener");
    int listener = (int)syscall(SYS_pidfd_getfd, (int)syscall(SYS_pidfd_open, pid, 0), theirs, 0);
    if (listener < 0)
        err(EXIT_FAILURE, "pidfd_getfd");
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    answer_all(listener);
}

struct worker {
    const char *name;
    const char *mode;
    int in, out;
};

static void start(struct worker *worker, char *self, char *ka)
{
    int to[2], from[2];
    if (pipe2(to, 0) != 0 || pipe2(from, 0) != 0)
        err(EXIT_FAILURE, "pipe");
    if (fork() == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        for (int fd = 3; fd < 64; fd++)
            close(fd);
        if (strcmp(worker->mode, "bare") == 0)
            work_under_a_bare_one();
        if (strcmp(worker->mode, "none") == 0 || strcmp(worker->mode, "hand") == 0)
            work(worker->mode[0] == 'h');
        execl(ka, ka, "run", "--via", "seccomp", "--mode", worker->mode, "--", self, "work", NULL);
        err(127, "%s", ka);
    }
    close(to[0]);
    close(from[1]);
    worker->in = to[1];
    worker->out = from[0];
}

static double time_of(struct worker *worker)
{
    double each;
    if (write(worker->in, "", 1) != 1 || read(worker->out, &each, sizeof each) != sizeof each)
        errx(EXIT_FAILURE, "%s: the worker has ended", worker->name);
    return each;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "work") == 0)
        work(0);
    if (argc != 2)
        errx(EXIT_FAILURE, "usage: seccomp KA");
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0)
        err(EXIT_FAILURE, "/proc/self/exe");
    self[length] = '\0';
    struct worker workers[WAYS] = {
        { "bare supervisor", "bare", 0, 0 }, { "none", "none", 0, 0 },           { "setsockopt by hand", "hand", 0, 0 },
        { "ka, force", "force", 0, 0 },      { "ka, floor", "floor", 0, 0 },     { "ka, default", "default", 0, 0 },
    };
    double times[WAYS][ROUNDS], ratios[WAYS][ROUNDS];
    for (int way = 0; way < WAYS; way++)
        start(&workers[way], self, argv[1]);
    for (int way = 0; way < WAYS; way++)
        time_of(&workers[way]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int way = 0; way < WAYS; way++)
            times[way][round] = time_of(&workers[way]);
        for (int way = 0; way < WAYS; way++)
            ratios[way][round] = times[way][round] / times[0][round];
    }
    for (int way = 0; way < WAYS; way++)
        printf("%-20s %6.2f us a connection, %.2f of the bare supervisor's\n", workers[way].name,
               median(times[way], ROUNDS), median(ratios[way], ROUNDS));
    for (int way = 0; way < WAYS; way++)
        close(workers[way].in);
    while (wait(NULL) > 0)
        ;
    return EXIT_SUCCESS;
}
