/*
 * lingerer: an attacker. It makes the last close(2) of its sockets wait for an hour.
 *
 * A process with lingering connections (SO_LINGER) has filled their buffers. Their other ends, in another process, read
 * nothing. As soon as one connection has keepalive on, the process kills itself. Then a process with a duplicate closes it
 * last. The kernel does not let an exiting process linger, so the attacker's own sockets are closed at once.
 *
 * It prints "ready PID" with the process that has the connections, and waits for the end of its input. Arguments: the ID of
 * the user to become; the number of connections.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void fill(int fd)
{
    static char data[1 << 16];
    while (send(fd, data, sizeof data, MSG_DONTWAIT) > 0)
        ;
}

static void linger(struct sockaddr_in *address, int count, int ready)
{
    struct linger hour = { .l_onoff = 1, .l_linger = 3600 };
    int fds[512], small = 4096;
    for (int n = 0; n < count; n++) {
        fds[n] = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fds[n], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        if (connect(fds[n], (struct sockaddr *)address, sizeof *address) != 0 ||
            setsockopt(fds[n], SOL_SOCKET, SO_LINGER, &hour, sizeof hour) != 0)
            err(EXIT_FAILURE, "connect");
        fill(fds[n]);
    }
    usleep(100000);
    for (int n = 0; n < count; n++)
        fill(fds[n]);
    if (write(ready, "", 1) != 1)
        err(EXIT_FAILURE, "write");
    for (;; usleep(1000))
        for (int n = 0; n < count; n++) {
            int on = 0;
            socklen_t size = sizeof on;
            getsockopt(fds[n], SOL_SOCKET, SO_KEEPALIVE, &on, &size);
            if (on)
                kill(getpid(), SIGKILL);
        }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), count = argc == 3 ? atoi(argv[2]) : 0, ready[2], small = 4096;
    char byte;
    if (count < 1 || count > 512)
        errx(EXIT_FAILURE, "usage: lingerer USER CONNECTIONS");
    if (setgid((gid_t)atoi(argv[1])) != 0 || setuid((uid_t)atoi(argv[1])) != 0)
        err(EXIT_FAILURE, "setuid");
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 512) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 || pipe(ready) != 0)
        err(EXIT_FAILURE, "listen");
    /* Ends the program if it does not get ready. */
    alarm(60);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(listener);
        linger(&address, count, ready[1]);
    }
    for (int n = 0; n < count; n++)
        if (accept(listener, NULL, NULL) < 0)
            err(EXIT_FAILURE, "accept");
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1)
        errx(EXIT_FAILURE, "the child has ended");
    alarm(0);
    printf("ready %d\n", pid);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    _exit(0);
}
