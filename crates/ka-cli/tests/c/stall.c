/*
 * stall: an attacker under `ka run --via seccomp`. It makes one call that the supervisor handles, and makes the
 * supervisor's own system call on the same object block. If it is started as root, it becomes the user 65534 before it
 * attacks, unless `stay` is given. It prints `stalling` when the attack is under way, and continues until the end of its
 * standard input.
 *
 *   lock [N [stay]]  N processes: setsockopt(2) with a value on a page that never arrives holds a socket's lock, then
 *              listen(2) on that socket
 *   value      setsockopt(2) whose value is on a page that never arrives
 *   linger     SO_LINGER with unsent data: the last close(2) of the socket waits for an hour. The supervisor has a
 *              duplicate, and makes this last close
 *   fuse       listen(2) on a file whose FUSE server never answers FLUSH, which close(2) waits for
 *
 * With `lock`, `value` and `fuse` it prints `ended ERRNO MS` if the call ends: its error and its duration.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* The last bytes before a page that never arrives. */
static char *edge;
static int fault;

/* The page is never filled. Only root can make the kernel's own accesses wait for it. */
static void make_page(void)
{
    struct uffdio_api api = { .api = UFFD_API };
    fault = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register second = { .range = { (uintptr_t)pages + PAGE, PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (fault < 0 || pages == MAP_FAILED || ioctl(fault, UFFDIO_API, &api) != 0 || ioctl(fault, UFFDIO_REGISTER, &second) != 0)
        err(EXIT_FAILURE, "userfaultfd");
    edge = pages + PAGE - 4;
    memset(edge, 1, 4);
}

static void become_nobody(void)
{
    if (geteuid() == 0 &&
        (setgroups(0, NULL) != 0 || setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0))
        err(EXIT_FAILURE, "setresuid");
    /* A program that this user starts is dumpable, too. */
    prctl(PR_SET_DUMPABLE, 1);
}

/* A TCP connection on loopback: one end, and the other in *peer. */
static int connection(int *peer)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(server, (struct sockaddr *)&address, size) != 0 || listen(server, 5) != 0 ||
        getsockname(server, (struct sockaddr *)&address, &size) != 0 || connect(fd, (struct sockaddr *)&address, size) != 0 ||
        (*peer = accept(server, NULL, NULL)) < 0)
        err(EXIT_FAILURE, "connection");
    close(server);
    return fd;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static volatile pid_t locker;

/* While the kernel has the socket's lock, it reads IP options, the rest of which is on the page. */
static void *locks(void *fd)
{
    locker = (pid_t)syscall(SYS_gettid);
    setsockopt((int)(intptr_t)fd, IPPROTO_IP, IP_OPTIONS, edge, 40);
    return NULL;
}

static void *waits_for_the_end(void *unused)
{
    char end;
    (void)unused;
    while (read(STDIN_FILENO, &end, 1) > 0)
        ;
    kill(0, SIGTERM);
    _exit(EXIT_SUCCESS);
}

static void start(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, function, argument) != 0)
        errx(EXIT_FAILURE, "pthread_create");
    pthread_detach(thread);
}

static void say(const char *what)
{
    puts(what);
    fflush(stdout);
}

/* Returns whether this thread waits in the kernel for the page. */
static int waits_for_page(pid_t thread)
{
    char path[64], where[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/wchan", thread);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    int is_there = read(fd, where, sizeof where - 1) > 0 && strcmp(where, "handle_userfault") == 0;
    close(fd);
    return is_there;
}

static void lock(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    start(locks, (void *)(intptr_t)fd);
    while (!waits_for_page(locker))
        usleep(1000);
    say("stalling");
    double before = seconds();
    int result = listen(fd, 5);
    printf("ended %d %d\n", result == 0 ? 0 : errno, (int)((seconds() - before) * 1000));
}

static void value(void)
{
    int peer, fd = connection(&peer);
    say("stalling");
    double before = seconds();
    int result = setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, edge + 4, sizeof(int));
    printf("ended %d %d\n", result == 0 ? 0 : errno, (int)((seconds() - before) * 1000));
}

static void *sets(void *fd)
{
    setsockopt((int)(intptr_t)fd, SOL_SOCKET, SO_KEEPALIVE, edge + 4, sizeof(int));
    return NULL;
}

