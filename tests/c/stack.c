/*
 * stack: measures how many bytes of stack each function of libka uses. Each call runs on its own stack, which is filled
 * with a pattern before. The deepest byte that has changed afterwards shows the usage. Prints a line for each call: the
 * function, and the bytes below the stack pointer of its caller.
 */
#include <ka.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <ucontext.h>

#include "check.h"

enum { STACK = 1 << 16 };

static _Alignas(64) unsigned char stack[STACK];
static ucontext_t here, there;

static int off, on, mptcp, udp, connection, ended, result;
static struct ka_config config = KA_CONFIG_INIT, query = KA_CONFIG_INIT, bad = KA_CONFIG_INIT;
static struct ka_status status = KA_STATUS_INIT;
static struct ka_beat beat = { 7, 1 }, verified;
static uint8_t key[200], nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE];
static uint64_t typical, worst, client;
static char text[256];
static int fds[4], value;
static struct ka_reaper *reaper;

__attribute__((noinline)) static int nothing(void)
{
    __asm__ volatile("");
    return 0;
}

static void baseline(void)
{
    result = nothing();
}

/* Returns the stack usage of a call, in bytes from the top. */
static size_t deepest(void (*function)(void), int paint)
{
    size_t lowest = 0;

    memset(stack, paint, sizeof stack);
    CHECK(getcontext(&there) == 0);
    there.uc_stack.ss_sp = stack;
    there.uc_stack.ss_size = sizeof stack;
    there.uc_link = &here;
    makecontext(&there, function, 0);
    CHECK(swapcontext(&here, &there) == 0);
    while (lowest < sizeof stack && stack[lowest] == (unsigned char)paint)
        lowest++;
    return sizeof stack - lowest;
}

static size_t uses(void (*function)(void))
{
    size_t one = deepest(function, 0x5a), other = deepest(function, 0xa5);
    return one > other ? one : other;
}

