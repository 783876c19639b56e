/*
 * sanitizer_names: what the compiler of libka calls in the thread sanitizer's runtime, and clang's of the same machine may
 * not have yet: memory functions under names of their own. Linked with a libka that is built with -Zsanitizer=thread.
 */
#include <string.h>

void *__tsan_memcpy(void *to, const void *from, size_t size)
{
    return memcpy(to, from, size);
}

void *__tsan_memmove(void *to, const void *from, size_t size)
{
    return memmove(to, from, size);
}

void *__tsan_memset(void *to, int byte, size_t size)
{
    return memset(to, byte, size);
}
