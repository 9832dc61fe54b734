/* Casts of rows of elements, by the widest vectors that the processor has. No lock is needed. */
#include <string.h>

#include "kernels/cast_table.h"
#include "kernels/cursor.h"
#include "kernels/cast.h"
#include "kernels/dtype.h"

enum { VIA_ELEMENTS = 1024 };

/*
 * The loops may assume that they read nothing that they wrote. Elements that get narrower stay behind those
 * that are still to be read.
 */
static void cast_in_place(uint8_t *at, tb_cast_loop loop, uint32_t to_size, uint32_t from_size,
                          uint64_t count) {
    uint8_t copy[VIA_ELEMENTS * 8];
    const uint8_t *from = at;
    while (count > 0) {
        uint64_t elements = count < VIA_ELEMENTS ? count : VIA_ELEMENTS;
        memcpy(copy, from, elements * from_size);
        loop(at, copy, elements);
        at += elements * to_size;
        from += elements * from_size;
        count -= elements;
    }
}

void tb_cast(void *to, uint32_t to_dtype, const void *from, uint32_t from_dtype, uint64_t count) {
    tb_cast_table *table = tb_cast_table_now();
    uint32_t to_size = tb_dtype_size(to_dtype);
    uint32_t from_size = tb_dtype_size(from_dtype);
    if (to_dtype == from_dtype) {
        memmove(to, from, count * to_size);
        return;
    }
    tb_cast_loop one_step = (*table)[to_dtype][from_dtype];
    if (one_step != NULL && to != from) {
        one_step(to, from, count);
        return;
    }
    if (one_step != NULL) {
        cast_in_place(to, one_step, to_size, from_size, count);
        return;
    }
    /* A narrow float is on one side or on both, and float32 holds each of them exactly. */
    tb_cast_loop widen = (*table)[TB_FLOAT32][from_dtype];
    tb_cast_loop narrow = (*table)[to_dtype][TB_FLOAT32];
    uint8_t *out = to;
    const uint8_t *in = from;
    while (count > 0) {
        float via[VIA_ELEMENTS];
        uint64_t elements = count < VIA_ELEMENTS ? count : VIA_ELEMENTS;
        widen(via, in, elements);
        narrow(out, via, elements);
        in += elements * from_size;
        out += elements * to_size;
        count -= elements;
    }
}
