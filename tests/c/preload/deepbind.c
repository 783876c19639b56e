/*
 * deepbind WHAT LIBRARY [FLAGS]: opens libraries and looks functions up while the program runs.
 */
#include "probe.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/prctl.h>

#ifndef RTLD_DEEPBIND
#define RTLD_DEEPBIND 0
#endif

static const char *const hooked[] = { "accept",  "accept4", "connect", "dlopen", "dlsym",      "listen", "prctl", "recvmmsg", "recvmsg",
                                      "sendmmsg", "sendmsg", "sendto",  "setsockopt", "socket", "syscall" };
#define HOOKED (sizeof hooked / sizeof *hooked)

static void *opened(const char *library, int flags)
{
    void *handle = dlopen(library, flags);
    if (!handle) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return handle;
}

/* Reads the mappings of a library and their permissions from /proc. */
static void mappings(const char *library, char *text, size_t size)
{
    static char maps[1 << 20];
    const char *name = strrchr(library, '/') + 1;
    size_t length = 0, used = 0;
    ssize_t got;
    int fd = open("/proc/self/maps", O_RDONLY);
    CHECK(fd >= 0);
    while ((got = read(fd, maps + length, sizeof maps - 1 - length)) > 0)
        length += (size_t)got;
    close(fd);
    maps[length] = 0;
    *text = 0;
    for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n"))
        if (strstr(line, name))
            used += (size_t)snprintf(text + used, size - used, "%.*s\n", (int)strcspn(line, "/"), line);
    CHECK(used > 0 && used < size);
}

/* Opens the library, and prints the options of its sockets. */
static void sockets(const char *library, int flags)
{
    static const char *const names[] = { "made", "by number", "listening", "connected", "accepted", "turned off" };
    int fds[6];
    int (*make)(int *), (*is_caller)(void);
    void *handle = opened(library, flags);
    *(void **)&make = dlsym(handle, "plugin_sockets");
    *(void **)&is_caller = dlsym(handle, "plugin_is_the_caller");
    CHECK(make(fds) == 0 && is_caller());
    for (int n = 0; n < 6; n++)
        printf("%s: %s\n", names[n], five(fds[n]));
}

/* Checks that each page of the library has the same permissions before and after a look-up in the library. */
static void permissions(const char *library, int flags)
{
    static char before[4096], after[4096];
    void *handle = opened(library, flags);
    mappings(library, before, sizeof before);
    CHECK(dlsym(handle, "plugin_socket") != NULL);
    mappings(library, after, sizeof after);
    puts(strcmp(before, after) == 0 ? "the same" : after);
}

/* Prints the options of the socket of the library's constructor before and after a look-up in the library. */
static void early(const char *library, int flags)
{
    void *handle = opened(library, flags);
    /* The constructor's socket has taken the lowest free number, so it is the one before this. */
    int fd = dup(0) - 1;
    printf("before: %s\n", five(fd));
    CHECK(*(int *)dlsym(handle, "early") == fd);
    printf("after: %s\n", five(fd));
}

/* Prints the type of the socket that the library gets when it requests a stream socket, twice. */
static void own(const char *library, int flags)
{
    int (*make)(void);
    void *handle = opened(library, flags);
    *(void **)&make = dlsym(handle, "plugin_socket");
    for (int n = 0; n < 2; n++) {
        int fd = make();
        printf("%s %s\n", kernel_get(fd, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM ? "own" : "not own", five(fd));
        *(void **)&make = dlsym(handle, "plugin_socket");
    }
}

/* Prints whether each look-up finds the shim's function, which is the program's own, or another. */
static void look_up(const char *library, int flags)
{
    static void *const linked[HOOKED] = { accept,  accept4, connect, dlopen, dlsym,      listen, (void *)prctl, recvmmsg, recvmsg,
                                          sendmmsg, sendmsg, sendto,  setsockopt, socket, syscall };
    void *(*from_plugin)(const char *) = NULL;
    void *libc = opened(library, RTLD_NOW);
    int fd, value = 7000;
    int (*set)(int, int, int, const void *, socklen_t);
    if (flags) {
        char *plugin = getenv("PLUGIN");
        CHECK(plugin);
        *(void **)&from_plugin = dlsym(opened(plugin, flags), "plugin_look_up");
    }
    for (size_t n = 0; n < HOOKED; n++)
        printf("%s: %d %d %d\n", hooked[n], dlsym(libc, hooked[n]) == linked[n],
               dlsym(RTLD_DEFAULT, hooked[n]) == linked[n],
               from_plugin ? from_plugin(hooked[n]) == linked[n] : 1);
    CHECK(dlsym(libc, "getsockopt") != NULL && dlsym(libc, "no_such_function") == NULL && dlerror() != NULL);
    *(void **)&set = dlsym(libc, "setsockopt");
    fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, sizeof value) == 0);
    printf("set: %s\n", five(fd));
}

