/*
 * lenient: tests ka_enable_lenient if the kernel rejects some of the options. A seccomp filter acts as an old kernel or
 * a security policy: it makes setsockopt(2), or setsockopt(2) and getsockopt(2), fail for a set of options. All sets
 * are tried, with several errnos, on sockets with keepalive off and on. A process without the filter asks the kernel
 * for the result. Prints how many calls it has made.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <ka.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "check.h"

enum { IDLE, INTVL, CNT, KEEPALIVE, OPTIONS };

static const int names[OPTIONS][2] = {
    { IPPROTO_TCP, TCP_KEEPIDLE },
    { IPPROTO_TCP, TCP_KEEPINTVL },
    { IPPROTO_TCP, TCP_KEEPCNT },
    { SOL_SOCKET, SO_KEEPALIVE },
};
static const int bits[] = { KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_CNT };
static const int most[] = { KA_IDLE_MAX, KA_INTVL_MAX, KA_CNT_MAX };
static const int old[] = { 600, 60, 6 };

struct trial {
    bool on, reads_fail;
    unsigned refused;
    int error;
    const int *wanted;
};

static void refuse(const struct trial *trial)
{
    struct sock_filter filter[16 * OPTIONS] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)) };
    size_t length = 1;

    filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setsockopt, 2, 0);
    filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                                                    trial->reads_fail ? SYS_getsockopt : SYS_setsockopt, 1, 0);
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    for (int option = 0; option < OPTIONS; option++) {
        if (!(trial->refused & 1u << option))
            continue;
        for (int argument = 0; argument < 2; argument++) {
            unsigned offset = (unsigned)offsetof(struct seccomp_data, args[argument + 1]);
            filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset);
            filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)names[option][argument],
                                                            0, (unsigned char)(argument == 0 ? 3 : 1));
        }
        filter[length++] =
            (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)trial->error);
    }
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { .len = (unsigned short)length, .filter = filter };
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static int get(int fd, int option)
{
    int value = -1;
    socklen_t size = sizeof value;
    CHECK(getsockopt(fd, names[option][0], names[option][1], &value, &size) == 0);
    return value;
}

static void set(int fd, int option, int value)
{
    CHECK(setsockopt(fd, names[option][0], names[option][1], &value, sizeof value) == 0);
}

static void run(const struct trial *trial)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), answer[2], status, results[2];

    CHECK(fd >= 0 && pipe(answer) == 0);
    for (int option = IDLE; option <= CNT; option++)
        set(fd, option, old[option]);
    set(fd, KEEPALIVE, trial->on);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        refuse(trial);
        errno = 0;
        int result = ka_enable_lenient(fd, trial->wanted[IDLE], trial->wanted[INTVL], trial->wanted[CNT]);
        int report[2] = { result, errno };
        _exit(write(answer[1], report, sizeof report) == sizeof report ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(read(answer[0], results, sizeof results) == sizeof results);

    bool refused = trial->refused & 1u << KEEPALIVE;
    bool fails = refused && (trial->reads_fail || !trial->on);
    int mask = 0, expected = trial->error == ENOPROTOOPT ? EOPNOTSUPP : trial->error;
    char what[160];

    snprintf(what, sizeof what, "on %d, refused %#x, reads fail %d, errno %d, wanted %d %d %d: %d, errno %d", trial->on,
             trial->refused, trial->reads_fail, trial->error, trial->wanted[0], trial->wanted[1], trial->wanted[2],
             results[0], results[1]);
    for (int option = IDLE; option <= CNT; option++) {
        int wanted = trial->wanted[option];
        bool is_refused = wanted >= 1 && trial->refused & 1u << option;
        int after = wanted < 1 || is_refused ? old[option] : wanted > most[option] ? most[option] : wanted;
        if (is_refused || wanted > most[option])
            mask |= bits[option];
        if (!fails && get(fd, option) != after) {
            fprintf(stderr, "%s: timer %d is %d, not %d\n", what, option, get(fd, option), after);
            exit(1);
        }
    }
    if (get(fd, KEEPALIVE) != (fails ? trial->on : 1) || results[0] != (fails ? -1 : mask) ||
        results[1] != (fails ? expected : 0)) {
        fprintf(stderr, "%s: keepalive %d, the mask should be %d\n", what, get(fd, KEEPALIVE), mask);
        exit(1);
    }
    close(fd);
    close(answer[0]);
    close(answer[1]);
}

int main(void)
{
    static const int errors[] = { EINVAL, EPERM, EACCES, ENOMEM, ENOPROTOOPT, EOPNOTSUPP };
    static const int wanted[][3] = {
        { 30, 3, 2 }, { 0, 3, 2 }, { 30, 0, -1 }, { -7, 0, 2 }, { 86400, 3, 300 }, { 0, 0, 0 },
    };
    struct trial trial;
    int calls = 0;

    for (size_t set = 0; set < sizeof wanted / sizeof *wanted; set++)
        for (size_t error = 0; error < sizeof errors / sizeof *errors; error++)
            for (unsigned state = 0; state < 4 * (1u << OPTIONS); state++, calls++) {
                trial = (struct trial){ .on = state & 1, .reads_fail = state & 2, .refused = state / 4,
                                        .error = errors[error], .wanted = wanted[set] };
                run(&trial);
            }
    printf("%d calls\n", calls);
    return 0;
}
