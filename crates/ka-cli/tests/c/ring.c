/*
 * ring: makes and accepts a connection through io_uring(7), without socket system calls and without liburing.
 *
 * It prints the options of both ends, as holder does: descriptor, SO_KEEPALIVE, idle, intvl, cnt, user timeout. If
 * io_uring is not available, its exit status is 77.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int ring;
static char *queues;
static struct io_uring_sqe *entries;
static struct io_uring_params params;

static unsigned *word(unsigned offset)
{
    return (unsigned *)(queues + offset);
}

static void open_ring(void)
{
    ring = (int)syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0 && (errno == ENOSYS || errno == EPERM))
        exit(77);
    if (ring < 0 || !(params.features & IORING_FEAT_SINGLE_MMAP))
        err(EXIT_FAILURE, "io_uring_setup");
    size_t size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    queues = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    entries = mmap(NULL, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    if (queues == MAP_FAILED || entries == MAP_FAILED)
        err(EXIT_FAILURE, "mmap");
}

/* Submits one operation to the kernel, and returns its result. */
static int submit(struct io_uring_sqe entry)
{
    unsigned tail = *word(params.sq_off.tail), mask = *word(params.sq_off.ring_mask);
    entries[tail & mask] = entry;
    word(params.sq_off.array)[tail & mask] = tail & mask;
    __atomic_store_n(word(params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        err(EXIT_FAILURE, "io_uring_enter");
    unsigned head = *word(params.cq_off.head);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(queues + params.cq_off.cqes);
    int result = done[head & *word(params.cq_off.ring_mask)].res;
    __atomic_store_n(word(params.cq_off.head), head + 1, __ATOMIC_RELEASE);
    if (result < 0)
        errx(EXIT_FAILURE, "operation %d: %s", entry.opcode, strerror(-result));
    return result;
}

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    getsockopt(fd, level, name, &value, &size);
    return value;
}

static void print(int fd)
{
    printf("%d %d %d %d %d %d\n", fd, get(fd, SOL_SOCKET, SO_KEEPALIVE), get(fd, IPPROTO_TCP, TCP_KEEPIDLE),
           get(fd, IPPROTO_TCP, TCP_KEEPINTVL), get(fd, IPPROTO_TCP, TCP_KEEPCNT),
           get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT));
}

int main(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    open_ring();
    /* listen(2) is an ordinary system call here, because io_uring has an operation for it only since Linux 6.11. */
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 8) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0)
        err(EXIT_FAILURE, "listener");
    int client = submit((struct io_uring_sqe){ .opcode = IORING_OP_SOCKET, .fd = AF_INET, .off = SOCK_STREAM });
    submit((struct io_uring_sqe){ .opcode = IORING_OP_CONNECT, .fd = client,
                                  .addr = (unsigned long)&address, .off = sizeof address });
    int server = submit((struct io_uring_sqe){ .opcode = IORING_OP_ACCEPT, .fd = listener });
    print(client);
    print(server);
}
