/*
 * beat: compares signing and verifying a heartbeat with OpenSSL's HMAC-SHA-256 of the same 40 bytes, in one run. Each
 * measurement includes the set-up of the key, because a server has another key for each beat.
 *
 *   ka        ka_beat_sign, ka_beat_verify
 *   HMAC      OpenSSL's function HMAC()
 *   EVP_MAC   OpenSSL 3's API at its fastest: the algorithm is fetched once, and one context gets each key
 *
 * For OpenSSL, the benchmark also builds the frame, and compares it (CRYPTO_memcmp). Each round times a batch of each
 * way, in turn. A ratio is the median of the rounds' ratios.
 */
#include <err.h>
#include <ka.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/params.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rounds.h"

#define BATCH 2000
#define ROUNDS 201
#define SIGNED 24
#define KEY 32

enum { KA, HMAC_CALL, EVP, WAYS };
static const char *const names[WAYS] = { "ka", "HMAC", "EVP_MAC" };

static uint8_t keys[BATCH][KEY], nonce[KA_BEAT_NONCE_SIZE], frames[BATCH][KA_BEAT_SIZE];
static EVP_MAC_CTX *context;

static void big_endian(uint8_t *to, uint64_t number)
{
    for (int i = 7; i >= 0; i--, number >>= 8)
        to[i] = (uint8_t)number;
}

static void tag(int way, const uint8_t *key, const uint8_t *frame, uint8_t *tag)
{
    uint8_t message[KA_BEAT_NONCE_SIZE + SIGNED];
    size_t size = 32;

    memcpy(message, nonce, sizeof nonce);
    memcpy(message + sizeof nonce, frame, SIGNED);
    if (way == HMAC_CALL ? HMAC(EVP_sha256(), key, KEY, message, sizeof message, tag, NULL) == NULL
                         : !EVP_MAC_init(context, key, KEY, NULL) ||
                               !EVP_MAC_update(context, message, sizeof message) ||
                               !EVP_MAC_final(context, tag, &size, 32))
        errx(EXIT_FAILURE, "OpenSSL");
}

static void sign(int way, int n)
{
    struct ka_beat beat = { 7, (uint64_t)n + 1 };

    if (way == KA) {
        if (ka_beat_sign(keys[n], KEY, nonce, &beat, frames[n]) != 0)
            err(EXIT_FAILURE, "ka_beat_sign");
    } else {
        memcpy(frames[n], "KABT\1\0\0", 8);
        big_endian(frames[n] + 8, beat.client);
        big_endian(frames[n] + 16, beat.sequence);
        tag(way, keys[n], frames[n], frames[n] + SIGNED);
    }
}

static void verify(int way, int n)
{
    struct ka_beat beat;
    uint8_t found[32];

    if (way == KA) {
        if (ka_beat_verify(keys[n], KEY, nonce, (uint64_t)n, frames[n], &beat) != 0)
            err(EXIT_FAILURE, "ka_beat_verify");
    } else {
        tag(way, keys[n], frames[n], found);
        if (memcmp(frames[n], "KABT\1\0\0", 8) != 0 || CRYPTO_memcmp(found, frames[n] + SIGNED, 32) != 0)
            errx(EXIT_FAILURE, "not verified");
    }
}

static void measure(const char *what, void (*job)(int, int))
{
    static double nanoseconds[WAYS][ROUNDS], ratios[WAYS][ROUNDS];

    for (int round = 0; round < ROUNDS; round++) {
        for (int turn = 0; turn < WAYS; turn++) {
            int way = (turn + round) % WAYS;
            double start = now();
            for (int n = 0; n < BATCH; n++)
                job(way, n);
            nanoseconds[way][round] = (now() - start) / BATCH;
        }
        for (int way = 0; way < WAYS; way++)
            ratios[way][round] = nanoseconds[KA][round] / nanoseconds[way][round];
    }
    for (int way = 0; way < WAYS; way++) {
        double each = median(nanoseconds[way], ROUNDS);
        printf("%-7s %-8s %8.0f %12.0f %9.2f\n", what, names[way], each, 1e9 / each, median(ratios[way], ROUNDS));
    }
}

int main(void)
{
    OSSL_PARAM digest[] = { OSSL_PARAM_utf8_string("digest", "SHA256", 0), OSSL_PARAM_END };
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);

    context = mac == NULL ? NULL : EVP_MAC_CTX_new(mac);
    if (context == NULL || !EVP_MAC_CTX_set_params(context, digest))
        errx(EXIT_FAILURE, "OpenSSL has no HMAC");
    srandom(1);
    for (int n = 0; n < BATCH; n++)
        for (int i = 0; i < KEY; i++)
            keys[n][i] = (uint8_t)random();
    /* All ways must make the same frame. */
    for (int way = 0; way < WAYS; way++) {
        static uint8_t first[KA_BEAT_SIZE];
        sign(way, 0);
        if (way == KA)
            memcpy(first, frames[0], sizeof first);
        else if (memcmp(first, frames[0], sizeof first) != 0)
            errx(EXIT_FAILURE, "%s makes another frame", names[way]);
    }
    printf("                 ns each   per second   ka over it\n");
    measure("sign", sign);
    measure("verify", verify);
    EVP_MAC_CTX_free(context);
    EVP_MAC_free(mac);
    return 0;
}
