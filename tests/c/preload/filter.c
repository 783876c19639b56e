/*
 * filter WHAT: a program whose own seccomp filter kills it if the shim makes certain calls. Prints "well" at the end.
 *
 *   receives      receives descriptors of each kind, without a filter and under filters that were installed in each way
 *   log           makes and connects sockets under a filter that forbids opening files
 *   rules         connects under a filter that forbids process_vm_readv(2)
 *   dlsym LIBRARY opens a library as PHP does, and looks a function up under a filter that forbids the shim's calls
 *   mask          makes a socket under filters that deny signal calls; the signal mask must stay unchanged
 */
#include "probe.h"

#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define ON "1 60 10 6 0"
#define OFF "0 7200 75 9 0"

static void is(int fd, const char *wanted, const char *what)
{
    if (strcmp(five(fd), wanted) != 0) {
        fprintf(stderr, "%s: %s, not %s\n", what, five(fd), wanted);
        exit(1);
    }
}

/* The shim does not see a filter that is installed by UNSEEN. */
enum road { BY_NOTHING, BY_PRCTL, BY_NUMBER_OF_PRCTL, BY_NUMBER_OF_SECCOMP, WITH_A_LISTENER, ROADS, UNSEEN };
static const char *const roads[] = { "no filter", "prctl()", "syscall(SYS_prctl)", "syscall(SYS_seccomp)",
                                     "syscall(SYS_seccomp) with a listener" };

/* Installs a filter with this action for these calls; if argument is not -1, only with this first argument. */
static void install(enum road road, unsigned action, int argument, const long *calls, size_t count)
{
    struct sock_filter code[32];
    unsigned short n = 0;
    CHECK(count < 8);
    for (size_t i = 0; i < count; i++) {
        code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, argument < 0 ? 1 : 3);
        if (argument >= 0) {
            code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args));
            code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)argument, 0, 1);
        }
        code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog filter = { n, code };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (road == BY_PRCTL)
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
    else if (road == BY_NUMBER_OF_PRCTL)
        CHECK(syscall(SYS_prctl, (long)PR_SET_SECCOMP, (long)SECCOMP_MODE_FILTER, &filter) == 0);
    else if (road == BY_NUMBER_OF_SECCOMP)
        CHECK(syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, 0L, &filter) == 0);
    else if (road == UNSEEN)
        CHECK(raw(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, (long)&filter, 0, 0, 0) == 0);
    else if (road == WITH_A_LISTENER)
        CHECK(syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, (long)SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter) > 0);
}

/* Calls of prctl(2) and seccomp(2) that do not install a filter. */
static void ask_what_there_is(void)
{
    unsigned action = SECCOMP_RET_KILL_PROCESS;
    errno = 0;
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL) == -1 && errno != 0);
    errno = 0;
    CHECK(syscall(SYS_seccomp, (long)SECCOMP_SET_MODE_FILTER, 0L, NULL) == -1 && errno == EFAULT);
    errno = 0;
    CHECK(syscall(SYS_prctl, (long)PR_SET_SECCOMP, (long)SECCOMP_MODE_FILTER, NULL) == -1 && errno != 0);
    CHECK(syscall(SYS_seccomp, (long)SECCOMP_GET_ACTION_AVAIL, 0L, &action) == 0);
    CHECK(prctl(PR_GET_SECCOMP) == 0);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
}

/* The hook passes every argument and the result on. */
static void other_operations(void)
{
    char name[16] = "", again[16] = "";
    errno = 77;
    CHECK(prctl(PR_SET_NAME, "renamed") == 0 && prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed") == 0);
    CHECK(syscall(SYS_prctl, (long)PR_GET_NAME, again) == 0 && strcmp(again, "renamed") == 0);
    CHECK(errno == 77);
    CHECK(prctl(PR_CAPBSET_READ, -1L) == -1 && errno == EINVAL);
    /* The kernel rejects values other than 0 in the last three. */
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 1) == -1 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 1, 0) == -1);
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 1, 0, 0) == -1 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) >= 0);
}

static void receives(void)
{
    static const long killed[] = { SYS_getsockopt, SYS_setsockopt, SYS_fcntl, SYS_getresuid, SYS_fstat };
    become_an_ordinary_user();
    other_operations();
    for (enum road road = BY_NOTHING; road < ROADS; road++) {
        for (enum receive way = BY_RECVMSG; way < WAYS_TO_RECEIVE; way++) {
            int carrier[2], kinds[2], pipes[2], status, received[5];
            CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, carrier) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, kinds) == 0);
            CHECK(pipe(pipes) == 0);
            int tcp = (int)raw(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0, 0);
            const int sent[] = { pipes[0], pipes[1], (int)syscall(SYS_memfd_create, "memory", 0L), kinds[0], tcp };
            CHECK(sent[2] >= 0 && tcp >= 0);
            send_descriptors(carrier[0], sent, 5);
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                ask_what_there_is();
                if (road != BY_NOTHING)
                    install(road, SECCOMP_RET_KILL_PROCESS, -1, killed, sizeof killed / sizeof *killed);
                receive_descriptors(way, carrier[1], received, 5);
                _exit(0);
            }
            CHECK(waitpid(child, &status, 0) == child);
            if (status != 0) {
                fprintf(stderr, "%s, way %d to receive: ended with status %#x\n", roads[road], way, status);
                exit(1);
            }
            is(tcp, road == BY_NOTHING ? ON : OFF, roads[road]);
            for (int i = 0; i < 5; i++)
                close(sent[i]);
            close(carrier[0]), close(carrier[1]), close(kinds[1]);
        }
    }
}