static void linger(void)
{
    char block[65536] = { 0 };
    struct linger hour = { 1, 3600 };
    int peer, fd = connection(&peer);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (send(fd, block, sizeof block, MSG_NOSIGNAL) > 0)
        ;
    fcntl(fd, F_SETFL, 0);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hour, sizeof hour);
    /* The supervisor has a duplicate while it waits for the value. So this close is not the last one. */
    start(sets, (void *)(intptr_t)fd);
    usleep(50000);
    close(fd);
    struct uffdio_zeropage zero = { .range = { (uintptr_t)edge + 4, PAGE } };
    ioctl(fault, UFFDIO_ZEROPAGE, &zero);
    say("stalling");
}

/* A FUSE server with one file, which never answers FLUSH. */
static void serve(int device)
{
    static char buffer[1 << 17];
    struct fuse_attr folder = { .ino = 1, .mode = S_IFDIR | 0755, .nlink = 2 }, file = { .ino = 2, .mode = S_IFREG | 0644, .nlink = 1 };
    struct pollfd both[] = { { .fd = device, .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };
    while (poll(both, 2, -1) > 0 && !both[1].revents) {
        ssize_t size = read(device, buffer, sizeof buffer);
        if (size < (ssize_t)sizeof(struct fuse_in_header))
            _exit(EXIT_SUCCESS);
        struct fuse_in_header *in = (struct fuse_in_header *)buffer;
        struct {
            struct fuse_out_header header;
            union {
                struct fuse_init_out init;
                struct fuse_entry_out entry;
                struct fuse_attr_out attr;
                struct fuse_open_out open;
            };
        } out = { .header = { .unique = in->unique } };
        size_t length = 0;
        switch (in->opcode) {
        case FUSE_INIT:
            out.init.major = FUSE_KERNEL_VERSION;
            out.init.minor = FUSE_KERNEL_MINOR_VERSION;
            out.init.max_write = PAGE;
            length = sizeof out.init;
            break;
        case FUSE_LOOKUP:
            out.entry.nodeid = 2;
            out.entry.attr = file;
            length = sizeof out.entry;
            break;
        case FUSE_GETATTR:
            out.attr.attr = in->nodeid == 1 ? folder : file;
            length = sizeof out.attr;
            break;
        case FUSE_OPEN:
            out.open.fh = 1;
            length = sizeof out.open;
            break;
        case FUSE_FLUSH:
        case FUSE_FORGET:
        case FUSE_INTERRUPT:
            continue;
        default:
            out.header.error = -ENOSYS;
        }
        out.header.len = (uint32_t)(sizeof out.header + length);
        if (write(device, &out, out.header.len) < 0 && errno != ENOENT)
            err(EXIT_FAILURE, "fuse");
    }
}

static int fuse_file(void)
{
    char options[100], path[] = "/tmp/ka-stall-XXXXXX", name[100];
    int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (device < 0 || unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || !mkdtemp(path) ||
        mount("none", path, "tmpfs", 0, NULL) != 0)
        err(EXIT_FAILURE, "fuse");
    snprintf(name, sizeof name, "%s/mount", path);
    if (mkdir(name, 0755) != 0 || mount("stall", name, "fuse", 0, options) != 0)
        err(EXIT_FAILURE, "fuse");
    if (fork() == 0) {
        serve(device);
        _exit(EXIT_SUCCESS);
    }
    close(device);
    strcat(name, "/file");
    int fd = open(name, O_RDONLY);
    if (fd < 0)
        err(EXIT_FAILURE, "%s", name);
    rmdir(path);
    return fd;
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 1, file = -1;
    setpgid(0, 0);
#define IS(word) (strcmp(how, word) == 0)
    if (IS("fuse"))
        file = fuse_file();
    if (IS("lock") || IS("value"))
        for (; count > 1 && fork() != 0; count--)
            ;
    if (!IS("fuse"))
        make_page();
    if (argc <= 3)
        become_nobody();
    start(waits_for_the_end, NULL);
    if (IS("lock")) {
        lock();
    } else if (IS("value")) {
        value();
    } else if (IS("linger")) {
        linger();
    } else if (IS("fuse")) {
        say("stalling");
        double before = seconds();
        int result = listen(file, 5);
        printf("ended %d %d\n", result == 0 ? 0 : errno, (int)((seconds() - before) * 1000));
    } else {
        errx(2, "stall lock|value|linger|fuse");
    }
    fflush(stdout);
    for (;;)
        pause();
}
