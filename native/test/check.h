/*
 * What the native tests share: a check that ends the test with its place, and random numbers that are always
 * the same.
 */
#ifndef TB_TEST_CHECK_H
#define TB_TEST_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s failed: ", __FILE__, __LINE__, #condition);                           \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            fputc('\n', stderr);                                                                             \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

/* xorshift64*: the tests are the same on every machine. */
static inline uint64_t random_next(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1du;
}

static inline int64_t random_between(uint64_t *state, int64_t low, int64_t high) {
    return low + (int64_t)(random_next(state) % (uint64_t)(high - low + 1));
}

static inline void random_fill(uint64_t *state, void *to, size_t bytes) {
    uint8_t *at = to;
    for (size_t i = 0; i < bytes; i++) {
        at[i] = (uint8_t)random_next(state);
    }
}

#endif
