/* Socket functions that the examples share. If a call in bind_to, port_of or split fails, they print
 * why and end the program. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <arpa/inet.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"

/* The size of the longest name that name_of writes, with its NUL. */
#define NAME_SIZE (INET6_ADDRSTRLEN + 8)

/* Returns a bound, non-blocking socket for both IPv6 and IPv4. If the machine has no IPv6, it is for IPv4 only. */
int bind_to(int port);

/* Returns the port that a socket is bound to. */
int port_of(int fd);

/* Writes an address as 192.0.2.1:5050 or [2001:db8::1]:5050. */
void name_of(const struct sockaddr_in6 *six, char *name, size_t size);

/* Splits HOST:PORT or [HOST]:PORT. Returns a copy of the host, for free. If the address has another form, prints
 * it and returns NULL. */
char *split(const char *address, int *port);

/* Returns the addresses of a host, for freeaddrinfo. If it finds none, returns NULL and sets *why to the reason. */
struct addrinfo *resolve(const char *host, int port, const char **why);

/* Connects to the first address that answers. Turns keepalive on before the handshake. Returns -1 and sets errno if it
 * fails. */
int connect_to(const struct addrinfo *addresses, const struct keepalive_options *options);

/* Describes how a connection ended, such as "left", from the errno of read(2) or write(2). 0 means that the peer has
 * closed the connection. */
const char *ending(int error);

#endif
