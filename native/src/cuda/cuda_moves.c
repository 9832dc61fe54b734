/* Tables of moves for the kernels: made in any thread, uploaded and launched in the device's. No lock is needed. */
#include "cuda/cuda_moves.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "base/error.h"

/*
 * From this many bytes on a contiguous piece is left to the copy engine; below, a call for each would cost
 * more than the kernel that moves many at once. Chosen, not measured: no GPU was at hand.
 */
enum { ROW_BYTES = 1 << 20 };
/* The most of a list. Only ends that no plan cuts so ever come near it. */
enum { MOST_MOVES = 1 << 24 };
enum { MOST_JOINT = 2 * TB_MAX_DIMS + 2 };

tb_divisor tb_divisor_of(uint32_t number) {
    uint32_t shift = 0;
    while ((uint64_t)1 << shift < number) {
        shift++;
    }
    uint64_t rest = ((uint64_t)1 << shift) - number;
    return (tb_divisor){.magic = (uint32_t)((rest << 32) / number + 1), .shift = shift};
}

/* ---- what both ends have in common
 * ------------------------------------------------------------------------- */

/* A loop of both ends; strides in bytes. */
typedef struct joint_loop {
    int64_t count, destination_stride, source_stride;
} joint_loop;

typedef struct joint {
    uint64_t destination, source;
    joint_loop loops[MOST_JOINT]; /* innermost first */
    uint32_t count;
} joint;

/* Bytes of an element. */
static uint32_t destination_item(const tb_cuda_ask *ask) {
    return ask->fold ? tb_accumulator_size(ask->source.dtype) : tb_dtype_size(ask->destination.dtype);
}

static uint32_t source_item(const tb_cuda_ask *ask) {
    return tb_dtype_size(ask->source.dtype);
}

/* Loops of one end, innermost first; the run is one of them. */
typedef struct end_loops {
    int64_t count[TB_MAX_DIMS + 1], stride[TB_MAX_DIMS + 1];
    uint32_t loops;
} end_loops;

static void take_loops(end_loops *end, const tb_cuda_place *place, int64_t item) {
    int64_t dims = place->descriptor[1];
    end->count[0] = place->descriptor[2 + 2 * dims] / item;
    end->stride[0] = item;
    end->loops = 1;
    for (int64_t dim = dims - 1; dim >= 0; dim--) {
        end->count[end->loops] = place->descriptor[2 + 2 * dim];
        end->stride[end->loops++] = place->descriptor[3 + 2 * dim];
    }
}

static void add_loop(joint *both, joint_loop loop) {
    joint_loop *inner = both->count > 0 ? &both->loops[both->count - 1] : NULL;
    if (loop.count == 1) {
        return;
    }
    if (inner != NULL && loop.destination_stride == inner->destination_stride * inner->count
        && loop.source_stride == inner->source_stride * inner->count) {
        inner->count *= loop.count;
    } else {
        both->loops[both->count++] = loop;
    }
}

/*
 * Both ends walk one box in row-major order and have merged its dimensions differently, so that one's inner
 * loop is a part of the other's. False if it is not so.
 */
static bool join(joint *both, end_loops *to, end_loops *from) {
    uint32_t t = 0;
    uint32_t f = 0;
    while (t < to->loops && f < from->loops) {
        int64_t a = to->count[t];
        int64_t b = from->count[f];
        int64_t least = a < b ? a : b;
        if (a % least != 0 || b % least != 0) {
            return false;
        }
        add_loop(both, (joint_loop){least, to->stride[t], from->stride[f]});
        to->count[t] = a / least;
        to->stride[t] *= least;
        from->count[f] = b / least;
        from->stride[f] *= least;
        t += to->count[t] == 1;
        f += from->count[f] == 1;
    }
    return true;
}

/* ---- rows of the table
 * --------------------------------------------------------------------------------------- */

static int32_t make_room(void **at, uint32_t *room, uint32_t count, size_t row, tb_error *err) {
    if (count < *room) {
        return TB_OK;
    }
    if (count >= MOST_MOVES) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a list has more than %d moves", MOST_MOVES);
    }
    uint32_t more = *room == 0 ? 64 : 2 * *room;
    void *larger = realloc(*at, more * row);
    if (larger == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a list of %u moves", more);
    }
    *at = larger;
    *room = more;
    return TB_OK;
}

static uint32_t kernel_of(const tb_cuda_ask *ask, bool aligned) {
    if (ask->fold) {
        return TB_KERNEL_FOLD;
    }
    if (ask->destination.dtype == ask->source.dtype) {
        return TB_KERNEL_COPY;
    }
#define CAST_PAIR(to, to_type, from, from_type)                                                              \
    if (aligned && ask->destination.dtype == to_type && ask->source.dtype == from_type) {                    \
        return TB_KERNEL_CAST_##to##_OF_##from;                                                              \
    }
    TB_CUDA_CASTS(CAST_PAIR)
#undef CAST_PAIR
    return TB_KERNEL_CAST;
}

