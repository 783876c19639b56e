/*
 * fault OPTIONS LOG COMMAND...: runs a command, and makes one of its system calls fail, with ptrace(2).
 *
 *   -f TASK:CALL:NTH:ERRNO:THEN   the NTH call with number CALL of this task fails with ERRNO. If THEN is not 0, all
 *                            later calls with this number fail with THEN. Without -f no call fails, and LOG gets a
 *                            line for each call that could: "call TASK NUMBER NTH"
 *   -x NAME                  counts only calls of processes that run a program with this name
 *   -o NAME                  counts only calls from files whose name begins with NAME. Default: all but the loader
 *   -m                       counts only calls between marks. A mark is close(-77)
 *   -s FD                    at each mark, writes the keepalive settings of this descriptor to LOG, as the kernel
 *                            reports them to this process: "socket ON IDLE INTVL CNT USER_TIMEOUT"
 *   -t SECONDS               kills all processes after this time, and writes "hang TASK NAME" for each to LOG.
 *                            Default: 20
 *
 * If FAULT_KILL is set, this process is killed before the call is made. It is a PID, or a task such as "@0.1". If
 * FAULT_KILLED is set, the call waits until this file exists. If ERRNO is 0, the call is made.
 *
 * A task is named after its parent. 0 is the command, 0.0 its first child (fork, clone), 0.0.1 the second child of
 * that. PIDs differ between runs, but these names are the same, even if tasks run in parallel.
 *
 * LOG gets "injected" after the fault. The program ends when all processes have ended. Its status is that of the
 * command, or 128 + n if signal n has ended the command.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TASKS = 1024, CALLS = 512, RANGES = 64 };

struct range {
    unsigned long start, end;
    bool counts;
};

struct task {
    pid_t tid;
    char path[128];
    int made;
    bool runs, stopped, counts, dead;
    /* The result of the current call instead of its own, if not 0. */
    long error;
    unsigned long argument;
    unsigned short nth[CALLS];
    struct range ranges[RANGES];
    int known;
};

static struct task tasks[TASKS];
static int count;
static FILE *out;
static const char *program, *object, *fault_task;
static long fault_call = -1, fault_nth, fault_errno, fault_then;
static bool by_marks, in_marks;
static int snapshot = -1;
static volatile sig_atomic_t late;

static void hurry(int number)
{
    (void)number;
    late = 1;
}

static struct task *find(pid_t tid)
{
    for (int n = count - 1; n >= 0; n--)
        if (tasks[n].tid == tid && !tasks[n].dead)
            return &tasks[n];
    if (count == TASKS)
        errx(98, "too many tasks");
    tasks[count].tid = tid;
    return &tasks[count++];
}

/* Checks whether the task runs the program whose calls count. */
static void look_at_program(struct task *task)
{
    char link[64], path[PATH_MAX];
    ssize_t size;

    snprintf(link, sizeof link, "/proc/%d/exe", task->tid);
    size = readlink(link, path, sizeof path - 1);
    path[size > 0 ? size : 0] = '\0';
    task->counts = program == NULL || strcmp(basename(path), program) == 0;
    task->known = 0;
}

/* Returns whether a call from this instruction counts. */
static bool counts(struct task *task, unsigned long at)
{
    char name[64], line[PATH_MAX + 128], path[PATH_MAX], mode[8];
    FILE *maps;

    for (int n = 0; n < task->known; n++)
        if (at - task->ranges[n].start < task->ranges[n].end - task->ranges[n].start)
            return task->ranges[n].counts;
    task->known = 0;
    snprintf(name, sizeof name, "/proc/%d/maps", task->tid);
    maps = fopen(name, "re");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL && task->known < RANGES) {
        struct range *range = &task->ranges[task->known];
        path[0] = '\0';
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %4095s", &range->start, &range->end, mode, path) < 3 || mode[2] != 'x')
            continue;
        const char *base = basename(path);
        range->counts = object != NULL ? strncmp(base, object, strlen(object)) == 0
                                       : strncmp(base, "ld-", 3) != 0 && strcmp(base, "[vdso]") != 0;
        task->known++;
    }
    if (maps != NULL)
        fclose(maps);
    for (int n = 0; n < task->known; n++)
        if (at - task->ranges[n].start < task->ranges[n].end - task->ranges[n].start)
            return task->ranges[n].counts;
    return false;
}

