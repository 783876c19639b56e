/*
 * allow: runs a program under a seccomp filter that allows only the system calls of the file CALLS. Another call ends
 * the program with SIGSYS. The program's children inherit the filter.
 */
#define _GNU_SOURCE
#include <err.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const unsigned calls[] = {
#include CALLS
};

int main(int argc, char **argv)
{
    size_t count = sizeof calls / sizeof *calls, length = 0;
    struct sock_filter *filter = calloc(2 * count + 2, sizeof *filter);
    if (argc < 2 || !filter)
        errx(2, "usage: allow PROGRAM [ARGUMENT]...");
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (size_t place = 0; place < count; place++) {
        filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[place], 0, 1);
        filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    struct sock_fprog program = { .len = (unsigned short)length, .filter = filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        err(2, "seccomp");
    execvp(argv[1], argv + 1);
    err(2, "%s", argv[1]);
}
