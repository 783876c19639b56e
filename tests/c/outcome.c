/*
 * outcome on|off CALL: makes one call of libka between two marks, so that fault.c can make its system calls fail. The
 * socket is descriptor 3, with keepalive on or off. Prints the result, errno, and the output of the call.
 *
 * It exits with 1 if a failed call has written its output, a successful call has changed errno, or a descriptor was
 * left open.
 */
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "check.h"

enum { UNTOUCHED = 0x5a5a5a5a, ERRNO = 9999 };

static void mark(void)
{
    close(-77);
}

static void set(int fd, int level, int name, int value)
{
    CHECK(setsockopt(fd, level, name, &value, sizeof value) == 0);
}

/* Connects the socket to a listener of this program, and leaves it idle long enough for a probe. */
static void connect_and_idle(int fd)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(connect(fd, (struct sockaddr *)&address, size) == 0);
    usleep(1100000);
}

int main(int argc, char **argv)
{
    struct ka_config config = KA_CONFIG_INIT, query = KA_CONFIG_INIT;
    struct ka_status status = KA_STATUS_INIT, no_status = KA_STATUS_INIT;
    unsigned char nonce[KA_BEAT_NONCE_SIZE];
    uint64_t typical = UNTOUCHED, worst = UNTOUCHED;
    int value = UNTOUCHED, result = 0;

    CHECK(argc == 3);
    const char *call = argv[2];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd == 3);
    set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 60000);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 6);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 60);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 600);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, strcmp(argv[1], "on") == 0);
    /* TCP_RTO_MAX_MS, which Linux 6.15 and later have. */
    setsockopt(fd, IPPROTO_TCP, 44, &(int){ 60000 }, sizeof(int));
    memset(nonce, 0x5a, sizeof nonce);
    if (strcmp(call, "probe") == 0)
        connect_and_idle(fd);
    int free_before = dup(0);
    CHECK(close(free_before) == 0);

#define IS(name) (strcmp(call, name) == 0)
    mark();
    errno = ERRNO;
    if (IS("enable"))
        result = ka_enable(fd, 30, 3, 2);
    else if (IS("enable_lenient"))
        result = ka_enable_lenient(fd, 30, 3, 2);
    else if (IS("disable"))
        result = ka_disable(fd);
    else if (IS("is_enabled"))
        result = ka_is_enabled(fd);
    else if (IS("get_idle"))
        result = ka_get_idle(fd, &value);
    else if (IS("get_intvl"))
        result = ka_get_intvl(fd, &value);
    else if (IS("get_cnt"))
        result = ka_get_cnt(fd, &value);
    else if (IS("get_user_timeout"))
        result = ka_get_user_timeout(fd, &value);
    else if (IS("set_user_timeout"))
        result = ka_set_user_timeout(fd, 7000);
    else if (IS("set_user_timeout_auto"))
        result = ka_set_user_timeout(fd, KA_AUTO);
    else if (IS("get_rto_max"))
        result = ka_get_rto_max(fd, &value);
    else if (IS("set_rto_max"))
        result = ka_set_rto_max(fd, 7000);
    else if (IS("set_rto_max_auto"))
        result = ka_set_rto_max(fd, KA_AUTO);
    else if (IS("data_time"))
        result = ka_data_time(&query, &typical, &worst);
    else if (IS("query"))
        result = ka_query(fd, &query);
    else if (IS("defaults"))
        result = ka_defaults(&query);
    else if (IS("get_status"))
        result = ka_get_status(fd, &status);
    else if (IS("probe"))
        result = ka_probe(fd, 2000);
    else if (IS("beat_nonce"))
        result = ka_beat_nonce(nonce);
    else {
        mark();
        CHECK(ka_parse(call, &config) == 0);
        mark();
        errno = ERRNO;
        result = ka_apply(fd, &config);
    }
    int error = errno;
    mark();

    if (result < 0) {
        static const struct ka_config fresh = KA_CONFIG_INIT;
        unsigned char same[sizeof nonce];
        memset(same, 0x5a, sizeof same);
        CHECK(result == -1 && error != ERRNO && value == UNTOUCHED);
        CHECK(typical == UNTOUCHED && worst == UNTOUCHED);
        CHECK(memcmp(&query, &fresh, sizeof query) == 0 && memcmp(&status, &no_status, sizeof status) == 0);
        /* A failed ka_beat_nonce may have written a part of the nonce. That part is no secret, and is not used. */
        CHECK(IS("beat_nonce") || memcmp(nonce, same, sizeof same) == 0);
    } else {
        CHECK(error == ERRNO);
    }
    int free_now = dup(0);
    CHECK(free_now == free_before);
    printf("%d %d\n", result, result < 0 ? error : 0);
    printf("%d %d %d %d %d %d %d %llu\n", value, query.keepalive, query.idle, query.intvl, query.cnt, query.user_timeout,
           query.rto_max, (unsigned long long)typical);
    return 0;
}
