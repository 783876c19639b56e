#ifndef KA_H
#define KA_H
#include <stddef.h>
#include <stdint.h>
#define KA_VERSION "0.2.0"
#define KA_VERSION_MAJOR 0
#define KA_VERSION_MINOR 2
#define KA_VERSION_PATCH 0
#define KA_VERSION_NUMBER (1000000 * KA_VERSION_MAJOR + 1000 * KA_VERSION_MINOR + KA_VERSION_PATCH)
#define KA_CONFIG_INIT { sizeof(struct ka_config), KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP }
#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L
#define KA_CONFIG(...) ((struct ka_config){ .size = sizeof(struct ka_config), __VA_ARGS__ })
#endif
#define KA_STATUS_INIT { sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }
#define KA_MISSED_IDLE 1
#define KA_MISSED_INTVL 2
#define KA_MISSED_CNT 4
#define KA_MISSED_TCP 8
#define KA_KEEP (-1)
#define KA_AUTO (-2)
#define KA_NONE (-3)
#define KA_ON 1
#define KA_OFF 2
#define KA_IDLE_MAX 32767
#define KA_INTVL_MAX 32767
#define KA_CNT_MAX 127
#define KA_RTO_MAX_MIN 1000
#define KA_RTO_MAX_MAX 120000
#define KA_BEAT_NONCE_SIZE 16
#define KA_BEAT_SIZE 56
struct ka_reaper;
struct ka_config {
    uint32_t size;
    int32_t keepalive;
    int32_t idle;
    int32_t intvl;
    int32_t cnt;
    int32_t user_timeout;
    int32_t rto_max;
};
struct ka_status {
    uint32_t size;
    uint32_t state;
    uint32_t probes;
    uint32_t retransmits;
    uint32_t unacked;
    uint32_t last_ack_ms;
    uint32_t last_recv_ms;
    uint32_t last_send_ms;
    uint32_t rtt_us;
};
struct ka_beat {
    uint64_t client;
    uint64_t sequence;
};
#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */
int ka_enable(int fd,
              int idle,
              int intvl,
              int cnt);
int ka_enable_lenient(int fd,
                      int idle,
                      int intvl,
                      int cnt);
int ka_disable(int fd);
int ka_is_enabled(int fd);
int ka_get_idle(int fd,
                int *seconds);
int ka_get_intvl(int fd,
                 int *seconds);
int ka_get_cnt(int fd,
               int *probes);
int ka_get_user_timeout(int fd,
                        int *milliseconds);
int ka_set_user_timeout(int fd,
                        int milliseconds);
int ka_get_rto_max(int fd,
                   int *milliseconds);
int ka_set_rto_max(int fd,
                   int milliseconds);
int ka_apply(int fd,
             const struct ka_config *config);
int ka_query(int fd,
             struct ka_config *config);
int ka_defaults(struct ka_config *config);
int ka_parse(const char *text,
             struct ka_config *config);
int ka_format(const struct ka_config *config,
              char *text,
              size_t size);
int ka_explain(const char *text,
               char *message,
               size_t size);
int ka_plan_detect(uint32_t within_ms,
                   struct ka_config *config);
int ka_plan_path(uint32_t path_idle_s,
                 struct ka_config *config);
int ka_plan_preset(const char *name,
                   struct ka_config *config);
int ka_detect_time(const struct ka_config *config,
                   uint64_t *typical_ms,
                   uint64_t *worst_ms);
int ka_data_time(const struct ka_config *config,
                 uint64_t *typical_ms,
                 uint64_t *worst_ms);
int ka_get_status(int fd, struct ka_status *status);
int ka_probe(int fd,
             int timeout_ms);
struct ka_reaper *ka_reaper_new(uint32_t timeout_ms);
void ka_reaper_free(struct ka_reaper *reaper);
int ka_reaper_touch(struct ka_reaper *reaper,
                    int fd,
                    uint64_t now_ms);
int ka_reaper_forget(struct ka_reaper *reaper,
                     int fd);
int ka_reaper_expired(struct ka_reaper *reaper,
                      uint64_t now_ms,
                      int *fds,
                      size_t n);
int ka_reaper_next(const struct ka_reaper *reaper,
                   uint64_t now_ms);
size_t ka_reaper_len(const struct ka_reaper *reaper);
int ka_beat_nonce(uint8_t nonce[KA_BEAT_NONCE_SIZE]);
int ka_beat_sign(const uint8_t *key,
                 size_t key_size,
                 const uint8_t nonce[KA_BEAT_NONCE_SIZE],
                 const struct ka_beat *beat,
                 uint8_t frame[KA_BEAT_SIZE]);
int ka_beat_client(const uint8_t frame[KA_BEAT_SIZE],
                   uint64_t *client);
int ka_beat_verify(const uint8_t *key,
                   size_t key_size,
                   const uint8_t nonce[KA_BEAT_NONCE_SIZE],
                   uint64_t last_sequence,
                   const uint8_t frame[KA_BEAT_SIZE],
                   struct ka_beat *beat);
const char *ka_version(void);
uint32_t ka_version_number(void);
#ifdef __cplusplus
} /* extern "C" */
#endif /* __cplusplus */
#endif  /* KA_H */
