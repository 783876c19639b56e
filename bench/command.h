/* Functions for the benchmarks of the ka command: set a socket option, raise a limit, time a command. */
#ifndef COMMAND_H
#define COMMAND_H

#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rounds.h"

static inline void set(int fd, int level, int name, int value)
{
    if (setsockopt(fd, level, name, &value, sizeof value) != 0)
        err(EXIT_FAILURE, "setsockopt");
}

/* Raises the limit of open descriptors to the hard limit. */
static inline void raise_descriptor_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* Returns the time of a monotonic clock, in microseconds. */
static inline double microseconds(void)
{
    return now() / 1e3;
}

/* Runs a command without output. Preloads a library if there is one. Returns the time until the command has ended, in
 * microseconds. */
static inline double run(char *const command[], const char *preload)
{
    double start = microseconds();
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        if (preload)
            setenv("LD_PRELOAD", preload, 1);
        execvp(command[0], command);
        _exit(127);
    }
    int status;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        errx(EXIT_FAILURE, "%s %s failed", command[0], command[1] ? command[1] : "");
    return microseconds() - start;
}

#endif