/* Logs the settings of the program's socket. This process reads them, so the program cannot change the result. */
static void tell(struct task *task)
{
    static const int options[][2] = { { SOL_SOCKET, SO_KEEPALIVE },
                                      { IPPROTO_TCP, TCP_KEEPIDLE },
                                      { IPPROTO_TCP, TCP_KEEPINTVL },
                                      { IPPROTO_TCP, TCP_KEEPCNT },
                                      { IPPROTO_TCP, TCP_USER_TIMEOUT },
                                      { IPPROTO_TCP, 44 } }; /* TCP_RTO_MAX_MS */
    int pidfd = (int)syscall(SYS_pidfd_open, task->tid, 0);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, snapshot, 0);

    fprintf(out, "socket");
    for (size_t n = 0; n < sizeof options / sizeof *options; n++) {
        int value = -1;
        socklen_t size = sizeof value;
        getsockopt(fd, options[n][0], options[n][1], &value, &size);
        fprintf(out, " %d", value);
    }
    fprintf(out, "\n");
    close(fd);
    close(pidfd);
}

static struct user_regs_struct registers(pid_t tid)
{
    struct user_regs_struct registers = { 0 };
    struct iovec io = { &registers, sizeof registers };

    ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &io);
    return registers;
}

static void set_registers(pid_t tid, struct user_regs_struct registers)
{
    struct iovec io = { &registers, sizeof registers };

    ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &io);
}

/* Makes the kernel execute another call instead: none, or brk(0), because a failed brk returns the current break. */
static void divert(struct task *task, long number)
{
    struct user_regs_struct now = registers(task->tid);
#if defined(__x86_64__)
    task->argument = now.rdi;
    if (number == SYS_brk)
        now.rdi = 0;
    else
        now.orig_rax = (unsigned long long)-1;
    set_registers(task->tid, now);
#elif defined(__aarch64__)
    int none = -1;
    struct iovec io = { &none, sizeof none };
    if (number == SYS_brk) {
        now.regs[0] = 0;
        set_registers(task->tid, now);
    } else {
        ptrace(PTRACE_SETREGSET, task->tid, NT_ARM_SYSTEM_CALL, &io);
    }
#endif
}

static void answer(struct task *task, long number, long result)
{
    struct user_regs_struct now = registers(task->tid);
#if defined(__x86_64__)
    /* The caller relies on unchanged argument registers. */
    if (number == SYS_brk)
        now.rdi = task->argument;
    else
        now.rax = (unsigned long long)result;
#elif defined(__aarch64__)
    if (number != SYS_brk)
        now.regs[0] = (unsigned long long)result;
#endif
    set_registers(task->tid, now);
}

/* Kills the process in FAULT_KILL, and waits for the file FAULT_KILLED. */
static void kill_another(void)
{
    const char *victim = getenv("FAULT_KILL"), *known = getenv("FAULT_KILLED");

    for (int n = 0; victim != NULL && victim[0] == '@' && n < count; n++)
        if (!tasks[n].dead && strcmp(tasks[n].path, victim + 1) == 0)
            kill(tasks[n].tid, SIGKILL);
    if (victim != NULL && victim[0] != '@') {
        int pidfd = (int)syscall(SYS_pidfd_open, atoi(victim), 0);
        struct pollfd end = { .fd = pidfd, .events = POLLIN };
        kill(atoi(victim), SIGKILL);
        poll(&end, 1, 5000);
        close(pidfd);
    }
    for (int n = 0; known != NULL && n < 5000 && access(known, F_OK) != 0; n++)
        usleep(1000);
}

static void enter(struct task *task, struct __ptrace_syscall_info *info)
{
    long number = (long)info->entry.nr;

    if (number == SYS_close && (int)info->entry.args[0] == -77 && task->counts) {
        in_marks = !in_marks;
        if (snapshot >= 0)
            tell(task);
        return;
    }
    if (!task->counts || (by_marks && !in_marks) || number < 0 || number >= CALLS ||
        !counts(task, info->instruction_pointer))
        return;
    int nth = ++task->nth[number];
    if (fault_call < 0) {
        fprintf(out, "call %s %ld %d\n", task->path, number, nth);
    } else if (number == fault_call && strcmp(task->path, fault_task) == 0 &&
               (nth == fault_nth || (nth > fault_nth && fault_then != 0))) {
        if (nth == fault_nth) {
            fprintf(out, "injected\n");
            kill_another();
        }
        task->error = nth == fault_nth ? fault_errno : fault_then;
        /* close(2) closes the descriptor even if it fails, so the call is made. */
        if (number != SYS_close && task->error != 0)
            divert(task, number);
    }
}

static void resume(struct task *task, int signal)
{
    ptrace(PTRACE_SYSCALL, task->tid, 0, signal);
}

