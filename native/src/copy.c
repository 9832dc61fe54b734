#include "copy.h"

#include <string.h>

/* A length that the compiler knows becomes plain loads and stores instead of a call. */
#define FIXED_RUN(size)                                                                                            \
    case size:                                                                                                     \
        for (; rows > 0; rows--, to += to_stride, from += from_stride) {                                           \
            memcpy(to, from, size);                                                                                \
        }                                                                                                          \
        return;

void tb_copy_rows(uint8_t *restrict to, int64_t to_stride, const uint8_t *restrict from, int64_t from_stride,
                  int64_t rows, int64_t run) {
    if (to_stride == run && from_stride == run) {
        run *= rows;
        rows = 1;
    }
    switch (run) {
        FIXED_RUN(1)
        FIXED_RUN(2)
        FIXED_RUN(4)
        FIXED_RUN(8)
        FIXED_RUN(16)
        FIXED_RUN(32)
        FIXED_RUN(64)
    }
    for (; rows > 0; rows--, to += to_stride, from += from_stride) {
        memcpy(to, from, (size_t)run);
    }
}
