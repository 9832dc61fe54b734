/* Checks of strided descriptors that others have written. No lock is needed. */
#include "kernels/cursor.h"
#include "base/error.h"
#include "kernels/descriptor.h"

static int32_t malformed(tb_error *err, const char *what) {
    return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "descriptor: %s", what);
}

/* The lowest and one past the highest byte that the loops reach, and the bytes in all. */
typedef struct extent {
    int64_t low;
    int64_t high;
    int64_t total;
} extent;

static int32_t extend(extent *reach, int64_t count, int64_t stride, tb_error *err) {
    int64_t span;
    if (count < 1) {
        return malformed(err, "a count below 1");
    }
    if (__builtin_mul_overflow(count - 1, stride, &span)
        || __builtin_add_overflow(span < 0 ? reach->low : reach->high, span,
                                  span < 0 ? &reach->low : &reach->high)
        || __builtin_mul_overflow(reach->total, count, &reach->total)) {
        return malformed(err, "offsets overflow");
    }
    return TB_OK;
}

int32_t tb_descriptor_check(const int64_t *descriptor, uint64_t words, uint64_t item, uint64_t bytes,
                            uint64_t *total_bytes, uint32_t *used_words, tb_error *err) {
    if (words < 3) {
        return malformed(err, "fewer than 3 words");
    }
    int64_t offset = descriptor[0];
    int64_t dims = descriptor[1];
    if (dims < 0 || dims > TB_MAX_DIMS) {
        return malformed(err, "the number of loops is out of range");
    }
    uint32_t used = 3 + 2 * (uint32_t)dims;
    if (words < used) {
        return malformed(err, "truncated");
    }
    int64_t run = descriptor[used - 1];
    if (run < 1 || item == 0 || (uint64_t)run % item != 0) {
        return malformed(err, "the run is not a positive multiple of the element size");
    }
    extent reach = {.low = offset, .high = offset, .total = run};
    if (__builtin_add_overflow(reach.high, run, &reach.high)) {
        return malformed(err, "offsets overflow");
    }
    for (int64_t dim = 0; dim < dims; dim++) {
        int32_t code = extend(&reach, descriptor[2 + 2 * dim], descriptor[3 + 2 * dim], err);
        if (code != TB_OK) {
            return code;
        }
    }
    if (reach.low < 0 || (uint64_t)reach.high > bytes) {
        return tb_fail(err, TB_EREGION, -1, 0,
                       "descriptor reaches bytes %lld to %lld of memory of %llu bytes", (long long)reach.low,
                       (long long)reach.high, (unsigned long long)bytes);
    }
    if (total_bytes != NULL) {
        *total_bytes = (uint64_t)reach.total;
    }
    if (used_words != NULL) {
        *used_words = used;
    }
    return TB_OK;
}