/* A call, and the function that it is reported for. */
#define CALLS(_)                                                                  \
    _(ka_enable, enable_off, (ka_disable(off), ka_enable(off, 60, 10, 5)))        \
    _(ka_enable, enable_on, ka_enable(on, 60, 10 + ++value % 3, 5))              \
    _(ka_enable, enable_mptcp, ka_enable(mptcp, 60, 10, 5))                       \
    _(ka_enable, enable_udp, ka_enable(udp, 60, 10, 5))                           \
    _(ka_enable, enable_closed, ka_enable(-1, 60, 10, 5))                         \
    _(ka_enable_lenient, lenient_on, ka_enable_lenient(on, 60, 10 + ++value % 3, 500)) \
    _(ka_enable_lenient, lenient_udp, ka_enable_lenient(udp, 60, 10, 5))          \
    _(ka_disable, disable, ka_disable(off))                                       \
    _(ka_disable, disable_udp, ka_disable(udp))                                   \
    _(ka_is_enabled, is_enabled, ka_is_enabled(on))                               \
    _(ka_get_idle, get_idle, ka_get_idle(on, &value))                             \
    _(ka_get_intvl, get_intvl, ka_get_intvl(on, &value))                          \
    _(ka_get_cnt, get_cnt, ka_get_cnt(udp, &value))                               \
    _(ka_get_user_timeout, get_user_timeout, ka_get_user_timeout(mptcp, &value))  \
    _(ka_set_user_timeout, set_user_timeout, ka_set_user_timeout(on, 1000))       \
    _(ka_set_user_timeout, set_auto, ka_set_user_timeout(off, KA_AUTO))           \
    _(ka_set_user_timeout, set_mptcp, ka_set_user_timeout(mptcp, KA_AUTO))        \
    _(ka_get_rto_max, get_rto_max, ka_get_rto_max(on, &value))                    \
    _(ka_get_rto_max, get_rto_max_mptcp, ka_get_rto_max(mptcp, &value))           \
    _(ka_set_rto_max, set_rto_max, ka_set_rto_max(on, 1000 + ++value % 3 * 1000)) \
    _(ka_set_rto_max, set_rto_max_auto, ka_set_rto_max(off, KA_AUTO))             \
    _(ka_set_rto_max, set_rto_max_mptcp, ka_set_rto_max(mptcp, KA_AUTO))          \
    _(ka_apply, apply_off, (ka_disable(off), ka_apply(off, &config)))             \
    _(ka_apply, apply_on, ka_apply(on, &config))                                  \
    _(ka_apply, apply_bad, ka_apply(on, &bad))                                    \
    _(ka_apply, apply_mptcp, ka_apply(mptcp, &config))                            \
    _(ka_query, query_on, ka_query(on, &query))                                   \
    _(ka_query, query_mptcp, ka_query(mptcp, &query))                             \
    _(ka_query, query_udp, ka_query(udp, &query))                                 \
    _(ka_defaults, defaults, ka_defaults(&query))                                 \
    _(ka_parse, parse_named, ka_parse(" on, idle=5m,intvl=30s,\n cnt=3,user_timeout=auto", &query)) \
    _(ka_parse, parse_three, ka_parse("1h:60000ms:5", &query))                    \
    _(ka_parse, parse_bad, ka_parse("idle=1500ms", &query))                       \
    _(ka_format, format, ka_format(&config, text, sizeof text))                   \
    _(ka_explain, explain, ka_explain("idle=1500ms", text, sizeof text))          \
    _(ka_explain, explain_escapes, ka_explain("\x1b\x1b\xff", text, sizeof text)) \
    _(ka_explain, explain_range, ka_explain("user_timeout=99d", text, sizeof text)) \
    _(ka_data_time, data_time, ka_data_time(&config, &typical, &worst))           \
    _(ka_plan_detect, plan_detect, ka_plan_detect(30000, &query))                 \
    _(ka_plan_path, plan_path, ka_plan_path(350, &query))                         \
    _(ka_plan_preset, plan_preset, ka_plan_preset("rfc5382", &query))             \
    _(ka_detect_time, detect_time, ka_detect_time(&config, &typical, &worst))     \
    _(ka_get_status, get_status, ka_get_status(on, &status))                      \
    _(ka_get_status, get_status_udp, ka_get_status(udp, &status))                 \
    _(ka_probe, probe_looks, ka_probe(on, 0))                                     \
    _(ka_probe, probe_sends, (usleep(1100000), ka_probe(connection, 500)))        \
    _(ka_probe, probe_reset, ka_probe(ended, 500))                                \
    _(ka_reaper_new, reaper_new, (reaper = ka_reaper_new(1000)) == NULL)          \
    _(ka_reaper_touch, reaper_touch, ka_reaper_touch(reaper, 7, 0))               \
    _(ka_reaper_next, reaper_next, ka_reaper_next(reaper, 0))                     \
    _(ka_reaper_len, reaper_len, (int)ka_reaper_len(reaper))                      \
    _(ka_reaper_forget, reaper_forget, ka_reaper_forget(reaper, 7))               \
    _(ka_reaper_expired, reaper_expired, ka_reaper_expired(reaper, 5000, fds, 4)) \
    _(ka_reaper_free, reaper_free, (ka_reaper_free(reaper), reaper = NULL, 0))    \
    _(ka_beat_nonce, beat_nonce, ka_beat_nonce(nonce))                            \
    _(ka_beat_sign, beat_sign, ka_beat_sign(key, 32, nonce, &beat, frame))        \
    _(ka_beat_sign, beat_sign_long, ka_beat_sign(key, sizeof key, nonce, &beat, frame)) \
    _(ka_beat_client, beat_client, ka_beat_client(frame, &client))                \
    _(ka_beat_verify, beat_verify, ka_beat_verify(key, sizeof key, nonce, 0, frame, &verified)) \
    _(ka_version, version, ka_version() == NULL)                                  \
    _(ka_version_number, version_number, ka_version_number() == 0)

#define FUNCTION(name, run, expression) \
    static void run(void)               \
    {                                   \
        result = (expression);          \
    }
CALLS(FUNCTION)

/* Connects a socket to a listener on loopback. Returns the accepted socket. */
static int connect_to_own(int fd)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, size) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &size) == 0);
    CHECK(connect(fd, (struct sockaddr *)&address, size) == 0);
    int accepted = accept(listener, NULL, NULL);
    CHECK(accepted >= 0 && close(listener) == 0);
    return accepted;
}

int main(void)
{
    off = socket(AF_INET, SOCK_STREAM, 0);
    on = socket(AF_INET, SOCK_STREAM, 0);
    mptcp = socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP);
    udp = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(off >= 0 && on >= 0 && udp >= 0 && ka_enable(on, 30, 3, 2) == 0);
    CHECK(ka_parse("60,10,5", &config) == 0);
    config.user_timeout = KA_AUTO;
    config.rto_max = KA_AUTO;
    bad.idle = -7;
    connection = socket(AF_INET, SOCK_STREAM, 0);
    ended = socket(AF_INET, SOCK_STREAM, 0);
    connect_to_own(connection);
    int peer = connect_to_own(ended);
    struct linger reset = { 1, 0 };
    CHECK(setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset) == 0 && close(peer) == 0);
    /* Make each call once on the stack of main, which binds functions of the C library. */
#define FIRST(name, run, expression) run();
    CALLS(FIRST)
    reaper = ka_reaper_new(1000);
    size_t caller = uses(baseline) - sizeof(void *);
#define REPORT(name, run, expression) printf("%s %zu\n", #name, uses(run) - caller);
    CALLS(REPORT)
    return 0;
}