/* True if every lane of these bytes begins at a multiple of them, or of 16. The run is loop 0 if it is
 * one. */
static bool aligned_to(const joint *both, uint32_t first_loop, uint32_t to_bytes, uint32_t from_bytes) {
    uint64_t to_mask = (to_bytes < 16 ? to_bytes : 16) - 1;
    uint64_t from_mask = (from_bytes < 16 ? from_bytes : 16) - 1;
    uint64_t to = both->destination;
    uint64_t from = both->source;
    for (uint32_t i = first_loop; i < both->count; i++) {
        to |= (uint64_t)both->loops[i].destination_stride;
        from |= (uint64_t)both->loops[i].source_stride;
    }
    return (to & to_mask) == 0 && (from & from_mask) == 0;
}

/* How elements become lanes. */
typedef struct lanes {
    uint32_t first_loop; /* 1 if loop 0 is the run */
    uint64_t run;        /* lanes of a run */
    uint32_t elements, to_bytes, from_bytes;
    bool aligned;
} lanes;

static lanes lanes_of_copy(const joint *both, uint32_t first_loop, uint64_t run_bytes) {
    uint32_t bytes = 16;
    while (run_bytes % bytes != 0 || !aligned_to(both, first_loop, bytes, bytes)) {
        bytes /= 2;
    }
    return (lanes){first_loop, run_bytes / bytes, 1, bytes, bytes, true};
}

static lanes lanes_of(const joint *both, const tb_cuda_ask *ask) {
    uint32_t from = source_item(ask);
    uint32_t to = destination_item(ask);
    bool has_run =
        both->count > 0 && both->loops[0].destination_stride == to && both->loops[0].source_stride == from;
    uint32_t first_loop = has_run ? 1 : 0;
    uint64_t run = has_run ? (uint64_t)both->loops[0].count : 1;
    if (!ask->fold && ask->destination.dtype == ask->source.dtype) {
        return lanes_of_copy(both, first_loop, run * from);
    }
    bool aligned = aligned_to(both, first_loop, to, from);
    uint32_t elements = 1;
    if (aligned && kernel_of(ask, true) > TB_KERNEL_CAST) {
        elements = 8;
        while (elements > 1
               && (run % elements != 0 || !aligned_to(both, first_loop, elements * to, elements * from))) {
            elements = elements == 8 ? 4 : 1;
        }
    }
    return (lanes){first_loop, run / elements, elements, elements * to, elements * from, aligned};
}

static int32_t add_loops(tb_cuda_moves *moves, const joint *both, uint32_t first_loop, tb_error *err) {
    for (uint32_t i = both->count; i > first_loop; i--) {
        const joint_loop *loop = &both->loops[i - 1];
        int32_t code = make_room((void **)&moves->loops, &moves->loop_room, moves->loop_count,
                                 sizeof *moves->loops, err);
        if (code != TB_OK) {
            return code;
        }
        moves->loops[moves->loop_count++] = (tb_cuda_loop){
            .count = (uint32_t)loop->count,
            .divisor = tb_divisor_of((uint32_t)loop->count),
            .destination_stride = loop->destination_stride,
            .source_stride = loop->source_stride,
        };
    }
    return TB_OK;
}

static int32_t add_row(tb_cuda_moves *moves, const joint *both, uint64_t bytes, uint32_t group,
                       tb_error *err) {
    int32_t code =
        make_room((void **)&moves->rows, &moves->row_room, moves->row_count, sizeof *moves->rows, err);
    if (code == TB_OK) {
        moves->rows[moves->row_count++] = (tb_cuda_row){both->destination, both->source, bytes, group};
    }
    return code;
}

static int32_t add_joint(tb_cuda_moves *moves, const tb_cuda_ask *ask, const joint *both, tb_error *err);

/* The outermost loop in parts of `count` steps. */
static int32_t add_parts(tb_cuda_moves *moves, const tb_cuda_ask *ask, const joint *both, int64_t count,
                         tb_error *err) {
    joint part = *both;
    joint_loop *outer = &part.loops[part.count - 1];
    int32_t code = TB_OK;
    for (int64_t begin = 0; begin < both->loops[both->count - 1].count && code == TB_OK; begin += count) {
        int64_t rest = both->loops[both->count - 1].count - begin;
        part.destination = both->destination + (uint64_t)(begin * outer->destination_stride);
        part.source = both->source + (uint64_t)(begin * outer->source_stride);
        outer->count = rest < count ? rest : count;
        part.count = outer->count == 1 ? both->count - 1 : both->count;
        code = add_joint(moves, ask, &part, err);
    }
    return code;
}

