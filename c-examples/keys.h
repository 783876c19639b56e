/* The keys of the heartbeat examples: a line for each client, its number and its key in hexadecimal. */
#ifndef KEYS_H
#define KEYS_H

#include <stddef.h>
#include <stdint.h>

struct key {
    uint64_t client;
    size_t size;
    uint8_t bytes[64];
};

/* All keys of a file, by client. */
struct keys {
    size_t count;
    struct key *key;
};

/* Reads them; says on stderr what is wrong, by its line and never with a key, and ends the program. */
struct keys read_keys(const char *path);

/* The key of a client, or NULL. */
const struct key *find_key(const struct keys *keys, uint64_t client);

/* Wipes them and gives their memory back. */
void forget_keys(struct keys *keys);

#endif
