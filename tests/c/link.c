/* The smallest program that uses libka: enables keepalive and reads it back with the kernel's own call. */
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -1;
}

int main(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || ka_enable(fd, 60, 10, 5) != 0) {
        perror("ka_enable");
        return 1;
    }
    printf("%s %s %d %d %d\n", ka_version(), get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1 ? "on" : "off",
           get(fd, IPPROTO_TCP, TCP_KEEPIDLE), get(fd, IPPROTO_TCP, TCP_KEEPINTVL),
           get(fd, IPPROTO_TCP, TCP_KEEPCNT));
    return ka_version_number() == KA_VERSION_NUMBER ? 0 : 1;
}
