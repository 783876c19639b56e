/*
 * command: compares the ka command with the alternatives, interleaved in one run.
 *
 *   attach  on 10,000 sockets of another process: only the system calls (pidfd_getfd, getsockopt, four setsockopt,
 *           close) for known descriptors; the same with the calls that find the descriptors (getdents and readlink
 *           in /proc/PID/fd); and `ka attach`, from fork to exit
 *   ls      on 5,000 connections, 10,000 sockets: `ss -tnop`, `ka ls` and `ka ls --json`, from fork to exit
 *   run     `true`, `true` with the shim preloaded, and `ka run true`, from fork to exit
 *
 * Usage: command KA SHIM, in a new network namespace. Each round times each alternative, in turn. A ratio is the median
 * of the rounds' ratios.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "command.h"
#include "loopback.h"

#define SOCKETS 10000

static int fds[SOCKETS];

static int command[2], answer[2];

/* Starts a process that owns the sockets, so that other children do not have to copy and close them. It makes the
 * sockets and reports their descriptors. Then it turns keepalive off on all of them on request. */
static pid_t holder(void (*make)(void))
{
    if (pipe2(command, O_CLOEXEC) != 0 || pipe2(answer, O_CLOEXEC) != 0)
        err(EXIT_FAILURE, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        make();
        do {
            for (int n = 0; n < SOCKETS; n++)
                set(fds[n], SOL_SOCKET, SO_KEEPALIVE, 0);
            if (write(answer[1], fds, sizeof fds) != sizeof fds)
                _exit(1);
        } while (read(command[0], &byte, 1) == 1);
        _exit(0);
    }
    return pid;
}

static void await_holder(void)
{
    size_t size = 0;
    while (size < sizeof fds) {
        ssize_t more = read(answer[0], (char *)fds + size, sizeof fds - size);
        if (more <= 0)
            errx(EXIT_FAILURE, "the holder has ended");
        size += (size_t)more;
    }
}

static void turn_off(void)
{
    if (write(command[1], "", 1) != 1)
        err(EXIT_FAILURE, "write");
    await_holder();
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(command[0]);
    close(command[1]);
    close(answer[0]);
    close(answer[1]);
}

static void set_theirs(int pidfd, int theirs)
{
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, theirs, 0), on;
    socklen_t size = sizeof on;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size) != 0)
        err(EXIT_FAILURE, "pidfd_getfd");
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    close(fd);
}

static double known(pid_t pid)
{
    double start = microseconds();
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    for (int n = 0; n < SOCKETS; n++)
        set_theirs(pidfd, fds[n]);
    close(pidfd);
    return microseconds() - start;
}

static double found(pid_t pid)
{
    double start = microseconds();
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), count = 0;
    char path[32], link[64];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *folder = opendir(path);
    for (struct dirent *entry; (entry = readdir(folder));) {
        ssize_t size = readlinkat(dirfd(folder), entry->d_name, link, sizeof link);
        if (size > 8 && memcmp(link, "socket:[", 8) == 0) {
            set_theirs(pidfd, atoi(entry->d_name));
            count++;
        }
    }
    closedir(folder);
    close(pidfd);
    if (count < SOCKETS)
        errx(EXIT_FAILURE, "%d sockets of %d", count, SOCKETS);
    return microseconds() - start;
}

static void make_fresh(void)
{
    for (int n = 0; n < SOCKETS; n++)
        if ((fds[n] = socket(AF_INET, SOCK_STREAM, 0)) < 0)
            err(EXIT_FAILURE, "socket");
}

static void make_connections(void)
{
    struct sockaddr_in address;
    int listener = listen_on_loopback(&address, 128);
    for (int n = 0; n < SOCKETS; n += 2) {
        fds[n] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fds[n], (struct sockaddr *)&address, sizeof address) != 0 ||
            (fds[n + 1] = accept(listener, NULL, NULL)) < 0)
            err(EXIT_FAILURE, "connect");
    }
}

static void bench_attach(char *ka)
{
    enum { ROUNDS = 21 };
    double times[3][ROUNDS], ratios[2][ROUNDS];
    pid_t pid = holder(make_fresh);
    await_holder();
    char number[16];
    snprintf(number, sizeof number, "%d", pid);
    char *attach[] = { ka, "attach", number, NULL };
    for (int n = 0; n < ROUNDS; n++) {
        turn_off();
        times[0][n] = known(pid);
        turn_off();
        times[1][n] = found(pid);
        turn_off();
        times[2][n] = run(attach, NULL);
        ratios[0][n] = times[2][n] / times[0][n];
        ratios[1][n] = times[2][n] / times[1][n];
    }
    printf("attach, %d sockets, us each: descriptors known %.2f, found %.2f, ka attach %.2f: ratio %.2f and %.2f\n",
           SOCKETS, median(times[0], ROUNDS) / SOCKETS, median(times[1], ROUNDS) / SOCKETS,
           median(times[2], ROUNDS) / SOCKETS, median(ratios[0], ROUNDS), median(ratios[1], ROUNDS));
    end(pid);
}

static void bench_ls(char *ka)
{
    enum { ROUNDS = 15 };
    pid_t pid = holder(make_connections);
    await_holder();
    char *ss[] = { "ss", "-tnop", NULL }, *table[] = { ka, "ls", NULL }, *json[] = { ka, "ls", "--json", NULL };
    double times[3][ROUNDS], ratios[2][ROUNDS];
    for (int n = 0; n < ROUNDS; n++) {
        times[0][n] = run(ss, NULL);
        times[1][n] = run(table, NULL);
        times[2][n] = run(json, NULL);
        ratios[0][n] = times[1][n] / times[0][n];
        ratios[1][n] = times[2][n] / times[0][n];
    }
    printf("ls, %d sockets: ss -tnop %.1f ms, ka ls %.1f (ratio %.2f), ka ls --json %.1f (ratio %.2f)\n", SOCKETS,
           median(times[0], ROUNDS) / 1e3, median(times[1], ROUNDS) / 1e3, median(ratios[0], ROUNDS),
           median(times[2], ROUNDS) / 1e3, median(ratios[1], ROUNDS));
    end(pid);
}

static void bench_run(char *ka, const char *shim)
{
    enum { ROUNDS = 201 };
    char *plain[] = { "true", NULL }, *under[] = { ka, "run", "true", NULL };
    double times[3][ROUNDS], more[ROUNDS];
    for (int n = 0; n < ROUNDS; n++) {
        times[0][n] = run(plain, NULL);
        times[1][n] = run(plain, shim);
        times[2][n] = run(under, NULL);
        more[n] = times[2][n] - times[1][n];
    }
    printf("run: true %.0f us, with the shim preloaded %.0f, by ka run %.0f: ka itself adds %.0f\n",
           median(times[0], ROUNDS), median(times[1], ROUNDS), median(times[2], ROUNDS), median(more, ROUNDS));
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(EXIT_FAILURE, "usage: command KA SHIM");
    raise_descriptor_limit();
    bench_attach(argv[1]);
    bench_ls(argv[1]);
    bench_run(argv[1], argv[2]);
}
