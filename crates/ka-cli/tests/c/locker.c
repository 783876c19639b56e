/*
 * locker: an attacker. Its threads hold the locks of some of its TCP sockets, and release them only when the process ends.
 *
 * send(2) takes the lock and then copies the data. Here the data is on a page that userfaultfd(2) never fills, so the
 * thread waits inside the kernel with the lock held. Any other call on the socket that needs the lock waits too.
 *
 * It connects to itself, prints "locked" with the descriptors whose locks are held, and waits for the end of its input.
 * Arguments: the ID of the user to become; the name of the process; the number of locks to hold. One more connection
 * has no lock held. If a fourth argument is given, it first prints "open" with the descriptors, and waits for a line.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *page;
static volatile pid_t sender;

static void *send_page(void *fd)
{
    sender = (pid_t)syscall(SYS_gettid);
    send((int)(long)fd, page, 4096, 0);
    return NULL;
}

static char *unfilled_page(void)
{
    struct uffdio_api api = { .api = UFFD_API };
    char *place = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = {
        .range = { .start = (unsigned long)place, .len = 4096 },
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0 || ioctl(fd, UFFDIO_REGISTER, &range) != 0)
        err(77, "userfaultfd");
    return place;
}

static int connection(void)
{
    static int listener = -1;
    static struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t size = sizeof address;
    if (listener < 0) {
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 8) != 0 ||
            getsockname(listener, (struct sockaddr *)&address, &size) != 0)
            err(EXIT_FAILURE, "listen");
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, size) != 0 || accept(listener, NULL, NULL) < 0)
        err(EXIT_FAILURE, "connect");
    return fd;
}

/* Waits until the thread sleeps in send(2), with the lock held: /proc shows the number of its system call. */
static void await_lock(void)
{
    char path[64], call[32];
    for (;; usleep(10000)) {
        if (sender == 0)
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%d/syscall", sender);
        FILE *file = fopen(path, "r");
        int is_sending = file && fgets(call, sizeof call, file) && atoi(call) == SYS_sendto;
        if (file)
            fclose(file);
        if (is_sending)
            return;
    }
}

static void print(const char *word, const int *fds, int count)
{
    printf("%s", word);
    for (int n = 0; n < count; n++)
        printf(" %d", fds[n]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 5)
        errx(EXIT_FAILURE, "usage: locker USER NAME LOCKS [later]");
    page = unfilled_page();
    if (setgid((gid_t)atoi(argv[1])) != 0 || setuid((uid_t)atoi(argv[1])) != 0)
        err(EXIT_FAILURE, "setuid");
    /* Lets the process read its own threads in /proc. The alarm ends the program if it does not get ready. */
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
    alarm(60);
    prctl(PR_SET_NAME, argv[2], 0, 0, 0);
    connection();
    int locks = atoi(argv[3]), fds[64];
    if (locks > 64)
        errx(EXIT_FAILURE, "too many locks");
    for (int n = 0; n < locks; n++)
        fds[n] = connection();
    if (argc == 5) {
        alarm(0);
        print("open", fds, locks);
        while (getchar() != '\n')
            ;
        alarm(60);
    }
    for (int n = 0; n < locks; n++) {
        pthread_t thread;
        sender = 0;
        if (pthread_create(&thread, NULL, send_page, (void *)(long)fds[n]) != 0)
            errx(EXIT_FAILURE, "pthread_create");
        await_lock();
    }
    alarm(0);
    print("locked", fds, locks);
    while (getchar() != EOF)
        ;
    /* When the process ends, the kernel ends the waits of its threads. */
    _exit(0);
}
