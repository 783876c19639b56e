/*
 * wipe: signs and verifies on its own stack. Then searches the stack for the key itself, and for the key combined with
 * the pads of HMAC by exclusive or. Prints nothing if all is well.
 */
#define _GNU_SOURCE /* memmem */

#include <ka.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"

#define STACK (1 << 20)
#define KEY 64
/* Eight bytes of a key in a row cannot be a coincidence. */
#define TRACE 8

static uint8_t key[KEY], nonce[KA_BEAT_NONCE_SIZE], frame[KA_BEAT_SIZE];
static bool careless;

/* Leaves a copy of the key on the stack, to show that the search can find one. */
static void leave_a_copy(void)
{
    volatile uint8_t copy[KEY];
    for (int i = 0; i < KEY; i++)
        copy[i] = key[i] ^ 0x36;
    CHECK(copy[0] == (key[0] ^ 0x36));
}

static void *work(void *argument)
{
    struct ka_beat beat = { 7, 1 };
    (void)argument;
    if (careless)
        leave_a_copy();
    CHECK(ka_beat_sign(key, sizeof key, nonce, &beat, frame) == 0);
    CHECK(ka_beat_verify(key, sizeof key, nonce, 0, frame, &beat) == 0);
    CHECK(ka_beat_verify(key, sizeof key, nonce, 1, frame, &beat) == -1 && errno == ESTALE);
    frame[50] ^= 1;
    CHECK(ka_beat_verify(key, sizeof key, nonce, 0, frame, &beat) == -1 && errno == EBADMSG);
    if (careless)
        leave_a_copy();
    return NULL;
}

static bool has_trace(const uint8_t *stack)
{
    const uint8_t pads[] = { 0, 0x36, 0x5c };

    for (size_t pad = 0; pad < sizeof pads; pad++)
        for (size_t at = 0; at + TRACE <= KEY; at++) {
            uint8_t trace[TRACE];
            for (size_t i = 0; i < TRACE; i++)
                trace[i] = key[at + i] ^ pads[pad];
            if (memmem(stack, STACK, trace, TRACE) != NULL)
                return true;
        }
    return false;
}

int main(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    uint8_t *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(stack != MAP_FAILED);
    CHECK(ka_beat_nonce(key) == 0 && ka_beat_nonce(key + 16) == 0 && ka_beat_nonce(key + 32) == 0 &&
          ka_beat_nonce(key + 48) == 0 && ka_beat_nonce(nonce) == 0);
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstack(&attributes, stack, STACK) == 0);
    for (int turn = 0; turn < 2; turn++) {
        careless = turn == 1;
        CHECK(pthread_create(&thread, &attributes, work, NULL) == 0 && pthread_join(thread, NULL) == 0);
        CHECK(has_trace(stack) == careless);
    }
    return 0;
}
