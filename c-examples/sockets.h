/* Sockets as the examples need them. What fails says why on stderr, and ends the program unless it says otherwise. */
#ifndef SOCKETS_H
#define SOCKETS_H

#include <arpa/inet.h>
#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>

#include "options.h"

/* Room for what name_of writes. */
#define NAME_SIZE (INET6_ADDRSTRLEN + 8)

/* A bound socket for IPv6 and IPv4 at once, or for IPv4 where there is no IPv6. It does not block. */
int bind_to(int port);

/* The port that a socket is bound to. */
int port_of(int fd);

/* 192.0.2.1:5050 or [2001:db8::1]:5050. */
void name_of(const struct sockaddr_in6 *six, char *name, size_t size);

/* Splits HOST:PORT or [HOST]:PORT in place; false where it is neither. */
bool split(char *address, char **host, int *port);

/* The addresses of a host; NULL where it is not found, and *why says why. For freeaddrinfo. */
struct addrinfo *resolve(const char *host, int port, const char **why);

/* Connects to the first of the addresses that answers, with keepalive on before the handshake; -1 and errno. */
int connect_to(const struct addrinfo *addresses, const struct keepalive_options *options);

/* Says how a connection ended, from the errno of read(2) or write(2); 0 is an end in order. */
const char *ending(int error);

#endif
