/*
 * older: a program of libka 0.1.0. The test compiles it with the header of a release, links it with the library of that
 * release, and runs it with the current library. It uses only the API of 0.1.0, including all structs, and reads the
 * results from the kernel. Its structs have the size of that release, so it also checks that the library leaves the
 * memory after them alone.
 */
#include <ka.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "check.h"

static int get(int fd, int level, int name)
{
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -1;
}

/* A config, and the memory after it, which the library must neither read nor write. */
struct guarded {
    struct ka_config config;
    unsigned char after[64];
};

static void fill(struct guarded *guarded, int byte)
{
    static const struct ka_config init = KA_CONFIG_INIT;

    guarded->config = init;
    memset(guarded->after, byte, sizeof guarded->after);
}

static int untouched(const struct guarded *guarded, int byte)
{
    for (size_t i = 0; i < sizeof guarded->after; i++)
        if (guarded->after[i] != byte)
            return 0;
    return 1;
}

/* If the library read the memory after the config as a field, it would be out of range, a value, or KA_KEEP. */
static void check_memory_after_configs(void)
{
    static const int bytes[] = { 0x5a, 0x00, 0xff, 0x10 };
    char text[64];

    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        const int byte = bytes[i];
        struct guarded guarded;
        uint64_t typical = 0, worst = 0;
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        int rto_max = get(fd, IPPROTO_TCP, 44); /* TCP_RTO_MAX_MS, which 0.1.0 does not know */

        fill(&guarded, byte);
        CHECK(ka_parse("idle=60,intvl=10,cnt=5,user_timeout=9000", &guarded.config) == 0 && untouched(&guarded, byte));
        CHECK(guarded.config.keepalive == KA_ON && guarded.config.idle == 60 && guarded.config.intvl == 10);
        CHECK(guarded.config.cnt == 5 && guarded.config.user_timeout == 9000);
        CHECK(ka_apply(fd, &guarded.config) == 0 && untouched(&guarded, byte));
        CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1 && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 60);
        CHECK(get(fd, IPPROTO_TCP, TCP_KEEPINTVL) == 10 && get(fd, IPPROTO_TCP, TCP_KEEPCNT) == 5);
        CHECK(get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 9000 && get(fd, IPPROTO_TCP, 44) == rto_max);
        CHECK(ka_format(&guarded.config, text, sizeof text) == 40);
        CHECK(strcmp(text, "idle=60,intvl=10,cnt=5,user_timeout=9000") == 0);
        CHECK(ka_detect_time(&guarded.config, &typical, &worst) == 0 && typical == 70000 && untouched(&guarded, byte));

        fill(&guarded, byte);
        CHECK(ka_query(fd, &guarded.config) == 0 && untouched(&guarded, byte));
        CHECK(guarded.config.size == sizeof guarded.config && guarded.config.keepalive == KA_ON);
        CHECK(guarded.config.idle == 60 && guarded.config.intvl == 10 && guarded.config.cnt == 5);
        CHECK(guarded.config.user_timeout == 9000);
        CHECK(ka_apply(fd, &guarded.config) == 0 && get(fd, IPPROTO_TCP, 44) == rto_max);

        fill(&guarded, byte);
        CHECK(ka_defaults(&guarded.config) == 0 && guarded.config.keepalive == KA_OFF && untouched(&guarded, byte));
        fill(&guarded, byte);
        CHECK(ka_plan_path(350, &guarded.config) == 0 && guarded.config.idle == 280 && untouched(&guarded, byte));
        fill(&guarded, byte);
        CHECK(ka_plan_detect(30000, &guarded.config) == 0 && guarded.config.idle == 14 && untouched(&guarded, byte));

        /* A text of a later release: the config of 0.1.0 has no field for the value. */
        fill(&guarded, byte);
        int result = ka_parse("idle=70,rto_max=2000", &guarded.config);
#ifdef KA_RTO_MAX_MIN
        CHECK(result == 0 && guarded.config.idle == 70 && guarded.config.rto_max == 2000);
#else
        CHECK(sizeof guarded.config == 24 && result == -1 && errno == EINVAL && guarded.config.idle == KA_KEEP);
#endif
        CHECK(untouched(&guarded, byte));
        CHECK(close(fd) == 0);
    }
}

int main(void)
{
    struct ka_config config = KA_CONFIG_INIT, found = KA_CONFIG_INIT;
    struct ka_status status = KA_STATUS_INIT;
    char text[64];
    int fd = socket(AF_INET, SOCK_STREAM, 0), expired = -1;
    uint8_t nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE], key[16] = { 0 };
    struct ka_beat beat = { 7, 1 };
    uint64_t typical = 0, worst = 0;

    CHECK(ka_version_number() >= KA_VERSION_NUMBER);
    check_memory_after_configs();

    CHECK(ka_parse("idle=60,intvl=10,cnt=5,user_timeout=auto", &config) == 0);
    CHECK(ka_apply(fd, &config) == 0);
    CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    CHECK(get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 60);
    CHECK(get(fd, IPPROTO_TCP, TCP_KEEPINTVL) == 10);
    CHECK(get(fd, IPPROTO_TCP, TCP_KEEPCNT) == 5);
    CHECK(get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 110000);
    CHECK(ka_query(fd, &found) == 0);
    CHECK(found.size == sizeof found && found.keepalive == KA_ON && found.idle == 60 && found.user_timeout == 110000);
    CHECK(ka_format(&config, text, sizeof text) > 0 && strncmp(text, "idle=60,intvl=10,cnt=5", 22) == 0);
    CHECK(ka_enable(fd, KA_KEEP, KA_KEEP, KA_CNT_MAX) == 0 && get(fd, IPPROTO_TCP, TCP_KEEPCNT) == KA_CNT_MAX);
    CHECK(ka_set_user_timeout(fd, KA_AUTO) == 0);
    CHECK(ka_apply(fd, &KA_CONFIG(.idle = 70, .user_timeout = KA_NONE)) == 0);
    CHECK(get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 70 && get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 0);
    CHECK(get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    CHECK(ka_enable_lenient(fd, 80, 0, 300) == KA_MISSED_CNT && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 80);
    CHECK(ka_explain("cnt=0", text, sizeof text) > 0 && strstr(text, "127") != NULL);
    CHECK(ka_disable(fd) == 0 && get(fd, SOL_SOCKET, SO_KEEPALIVE) == 0);
    CHECK(ka_get_status(fd, &status) == 0 && status.size == sizeof status && status.state == TCP_CLOSE);
    CHECK(ka_plan_preset("aws-nlb", &config) == 0 && config.idle == 280);
    CHECK(ka_detect_time(&config, &typical, &worst) == 0 && typical == 430000);

    struct ka_reaper *reaper = ka_reaper_new(1000);
    CHECK(reaper && ka_reaper_touch(reaper, fd, 0) == 0);
    CHECK(ka_reaper_expired(reaper, 1000, &expired, 1) == 1 && expired == fd);
    ka_reaper_free(reaper);

    CHECK(ka_beat_nonce(nonce) == 0 && ka_beat_sign(key, sizeof key, nonce, &beat, frame) == 0);
    beat.client = 0;
    CHECK(ka_beat_verify(key, sizeof key, nonce, 0, frame, &beat) == 0 && beat.client == 7 && beat.sequence == 1);
    return 0;
}