/* Threads that open, use and close libraries at the same time. The library's name contains a digit per thread. */
static const char *common;

static void *often(void *number)
{
    char library[4096];
    int length = snprintf(library, sizeof library, "%s%d.so", common, (int)(intptr_t)number);
    CHECK(length > 0 && (size_t)length < sizeof library);
    for (int round = 0; round < 300; round++) {
        int (*make)(void), fd;
        void *handle = opened(library, (round % 2 ? RTLD_NOW : RTLD_LAZY) | RTLD_DEEPBIND);
        *(void **)&make = dlsym(handle, "plugin_socket");
        fd = make();
        if (strcmp(five(fd), "1 60 10 6 0") != 0) {
            fprintf(stderr, "round %d of thread %d: %s\n", round, (int)(intptr_t)number, five(fd));
            exit(1);
        }
        close(fd);
        CHECK(dlclose(handle) == 0);
    }
    return NULL;
}

/* While one thread opens the library, this thread looks a function up. */
static void *slow_handle;

static void *open_slowly(void *library)
{
    slow_handle = opened(library, RTLD_NOW | RTLD_DEEPBIND);
    return NULL;
}

static void while_opening(char *library)
{
    pthread_t opener;
    int ends[2], (*make)(void);
    char byte;
    CHECK(pipe(ends) == 0 && dup2(ends[1], OPENING) == OPENING);
    CHECK(pthread_create(&opener, NULL, open_slowly, library) == 0);
    CHECK(read(ends[0], &byte, 1) == 1);
    CHECK(dlsym(RTLD_DEFAULT, "puts") != NULL);
    CHECK(pthread_join(opener, NULL) == 0);
    *(void **)&make = dlsym(slow_handle, "plugin_socket");
    printf("%s\n", five(make()));
}

static void threads(const char *libraries)
{
    enum { THREADS = 4 };
    pthread_t all[THREADS];
    common = libraries;
    for (intptr_t n = 0; n < THREADS; n++)
        CHECK(pthread_create(&all[n], NULL, often, (void *)n) == 0);
    for (int n = 0; n < THREADS; n++)
        CHECK(pthread_join(all[n], NULL) == 0);
    puts("well");
}

int main(int count, char **arguments)
{
    const char *what;
    char *library;
    int flags = 0;
    CHECK(count >= 3);
    what = arguments[1], library = arguments[2];
    for (int n = 3; n < count; n++)
        flags |= strcmp(arguments[n], "lazy") == 0  ? RTLD_LAZY
                 : strcmp(arguments[n], "now") == 0 ? RTLD_NOW
                                                    : RTLD_DEEPBIND;
    if (strcmp(what, "sockets") == 0)
        sockets(library, flags);
    else if (strcmp(what, "permissions") == 0)
        permissions(library, flags);
    else if (strcmp(what, "early") == 0)
        early(library, flags);
    else if (strcmp(what, "own") == 0)
        own(library, flags);
    else if (strcmp(what, "look up") == 0)
        look_up(library, flags);
    else if (strcmp(what, "while opening") == 0)
        while_opening(library);
    else if (strcmp(what, "threads") == 0)
        threads(library);
    else
        CHECK(!"a known word");
    return 0;
}
