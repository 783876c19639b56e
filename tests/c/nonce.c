/*
 * nonce: tests ka_beat_nonce on a kernel without getrandom(2), and in a sandbox that forbids it. A seccomp filter acts
 * as both. Prints nothing if all is well.
 */
#include <fcntl.h>
#include <ka.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "check.h"

/* Makes the call fail with this errno from now on. */
static void refuse(int number, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof code / sizeof *code, code };

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

int main(void)
{
    const uint8_t untouched[KA_BEAT_NONCE_SIZE] = { 0 };
    uint8_t one[KA_BEAT_NONCE_SIZE] = { 0 }, other[KA_BEAT_NONCE_SIZE] = { 0 };
    struct rlimit none = { 0, 0 };
    int free_fd;

    refuse(SYS_getrandom, ENOSYS);
    free_fd = dup(0);
    CHECK(free_fd >= 0 && close(free_fd) == 0);
    errno = 0;
    CHECK(ka_beat_nonce(one) == 0 && ka_beat_nonce(other) == 0 && errno == 0);
    CHECK(memcmp(one, untouched, sizeof one) != 0 && memcmp(one, other, sizeof one) != 0);
    CHECK(dup(0) == free_fd); /* no descriptor was left open */

    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    memset(one, 0, sizeof one);
    CHECK(ka_beat_nonce(one) == -1 && errno == EMFILE);
    /* The kernel runs the newest filter first. */
    refuse(SYS_getrandom, EPERM);
    CHECK(ka_beat_nonce(one) == -1 && errno == EPERM);
    CHECK(memcmp(one, untouched, sizeof one) == 0);
    return 0;
}
