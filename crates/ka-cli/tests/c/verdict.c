/*
 * verdict LEVEL NAME VALUE...: for each three arguments, sets an option of a new listening socket, and prints the errno of
 * the call, or 0, and the value of the option before and after it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int value_of(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    if (getsockopt(fd, level, name, &value, &size) != 0)
        exit(2);
    return value;
}

int main(int argc, char **argv)
{
    for (int n = 1; n + 2 < argc; n += 3) {
        int level = atoi(argv[n]), name = atoi(argv[n + 1]), value = (int)strtol(argv[n + 2], NULL, 10);
        struct sockaddr_in any = { .sin_family = AF_INET };
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) != 0 || listen(fd, 1) != 0)
            return 1;
        int before = value_of(fd, level, name);
        int error = setsockopt(fd, level, name, &value, sizeof value) == 0 ? 0 : errno;
        printf("%d %d %d\n", error, before, value_of(fd, level, name));
        close(fd);
    }
    return 0;
}
