/* One element range from a strided place to another, with a cast on the way. No lock is needed. */
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "base/error.h"
#include "kernels/descriptor.h"
#include "kernels/pack.h"
#include "kernels/transpose.h"

static int32_t check_end(const tb_end *end, const char *name, uint64_t *elements, tb_error *err) {
    uint32_t size = tb_dtype_size(end->dtype);
    if (size == 0) {
        return tb_fail(err, TB_EDTYPE, -1, 0, "%s: unknown element type %u", name, end->dtype);
    }
    if (end->bytes > UINT64_MAX - end->base || end->bytes > INT64_MAX) {
        return tb_fail(err, TB_EREGION, -1, 0, "%s: memory reaches beyond the address space", name);
    }
    uint64_t total;
    uint32_t used;
    int32_t code =
        tb_descriptor_check(end->descriptor, end->descriptor_words, size, end->bytes, &total, &used, err);
    if (code != TB_OK) {
        return code;
    }
    if (used != end->descriptor_words) {
        return tb_fail(err, TB_EPLAN_FORMAT, -1, 0, "%s: %u words follow the descriptor", name,
                       end->descriptor_words - used);
    }
    *elements = total / size;
    return TB_OK;
}

int32_t tb_move(const tb_end *dst, const tb_end *src, tb_error *err) {
    uint64_t dst_elements = 0;
    uint64_t src_elements = 0;
    int32_t code = check_end(dst, "destination", &dst_elements, err);
    if (code != TB_OK) {
        return code;
    }
    code = check_end(src, "source", &src_elements, err);
    if (code != TB_OK) {
        return code;
    }
    if (dst_elements != src_elements) {
        return tb_fail(err, TB_EREGION, -1, 0, "a move has %llu elements at one end and %llu at the other",
                       (unsigned long long)src_elements, (unsigned long long)dst_elements);
    }
    uint8_t *first = (uint8_t *)(uintptr_t)dst->base + dst->descriptor[0];
    if (dst->dtype == src->dtype && dst->descriptor[1] == 0
        && tb_transpose(first, (const uint8_t *)(uintptr_t)src->base, src->descriptor,
                   tb_dtype_size(src->dtype))) {
        return TB_OK;
    }
    tb_cursor to;
    tb_cursor from;
    tb_cursor_start(&to, (void *)(uintptr_t)dst->base, dst->descriptor);
    tb_cursor_start(&from, (void *)(uintptr_t)src->base, src->descriptor);
    tb_cursor_move(&to, dst->dtype, &from, src->dtype, dst_elements);
    return TB_OK;
}
