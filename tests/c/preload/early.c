/* A library whose constructor runs before the shim's. */
#include <sys/socket.h>
#include <unistd.h>

int early_socket = -1;

__attribute__((constructor)) static void early(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int other = socket(AF_INET, SOCK_STREAM, 0);
    /* Calls that fail, and a call by syscall(2). */
    connect(other, 0, 0);
    listen(other, 1);
    accept(-1, 0, 0);
    setsockopt(other, SOL_SOCKET, SO_KEEPALIVE, 0, 0);
    early_socket = dup(fd);
    close(fd);
    close(other);
}
