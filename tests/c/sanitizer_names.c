/*
 * sanitizer_names: memory functions of the thread sanitizer's runtime under new names. The compiler of libka calls
 * them, but an older clang on the same machine may not have them. Linked with a libka that is built with
 * -Zsanitizer=thread.
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
