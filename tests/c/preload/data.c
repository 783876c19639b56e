/* data: makes a connection. Then it makes these calls between marks for strace: accept, sendto, recvmsg, sendmsg,
 * recvfrom, and accept on a unix socket. */
#include "probe.h"

static void mark(void)
{
    raw(SYS_close, -77, 0, 0, 0, 0, 0);
}

int main(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    char byte = 'x';
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
    int listener = listener_on(AF_INET, 0, &address, &size);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, size) == 0);
    mark();
    int server = accept(listener, NULL, NULL);
    mark();
    CHECK(sendto(client, "x", 1, 0, NULL, 0) == 1);
    mark();
    CHECK(recvmsg(server, &message, 0) == 1);
    mark();
    CHECK(sendmsg(server, &message, 0) == 1);
    mark();
    CHECK(recv(client, &byte, 1, 0) == 1);
    mark();
    return 0;
}
