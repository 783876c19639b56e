/*
 * threads: calls ka_enable and the heartbeat functions from 32 threads at once, on their own sockets and on a shared
 * one, from a signal handler that interrupts the library many times, and after fork. Prints nothing if all is well.
 */
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define THREADS 32
#define ROUNDS 300

static int shared;
static int signalled;
static volatile sig_atomic_t signals;

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &size) == 0);
    return value;
}

static int is(int fd, int idle, int intvl, int cnt)
{
    return get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == idle &&
           get(fd, IPPROTO_TCP, TCP_KEEPINTVL) == intvl && get(fd, IPPROTO_TCP, TCP_KEEPCNT) == cnt;
}

/* Signs and verifies a heartbeat of this client. */
static void beat(uint64_t client)
{
    const uint8_t key[16] = "a key of sixteen";
    uint8_t nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE];
    struct ka_beat beat = { client, 1 }, verified;

    CHECK(ka_beat_nonce(nonce) == 0 && ka_beat_sign(key, sizeof key, nonce, &beat, frame) == 0);
    CHECK(ka_beat_verify(key, sizeof key, nonce, 0, frame, &verified) == 0);
    CHECK(verified.client == client && verified.sequence == 1);
}

static void *work(void *argument)
{
    int own = 100 + (int)(intptr_t)argument;
    for (int round = 0; round < ROUNDS; round++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0);
        errno = own;
        CHECK(ka_enable(fd, own, 1 + round % 7, 5) == 0);
        CHECK(is(fd, own, 1 + round % 7, 5));
        beat((uint64_t)own);
        CHECK(errno == own);
        /* All threads set the same values on the shared socket, so these must be in force. */
        CHECK(ka_enable(shared, 60, 10, 5) == 0);
        CHECK(ka_enable(-1, 60, 10, 5) == -1 && errno == EBADF);
        CHECK(close(fd) == 0);
    }
    return NULL;
}

static void handler(int number)
{
    int before = errno;
    (void)number;
    CHECK(ka_enable(signalled, 61, 11, 6) == 0);
    beat(61);
    CHECK(errno == before);
    CHECK(ka_is_enabled(signalled) == 1);
    signals++;
}

static void in_a_signal_handler(void)
{
    struct sigaction action = { .sa_handler = handler };
    struct itimerval often = { { 0, 50 }, { 0, 50 } };
    struct itimerval never = { { 0, 0 }, { 0, 0 } };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    signalled = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && signalled >= 0);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int round = 0; signals < 1000; round++) {
        CHECK(ka_disable(fd) == 0);
        CHECK(ka_enable(fd, 60 + round % 5, 10, 5) == 0);
        CHECK(is(fd, 60 + round % 5, 10, 5));
        beat(60);
        CHECK(ka_enable(-1, 60, 10, 5) == -1 && errno == EBADF);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(is(signalled, 61, 11, 6));
}

static void after_fork(void)
{
    pid_t children[8];
    for (int i = 0; i < 8; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            CHECK(ka_enable(fd, 70 + i, 10, 5) == 0 && is(fd, 70 + i, 10, 5));
            CHECK(ka_enable(shared, 60, 10, 5) == 0);
            beat((uint64_t)i);
            _exit(0);
        }
    }
    for (int i = 0; i < 8; i++) {
        int status;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
}

int main(void)
{
    pthread_t threads[THREADS];
    shared = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(shared >= 0);
    for (intptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    after_fork();
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(is(shared, 60, 10, 5));
    in_a_signal_handler();
    return 0;
}