/* Starts a task that has stopped for the first time, after its parent is known. */
static void start(struct task *task)
{
    if (task->runs && task->stopped) {
        task->stopped = false;
        resume(task, 0);
    }
}

static void attend(struct task *task, int status)
{
    int signal = WSTOPSIG(status), event = status >> 16;
    struct __ptrace_syscall_info info;
    unsigned long message = 0;

    if (!task->runs) {
        task->stopped = true;
        return;
    }
    if (signal == (SIGTRAP | 0x80)) {
        ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, sizeof info, &info);
        if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
            enter(task, &info);
        } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && task->error != 0) {
            answer(task, fault_call, -task->error);
            task->error = 0;
        }
        resume(task, 0);
    } else if (event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK || event == PTRACE_EVENT_CLONE) {
        ptrace(PTRACE_GETEVENTMSG, task->tid, 0, &message);
        struct task *child = find((pid_t)message);
        snprintf(child->path, sizeof child->path, "%.120s.%d", task->path, task->made++);
        child->runs = true;
        child->counts = task->counts;
        start(child);
        resume(task, 0);
    } else if (event == PTRACE_EVENT_EXEC) {
        look_at_program(task);
        resume(task, 0);
    } else if (event == PTRACE_EVENT_STOP) {
        if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU)
            ptrace(PTRACE_LISTEN, task->tid, 0, 0);
        else
            resume(task, 0);
    } else {
        resume(task, event == 0 ? signal : 0);
    }
}

/* Kills and logs the tasks that have not ended in time. */
static void end_all(void)
{
    for (int n = 0; n < count; n++) {
        char name[64], comm[32] = "?\n";
        FILE *file;
        if (tasks[n].dead)
            continue;
        snprintf(name, sizeof name, "/proc/%d/comm", tasks[n].tid);
        file = fopen(name, "re");
        if (file != NULL && fgets(comm, sizeof comm, file) == NULL)
            strcpy(comm, "?\n");
        if (file != NULL)
            fclose(file);
        fprintf(out, "hang %s %s", tasks[n].path, comm);
        kill(tasks[n].tid, SIGKILL);
    }
}

int main(int argc, char **argv)
{
    const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
                         PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
    unsigned seconds = 20;
    int option, status, result = 98, go[2];
    pid_t root;

    while ((option = getopt(argc, argv, "+f:x:o:ms:t:")) != -1) {
        switch (option) {
        case 'f':
            fault_task = strtok(optarg, ":");
            fault_call = atol(strtok(NULL, ":"));
            fault_nth = atol(strtok(NULL, ":"));
            fault_errno = atol(strtok(NULL, ":"));
            fault_then = atol(strtok(NULL, ":"));
            break;
        case 'x':
            program = optarg;
            break;
        case 'o':
            object = optarg;
            break;
        case 'm':
            by_marks = true;
            break;
        case 's':
            snapshot = atoi(optarg);
            break;
        case 't':
            seconds = (unsigned)atoi(optarg);
            break;
        default:
            return 98;
        }
    }
    if (argc - optind < 2)
        errx(98, "fault OPTIONS LOG COMMAND...");
    out = fopen(argv[optind], "we");
    if (out == NULL || pipe2(go, O_CLOEXEC) != 0)
        err(98, "%s", argv[optind]);
    setvbuf(out, NULL, _IOFBF, 1 << 16);
    root = fork();
    if (root == 0) {
        char byte;
        close(go[1]);
        if (read(go[0], &byte, 1) == 1)
            execvp(argv[optind + 1], argv + optind + 1);
        err(97, "%s", argv[optind + 1]);
    }
    if (ptrace(PTRACE_SEIZE, root, 0, options) != 0)
        err(98, "ptrace");
    struct task *first = find(root);
    strcpy(first->path, "0");
    first->runs = true;
    if (write(go[1], "", 1) != 1)
        err(98, "pipe");
    close(go[0]);
    close(go[1]);
    /* The command runs, and was never stopped. After its first stop, it stops at each call. */
    ptrace(PTRACE_INTERRUPT, root, 0, 0);
    struct sigaction alarmed = { .sa_handler = hurry };
    sigaction(SIGALRM, &alarmed, NULL);
    alarm(seconds);
    for (;;) {
        pid_t tid = waitpid(-1, &status, __WALL);
        if (late) {
            late = 0;
            end_all();
            continue;
        }
        if (tid < 0) {
            if (errno == EINTR)
                continue;
            break;
        }
        struct task *task = find(tid);
        if (WIFSTOPPED(status)) {
            attend(task, status);
        } else {
            task->dead = true;
            if (tid == root)
                result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    fclose(out);
    return result;
}
