#define _GNU_SOURCE /* explicit_bzero, strchrnul */

#include "keys.h"

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The largest key file, in bytes. A larger file is probably not a key file, so it is rejected. */
#define LARGEST (64L << 20)

/* Reads the whole file as a string. stdio is not used, because it does not wipe its buffers. */
static char *read_file(const char *path, size_t *size)
{
    struct stat status;
    char *text;
    size_t end = 0;
    ssize_t more;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &status) != 0)
        err(EXIT_FAILURE, "cannot read the keys in %s", path);
    if (!S_ISREG(status.st_mode) || status.st_size > LARGEST)
        errx(EXIT_FAILURE, "%s is not a key file: it must be a regular file of at most 64 MiB", path);
    if ((status.st_mode & (S_IRWXO | S_IWGRP)) != 0)
        errx(EXIT_FAILURE, "%s has keys, and others may read or write it: chmod 600 it", path);
    text = malloc((size_t)status.st_size + 1);
    if (text == NULL)
        err(EXIT_FAILURE, "cannot read the keys in %s", path);
    while (end < (size_t)status.st_size && (more = read(fd, text + end, (size_t)status.st_size - end)) != 0) {
        if (more < 0 && errno != EINTR)
            err(EXIT_FAILURE, "cannot read the keys in %s", path);
        end += more > 0 ? (size_t)more : 0;
    }
    close(fd);
    text[end] = '\0';
    *size = end;
    return text;
}

static int digit(char letter)
{
    if (letter >= '0' && letter <= '9')
        return letter - '0';
    if (letter >= 'a' && letter <= 'f')
        return letter - 'a' + 10;
    if (letter >= 'A' && letter <= 'F')
        return letter - 'A' + 10;
    return -1;
}

/* Reads a line such as "7 0a1b...". If the line is wrong, returns the reason. Otherwise returns NULL. */
static const char *read_key(const char *line, struct key *key)
{
    char *end;

    if (line[0] < '0' || line[0] > '9')
        return "does not begin with a client's number";
    errno = 0;
    key->client = strtoull(line, &end, 10);
    if (errno != 0 || *end != ' ')
        return "must have a client's number below 2^64, a blank and a key";
    for (line = end + 1, key->size = 0; *line != '\0'; line += 2, key->size++) {
        int high = digit(line[0]), low = high < 0 ? -1 : digit(line[1]);
        if (low < 0)
            return "has a key that is not in hexadecimal";
        if (key->size == sizeof key->bytes)
            return "has a key of more than 64 bytes";
        key->bytes[key->size] = (uint8_t)(16 * high + low);
    }
    return key->size < 16 ? "has a key of fewer than 16 bytes" : NULL;
}

static int by_client(const void *a, const void *b)
{
    uint64_t one = ((const struct key *)a)->client, other = ((const struct key *)b)->client;
    return (one > other) - (one < other);
}

struct keys read_keys(const char *path)
{
    struct keys keys = { 0, NULL };
    size_t size, lines = 1;
    char *text = read_file(path, &size);
    char *line = text, *end;

    for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    keys.key = calloc(lines, sizeof *keys.key);
    if (keys.key == NULL)
        err(EXIT_FAILURE, "cannot read the keys in %s", path);
    for (size_t number = 1; number <= lines; number++, line = end + 1) {
        const char *wrong;
        end = strchrnul(line, '\n');
        *end = '\0';
        if (*line == '\0' || *line == '#')
            continue;
        wrong = read_key(line, &keys.key[keys.count]);
        if (wrong != NULL)
            errx(EXIT_FAILURE, "%s: line %zu %s", path, number, wrong);
        keys.count++;
    }
    explicit_bzero(text, size);
    free(text);
    qsort(keys.key, keys.count, sizeof *keys.key, by_client);
    for (size_t i = 1; i < keys.count; i++)
        if (keys.key[i].client == keys.key[i - 1].client)
            errx(EXIT_FAILURE, "%s: client %llu has two keys", path, (unsigned long long)keys.key[i].client);
    if (keys.count == 0)
        errx(EXIT_FAILURE, "%s has no key", path);
    return keys;
}

const struct key *find_key(const struct keys *keys, uint64_t client)
{
    struct key wanted = { .client = client };
    return bsearch(&wanted, keys->key, keys->count, sizeof *keys->key, by_client);
}

void forget_keys(struct keys *keys)
{
    explicit_bzero(keys->key, keys->count * sizeof *keys->key);
    free(keys->key);
    *keys = (struct keys){ 0, NULL };
}
