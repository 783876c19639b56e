/*
 * minimal_client HOST PORT: prints what a server sends, and how the connection ended.
 *
 * Keepalive finds a server that has died or is cut off: read(2) then fails.
 */
#include <errno.h>
#include <ka.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char *argv[])
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *address;
    char buffer[4096];
    ssize_t size;
    int fd;

    if (argc != 3 || getaddrinfo(argv[1], argv[2], &hints, &address) != 0)
        return fprintf(stderr, "usage: minimal_client HOST PORT\n"), 2;
    fd = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
    if (fd < 0 || ka_enable(fd, 60, 10, 5) != 0 || connect(fd, address->ai_addr, address->ai_addrlen) != 0)
        return perror(argv[1]), 2;
    while ((size = read(fd, buffer, sizeof buffer)) > 0)
        fwrite(buffer, 1, (size_t)size, stdout);
    if (size == 0)
        return 0;                                           /* the peer has closed the connection */
    if (errno == ETIMEDOUT)
        fprintf(stderr, "the peer is dead, or cut off\n");  /* five probes had no answer */
    else if (errno == ECONNRESET)
        fprintf(stderr, "the peer has restarted\n");        /* or it has reset the connection itself */
    else
        perror("read");                                     /* EHOSTUNREACH: a router cannot reach the peer */
    return 1;
}