static int32_t add_joint(tb_cuda_moves *moves, const tb_cuda_ask *ask, const joint *both, tb_error *err) {
    lanes cut = lanes_of(both, ask);
    uint64_t count = cut.run;
    for (uint32_t i = cut.first_loop; i < both->count; i++) {
        count *= (uint64_t)both->loops[i].count;
    }
    uint32_t kernel = kernel_of(ask, cut.aligned);
    uint64_t bytes = count * cut.to_bytes;
    if (kernel == TB_KERNEL_COPY && both->count == cut.first_loop && bytes >= ROW_BYTES) {
        return add_row(moves, both, bytes, ask->group, err);
    }
    if (both->count - cut.first_loop > TB_CUDA_LOOPS) {
        return add_parts(moves, ask, both, 1, err);
    }
    if (count > TB_CUDA_MOST_LANES) {
        int64_t outer = both->loops[both->count - 1].count;
        /* Halves at a multiple of what a lane holds. */
        return add_parts(moves, ask, both, outer >= 32 ? (outer / 2 + 15) / 16 * 16 : (outer + 1) / 2, err);
    }
    int32_t code =
        make_room((void **)&moves->asked, &moves->move_room, moves->move_count, sizeof *moves->asked, err);
    uint32_t first_loop = moves->loop_count;
    if (code == TB_OK) {
        code = add_loops(moves, both, cut.first_loop, err);
    }
    if (code != TB_OK) {
        return code;
    }
    tb_cuda_row_of_kernel *row = &moves->asked[moves->move_count];
    *row = (tb_cuda_row_of_kernel){.kernel = kernel, .group = ask->group, .order = moves->move_count++};
    row->move = (tb_cuda_move){
        .destination = both->destination,
        .source = both->source,
        .divide_by = ask->divide_by == 0 ? 1 : ask->divide_by,
        .lanes = (uint32_t)count,
        .run_lanes = (uint32_t)cut.run,
        .run_divisor = tb_divisor_of((uint32_t)cut.run),
        .first_loop = first_loop,
        .loop_count = (uint8_t)(both->count - cut.first_loop),
        .lane_elements = (uint8_t)cut.elements,
        .destination_type = (uint8_t)ask->destination.dtype,
        .source_type = (uint8_t)ask->source.dtype,
        .partial_op = (uint8_t)ask->partial_op,
        .flags = (uint8_t)((ask->first ? TB_CUDA_FIRST : 0) | (ask->last ? TB_CUDA_LAST : 0)
                           | (cut.aligned ? 0 : TB_CUDA_UNALIGNED)),
        .destination_lane = (uint8_t)cut.to_bytes,
        .source_lane = (uint8_t)cut.from_bytes,
    };
    return TB_OK;
}

/* Ends that are not of one box: taken apart run by run. */
static int32_t add_runs(tb_cuda_moves *moves, const tb_cuda_ask *ask, tb_error *err) {
    int64_t to_item = destination_item(ask);
    int64_t from_item = source_item(ask);
    tb_cursor to;
    tb_cursor from;
    tb_cursor_start(&to, (void *)(uintptr_t)ask->destination.address, ask->destination.descriptor);
    tb_cursor_start(&from, (void *)(uintptr_t)ask->source.address, ask->source.descriptor);
    int32_t code = TB_OK;
    while (to.left > 0 && code == TB_OK) {
        struct iovec to_run;
        struct iovec from_run;
        uint64_t to_bytes;
        uint64_t from_bytes;
        tb_cursor_iov(&to, &to_run, 1, UINT64_MAX, &to_bytes);
        tb_cursor_iov(&from, &from_run, 1, UINT64_MAX, &from_bytes);
        int64_t elements = (int64_t)to_bytes / to_item;
        elements = (int64_t)from_bytes / from_item < elements ? (int64_t)from_bytes / from_item : elements;
        joint both = {
            (uintptr_t)to_run.iov_base, (uintptr_t)from_run.iov_base, {{elements, to_item, from_item}}, 1};
        both.count = elements == 1 ? 0 : 1;
        code = add_joint(moves, ask, &both, err);
        tb_cursor_advance(&to, (uint64_t)(elements * to_item));
        tb_cursor_advance(&from, (uint64_t)(elements * from_item));
    }
    return code;
}

int32_t tb_cuda_moves_add(tb_cuda_moves *moves, const tb_cuda_ask *ask, tb_error *err) {
    end_loops to;
    end_loops from;
    joint both = {ask->destination.address + (uint64_t)ask->destination.descriptor[0],
                  ask->source.address + (uint64_t)ask->source.descriptor[0],
                  {{0, 0, 0}},
                  0};
    take_loops(&to, &ask->destination, destination_item(ask));
    take_loops(&from, &ask->source, source_item(ask));
    return join(&both, &to, &from) ? add_joint(moves, ask, &both, err) : add_runs(moves, ask, err);
}