static int connected(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    int listener = listener_on(AF_INET, 0, &address, &size), fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, size) == 0 && accept(listener, NULL, NULL) >= 0);
    return fd;
}

static int keepalive_off(int fd)
{
    int zero = 0;
    return setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &zero, sizeof zero);
}

static void without_opening_files(void)
{
    const long opens[] = { SYS_openat };
    install(BY_PRCTL, SECCOMP_RET_KILL_PROCESS, -1, opens, 1);
    int fd = connected();
    CHECK(keepalive_off(fd) == 0);
    is(fd, ON, "connected");
}

static void without_reading_memory(void)
{
    const long reads[] = { SYS_process_vm_readv, SYS_gettid };
    install(BY_NUMBER_OF_SECCOMP, SECCOMP_RET_KILL_PROCESS, -1, reads, 2);
    /* The shim cannot read the address, so no rule decides. The next call gets the peer from the kernel. */
    int fd = connected();
    is(fd, OFF, "connected");
    CHECK(keepalive_off(fd) == 0);
    is(fd, ON, "connected, turned off");
}

static void without_binding(const char *library)
{
    const long binds[] = { SYS_mprotect, SYS_gettid, SYS_ppoll, SYS_getsockopt };
    void *handle = dlopen(library, RTLD_NOW | RTLD_DEEPBIND);
    CHECK(handle != NULL);
    install(BY_PRCTL, SECCOMP_RET_KILL_PROCESS, -1, binds, sizeof binds / sizeof *binds);
    CHECK(dlsym(handle, "plugin_socket") != NULL && dlsym(handle, "no_such_function") == NULL);
}

/* Reads the signal mask and the pending signals from the kernel. */
static void signals(uint64_t *mask, uint64_t *waiting)
{
    CHECK(raw(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)mask, 8, 0, 0) == 0);
    CHECK(raw(SYS_rt_sigpending, (long)waiting, 8, 0, 0, 0, 0) == 0);
}

/* Run this with a log that may not grow, so that a line sends SIGXFSZ. */
static void with_the_mask_refused(void)
{
    static const struct {
        const char *what;
        long call;
        int how;
    } refused[] = { { "rt_sigprocmask", SYS_rt_sigprocmask, -1 },
                    { "SIG_BLOCK", SYS_rt_sigprocmask, SIG_BLOCK },
                    { "SIG_UNBLOCK", SYS_rt_sigprocmask, SIG_UNBLOCK },
                    { "SIG_SETMASK", SYS_rt_sigprocmask, SIG_SETMASK },
                    { "rt_sigpending", SYS_rt_sigpending, -1 },
                    { "rt_sigtimedwait", SYS_rt_sigtimedwait, -1 } };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        int status, pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            uint64_t mask, waiting;
            sigset_t own;
            sigemptyset(&own);
            sigaddset(&own, SIGUSR1);
            sigaddset(&own, SIGTERM);
            CHECK(sigprocmask(SIG_BLOCK, &own, NULL) == 0);
            signals(&mask, &waiting);
            CHECK(waiting == 0);
            /* The shim does not see this filter, so it continues to write its log. */
            install(UNSEEN, SECCOMP_RET_ERRNO | EPERM, refused[i].how, &refused[i].call, 1);
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            CHECK(fd >= 0 && keepalive_off(fd) == 0);
            is(fd, ON, refused[i].what);
            /* Another process reads the mask, because this one may not. */
            CHECK(raw(SYS_write, pipes[1], (long)&mask, 8, 0, 0, 0) == 8);
            for (;;)
                raw(SYS_ppoll, 0, 0, 0, 0, 0, 0);
        }
        uint64_t before;
        close(pipes[1]);
        if (read(pipes[0], &before, 8) != 8) {
            CHECK(waitpid(child, &status, 0) == child);
            fprintf(stderr, "%s refused: ended with status %#x\n", refused[i].what, status);
            exit(1);
        }
        char path[64], line[256];
        unsigned long long blocked = 0, waiting = 0, value;
        snprintf(path, sizeof path, "/proc/%d/status", child);
        FILE *file = fopen(path, "re");
        CHECK(file != NULL);
        while (fgets(line, sizeof line, file) != NULL) {
            if (sscanf(line, "SigBlk: %llx", &value) == 1)
                blocked = value;
            if (sscanf(line, "SigPnd: %llx", &value) == 1)
                waiting = value;
        }
        fclose(file);
        kill(child, SIGKILL);
        CHECK(waitpid(child, &status, 0) == child);
        close(pipes[0]);
        if (blocked != before || waiting != 0) {
            fprintf(stderr, "%s refused: the mask was %llx and is %llx, %llx waits\n", refused[i].what,
                    (unsigned long long)before, blocked, waiting);
            exit(1);
        }
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "receives") == 0)
        receives();
    else if (strcmp(what, "log") == 0)
        without_opening_files();
    else if (strcmp(what, "rules") == 0)
        without_reading_memory();
    else if (strcmp(what, "dlsym") == 0 && argc > 2)
        without_binding(argv[2]);
    else if (strcmp(what, "mask") == 0)
        with_the_mask_refused();
    else
        return 2;
    printf("well\n");
    return 0;
}
