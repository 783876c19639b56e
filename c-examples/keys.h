/* The keys of the heartbeat examples. A key file has a line for each client: its number, and its key in hexadecimal. */
#ifndef KEYS_H
#define KEYS_H

#include <stddef.h>
#include <stdint.h>

struct key {
    uint64_t client;
    size_t size;
    uint8_t bytes[64];
};

/* All keys of a file, sorted by client. */
struct keys {
    size_t count;
    struct key *key;
};

/* Reads a key file. If it is wrong, prints the reason and the line number, but never a key, and ends the program. */
struct keys read_keys(const char *path);

/* Returns the key of a client, or NULL. */
const struct key *find_key(const struct keys *keys, uint64_t client);

/* Wipes the keys and frees their memory. */
void forget_keys(struct keys *keys);

#endif
