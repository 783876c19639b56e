/*
 * memory_fails: a preloaded library that makes one allocation of a program fail. ALLOCATION is the number of the
 * allocation, counted over all threads. ALLOCATION_OF is the name of the process. After the failure, the file
 * ALLOCATION_FAILED exists.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static _Atomic long made;
static long failing = -1;

__attribute__((constructor)) static void load(void)
{
    const char *program = getenv("ALLOCATION_OF"), *number = getenv("ALLOCATION");

    if (program != NULL && number != NULL && strcmp(program, program_invocation_short_name) == 0)
        failing = made + atol(number);
}

static bool fails(void)
{
    if (++made != failing)
        return false;
    close(open(getenv("ALLOCATION_FAILED"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    return fails() ? NULL : __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails() ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **place, size_t alignment, size_t size)
{
    void *memory = fails() ? NULL : __libc_memalign(alignment, size);

    if (memory == NULL)
        return ENOMEM;
    *place = memory;
    return 0;
}
