/*
 * older: a program of libka 0.1.0. The test compiles it with the header of a release, links it with the library of that
 * release, and runs it with the current library. It uses only the API of 0.1.0, including all structs, and reads the
 * results from the kernel.
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
