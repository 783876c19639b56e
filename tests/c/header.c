/* Uses everything in ka.h. The test compiles it as C and as C++ under each standard, with warnings as errors. */
#include <ka.h>

#if KA_VERSION_NUMBER < 1000
#error "KA_VERSION_NUMBER cannot be compared by the preprocessor"
#endif

struct ka_config ka_test_config = KA_CONFIG_INIT;
struct ka_status ka_test_status = KA_STATUS_INIT;
int ka_test_keep = 0 -KA_KEEP;
int ka_test_words = 0 -KA_NONE + KA_RTO_MAX_MIN + KA_RTO_MAX_MAX + KA_ON + KA_OFF + KA_MISSED_IDLE + KA_MISSED_INTVL + KA_MISSED_CNT + KA_MISSED_TCP;
const char ka_test_version[] = KA_VERSION;

#ifdef KA_CONFIG
/* C99 */
static int ka_test_compound(void)
{
    const struct ka_config *config = &KA_CONFIG(.keepalive = KA_ON, .idle = 60);
    return config->size == sizeof *config && config->keepalive == KA_ON && config->idle == 60 && config->cnt == 0;
}
#else
static int ka_test_compound(void)
{
    return 1;
}
#endif

int main(void)
{
    struct ka_config config = KA_CONFIG_INIT;
    struct ka_status status = KA_STATUS_INIT;
    char text[64];
    int value = 0, good;
    uint64_t typical_ms = 0, worst_ms = 0, client = 0;
    uint8_t nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE], key[16] = { 0 };
    struct ka_beat beat = { 7, 1 };
    struct ka_reaper *reaper = ka_reaper_new(1000);

    if (config.size != sizeof config || config.keepalive != KA_KEEP || config.idle != KA_KEEP ||
        config.intvl != KA_KEEP || config.cnt != KA_KEEP || config.user_timeout != KA_KEEP ||
        config.rto_max != KA_KEEP || status.size != sizeof status)
        return 1;
    good = (ka_enable(-1, KA_IDLE_MAX, KA_INTVL_MAX, KA_CNT_MAX) == -1 &&
             ka_enable_lenient(-1, 0, 0, 0) == -1 && ka_explain("60,10,5", text, sizeof text) == 0 && ka_disable(-1) == -1 &&
             ka_is_enabled(-1) == -1 && ka_get_idle(-1, &value) == -1 && ka_get_intvl(-1, &value) == -1 &&
             ka_get_cnt(-1, &value) == -1 && ka_get_user_timeout(-1, &value) == -1 &&
             ka_get_rto_max(-1, &value) == -1 && ka_set_rto_max(-1, KA_AUTO) == -1 &&
             ka_set_user_timeout(-1, KA_AUTO) == -1 && ka_apply(-1, &config) == -1 &&
             ka_query(-1, &config) == -1 && ka_get_status(-1, &status) == -1 && ka_probe(-1, 1000) == -1 &&
             ka_defaults(&config) == 0 && ka_parse("60,10,5", &config) == 0 &&
             ka_format(&config, text, sizeof text) == 22 && ka_plan_detect(30000, &config) == 0 &&
             ka_plan_path(350, &config) == 0 && ka_plan_preset("aws-nlb", &config) == 0 &&
             ka_detect_time(&config, &typical_ms, &worst_ms) == 0 &&
             ka_data_time(&config, &typical_ms, &worst_ms) == 0 && ka_reaper_touch(reaper, 3, 0) == 0 &&
             ka_reaper_next(reaper, 400) == 600 && ka_reaper_len(reaper) == 1 &&
             ka_reaper_expired(reaper, 1000, &value, 1) == 1 && value == 3 && ka_reaper_forget(reaper, 3) == -1 &&
             ka_beat_nonce(nonce) == 0 && ka_beat_sign(key, sizeof key, nonce, &beat, frame) == 0 &&
             ka_beat_client(frame, &client) == 0 && client == 7 &&
             ka_beat_verify(key, sizeof key, nonce, 0, frame, &beat) == 0 && ka_version_number() == KA_VERSION_NUMBER &&
             ka_version()[0] == ka_test_version[0]);
    ka_reaper_free(reaper);
    return !good || !ka_test_compound();
}
