/*
 * What one thread of a kernel does. C and CUDA: the same functions are compiled by nvcc, and for tests
 * without a GPU by a C compiler, which calls them for one thread after the other.
 */
#ifndef TB_CUDA_BODIES_H
#define TB_CUDA_BODIES_H

#include "element.h"
#include "table.h"

#if defined(__CUDACC__)
typedef uint4 tb_lane16;
typedef uint2 tb_lane8;
#define TB_UNROLLED _Pragma("unroll")
#define TB_ROLLED _Pragma("unroll 1")
#define TB_MULTIPLY_HIGH(a, b) __umulhi(a, b)
#define TB_DEVICE_LOAD(type, address) (*(const type *)(address))
#define TB_DEVICE_STORE(type, address, value) (*(type *)(address) = (value))
#else
typedef struct tb_lane16 {
    uint32_t x, y, z, w;
} tb_lane16;
typedef struct tb_lane8 {
    uint32_t x, y;
} tb_lane8;
#define TB_UNROLLED
#define TB_ROLLED
#define TB_MULTIPLY_HIGH(a, b) ((uint32_t)((uint64_t)(a) * (b) >> 32))
/* Whoever compiles this for a processor says what an address of the device is to it; aligned, as a GPU wants
 * it. */
#ifndef TB_DEVICE_ADDRESS
#define TB_DEVICE_ADDRESS(address, bytes) ((void *)(uintptr_t)(address))
#endif
#define TB_DEVICE_LOAD(type, address) (*(const type *)TB_DEVICE_ADDRESS(address, sizeof(type)))
#define TB_DEVICE_STORE(type, address, value) (*(type *)TB_DEVICE_ADDRESS(address, sizeof(type)) = (value))
#endif

/* ---- where a lane lies -----------------------------------------------------------------------------------
 */

TB_FUNCTION uint32_t tb_divide(uint32_t number, tb_divisor by) {
    return (TB_MULTIPLY_HIGH(number, by.magic) + number) >> by.shift;
}

typedef struct tb_lane {
    uint64_t destination, source;
} tb_lane;

TB_FUNCTION tb_lane tb_find_lane(const tb_cuda_move *move, uint64_t loops, uint32_t lane) {
    uint32_t row = tb_divide(lane, move->run_divisor);
    uint32_t in_run = lane - row * move->run_lanes;
    tb_lane at = {move->destination + (uint64_t)in_run * move->destination_lane,
                  move->source + (uint64_t)in_run * move->source_lane};
    TB_ROLLED
    for (uint32_t i = move->loop_count; i > 0; i--) {
        uint64_t address = loops + (move->first_loop + i - 1) * sizeof(tb_cuda_loop);
        uint32_t index = row;
        if (i > 1) {
            tb_divisor by = TB_DEVICE_LOAD(tb_divisor, address + 8);
            uint32_t count = TB_DEVICE_LOAD(uint32_t, address);
            row = tb_divide(index, by);
            index -= row * count;
        }
        at.destination += (uint64_t)(index * TB_DEVICE_LOAD(int64_t, address + 16));
        at.source += (uint64_t)(index * TB_DEVICE_LOAD(int64_t, address + 24));
    }
    return at;
}

/* The move that a tile is of: the last one that begins at it or before. */
TB_FUNCTION tb_cuda_move tb_find_move(const tb_cuda_launch *launch, uint32_t tile) {
    uint32_t low = launch->first_move;
    uint32_t high = launch->first_move + launch->move_count;
    TB_ROLLED
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        uint64_t address = launch->moves + (uint64_t)middle * sizeof(tb_cuda_move);
        if (TB_DEVICE_LOAD(uint32_t, address + 24) <= tile) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return TB_DEVICE_LOAD(tb_cuda_move, launch->moves + (uint64_t)low * sizeof(tb_cuda_move));
}

/* ---- lanes ------------------------------------------------------------------------------------------------
 */

TB_FUNCTION uint64_t tb_load_bits(uint64_t address, uint32_t bytes) {
    switch (bytes) {
    case 8:
        return TB_DEVICE_LOAD(uint64_t, address);
    case 4:
        return TB_DEVICE_LOAD(uint32_t, address);
    case 2:
        return TB_DEVICE_LOAD(uint16_t, address);
    default:
        return TB_DEVICE_LOAD(uint8_t, address);
    }
}

TB_FUNCTION void tb_store_bits(uint64_t address, uint32_t bytes, uint64_t bits) {
    switch (bytes) {
    case 8:
        TB_DEVICE_STORE(uint64_t, address, bits);
        break;
    case 4:
        TB_DEVICE_STORE(uint32_t, address, (uint32_t)bits);
        break;
    case 2:
        TB_DEVICE_STORE(uint16_t, address, (uint16_t)bits);
        break;
    default:
        TB_DEVICE_STORE(uint8_t, address, (uint8_t)bits);
    }
}

/* The same if elements lie at any byte. */
TB_FUNCTION uint64_t tb_load_element(const tb_cuda_move *move, uint64_t address, uint32_t bytes) {
    if ((move->flags & TB_CUDA_UNALIGNED) == 0) {
        return tb_load_bits(address, bytes);
    }
    uint64_t bits = 0;
    TB_ROLLED
    for (uint32_t i = 0; i < bytes; i++) {
        bits |= (uint64_t)TB_DEVICE_LOAD(uint8_t, address + i) << (8 * i);
    }
    return bits;
}

TB_FUNCTION void tb_store_element(const tb_cuda_move *move, uint64_t address, uint32_t bytes, uint64_t bits) {
    if ((move->flags & TB_CUDA_UNALIGNED) == 0) {
        tb_store_bits(address, bytes, bits);
        return;
    }
    TB_ROLLED
    for (uint32_t i = 0; i < bytes; i++) {
        TB_DEVICE_STORE(uint8_t, address + i, (uint8_t)(bits >> (8 * i)));
    }
}

/* `bytes`, a constant, of up to 64, as words in registers, low bytes first. */
TB_FUNCTION void tb_load_words(uint32_t *words, uint64_t address, uint32_t bytes) {
    if (bytes >= 16) {
        TB_UNROLLED
        for (uint32_t i = 0; i < bytes / 16; i++) {
            tb_lane16 part = TB_DEVICE_LOAD(tb_lane16, address + 16 * i);
            words[4 * i] = part.x;
            words[4 * i + 1] = part.y;
            words[4 * i + 2] = part.z;
            words[4 * i + 3] = part.w;
        }
    } else {
        uint64_t bits = tb_load_bits(address, bytes);
        words[0] = (uint32_t)bits;
        words[1] = (uint32_t)(bits >> 32);
    }
}

TB_FUNCTION void tb_store_words(const uint32_t *words, uint64_t address, uint32_t bytes) {
    if (bytes >= 16) {
        TB_UNROLLED
        for (uint32_t i = 0; i < bytes / 16; i++) {
            tb_lane16 part = {words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]};
            TB_DEVICE_STORE(tb_lane16, address + 16 * i, part);
        }
    } else {
        tb_store_bits(address, bytes, words[0] | (uint64_t)words[1] << 32);
    }
}

/* Element `index` of `bytes` bytes among the words; both are constants. */
TB_FUNCTION uint64_t tb_word_bits(const uint32_t *words, uint32_t index, uint32_t bytes) {
    if (bytes == 8) {
        return words[2 * index] | (uint64_t)words[2 * index + 1] << 32;
    }
    uint32_t in_word = 4 / bytes;
    uint32_t shifted = words[index / in_word] >> (8 * bytes * (index % in_word));
    return bytes == 4 ? shifted : shifted & ((1u << (8 * bytes)) - 1u);
}

TB_FUNCTION void tb_add_word_bits(uint32_t *words, uint32_t index, uint32_t bytes, uint64_t bits) {
    if (bytes == 8) {
        words[2 * index] = (uint32_t)bits;
        words[2 * index + 1] = (uint32_t)(bits >> 32);
        return;
    }
    uint32_t in_word = 4 / bytes;
    words[index / in_word] |= (uint32_t)bits << (8 * bytes * (index % in_word));
}

enum { TB_LANE_WORDS = 16 };

/* Both types and the number of elements are constants. */
TB_FUNCTION void tb_cast_words(uint32_t *out, const uint32_t *in, uint32_t to, uint32_t from,
                               uint32_t elements) {
    TB_UNROLLED
    for (uint32_t i = 0; i < TB_LANE_WORDS; i++) {
        out[i] = 0;
    }
    TB_UNROLLED
    for (uint32_t i = 0; i < elements; i++) {
        uint64_t bits = tb_word_bits(in, i, tb_element_bytes(from));
        tb_add_word_bits(out, i, tb_element_bytes(to), tb_bits_of_number(to, tb_number_of_bits(from, bits)));
    }
}

/* ---- a thread's part of a tile: loads first, so that all of them are under way at once
 * ------------------------- */

/* Two of the thread's lanes at once. */
#define TB_COPY_LANES(type)                                                                                  \
    TB_ROLLED                                                                                                \
    for (uint32_t half = 0; half < TB_CUDA_UNROLL; half += 2) {                                              \
        uint32_t one = first + half * TB_CUDA_THREADS;                                                       \
        uint32_t two = one + TB_CUDA_THREADS;                                                                \
        if (two < move->lanes) {                                                                             \
            tb_lane at = tb_find_lane(move, loops, one);                                                     \
            tb_lane next = tb_find_lane(move, loops, two);                                                   \
            type value = TB_DEVICE_LOAD(type, at.source);                                                    \
            type next_value = TB_DEVICE_LOAD(type, next.source);                                             \
            TB_DEVICE_STORE(type, at.destination, value);                                                    \
            TB_DEVICE_STORE(type, next.destination, next_value);                                             \
        } else if (one < move->lanes) {                                                                      \
            tb_lane at = tb_find_lane(move, loops, one);                                                     \
            TB_DEVICE_STORE(type, at.destination, TB_DEVICE_LOAD(type, at.source));                          \
        }                                                                                                    \
    }

/* first: the thread's first lane. */
TB_FUNCTION void tb_copy_tile(const tb_cuda_move *move, uint64_t loops, uint32_t first) {
    switch (move->source_lane) {
    case 16:
        TB_COPY_LANES(tb_lane16)
        break;
    case 8:
        TB_COPY_LANES(tb_lane8)
        break;
    case 4:
        TB_COPY_LANES(uint32_t)
        break;
    case 2:
        TB_COPY_LANES(uint16_t)
        break;
    default:
        TB_COPY_LANES(uint8_t)
    }
}

/* elements: of a lane; it and both types are constants. */
TB_FUNCTION void tb_cast_lanes(const tb_cuda_move *move, uint64_t loops, uint32_t first, uint32_t to,
                               uint32_t from, uint32_t elements) {
    uint32_t in[2][TB_LANE_WORDS];
    uint64_t place[2];
    TB_UNROLLED
    for (uint32_t half = 0; half < TB_CUDA_UNROLL; half += 2) {
        TB_UNROLLED
        for (uint32_t turn = 0; turn < 2; turn++) {
            if (first + (half + turn) * TB_CUDA_THREADS < move->lanes) {
                tb_lane at = tb_find_lane(move, loops, first + (half + turn) * TB_CUDA_THREADS);
                tb_load_words(in[turn], at.source, elements * tb_element_bytes(from));
                place[turn] = at.destination;
            }
        }
        TB_UNROLLED
        for (uint32_t turn = 0; turn < 2; turn++) {
            if (first + (half + turn) * TB_CUDA_THREADS < move->lanes) {
                uint32_t out[TB_LANE_WORDS];
                tb_cast_words(out, in[turn], to, from, elements);
                tb_store_words(out, place[turn], elements * tb_element_bytes(to));
            }
        }
    }
}

TB_FUNCTION void tb_cast_tile(const tb_cuda_move *move, uint64_t loops, uint32_t first, uint32_t to,
                              uint32_t from) {
    switch (move->lane_elements) {
    case 8:
        tb_cast_lanes(move, loops, first, to, from, 8);
        break;
    case 4:
        tb_cast_lanes(move, loops, first, to, from, 4);
        break;
    default:
        tb_cast_lanes(move, loops, first, to, from, 1);
    }
}

/* Any two types, an element at a time. */
TB_FUNCTION void tb_cast_any_tile(const tb_cuda_move *move, uint64_t loops, uint32_t first) {
    uint64_t bits[TB_CUDA_UNROLL];
    uint64_t to[TB_CUDA_UNROLL];
    TB_UNROLLED
    for (uint32_t turn = 0; turn < TB_CUDA_UNROLL; turn++) {
        if (first + turn * TB_CUDA_THREADS < move->lanes) {
            tb_lane at = tb_find_lane(move, loops, first + turn * TB_CUDA_THREADS);
            bits[turn] = tb_load_element(move, at.source, move->source_lane);
            to[turn] = at.destination;
        }
    }
    TB_UNROLLED
    for (uint32_t turn = 0; turn < TB_CUDA_UNROLL; turn++) {
        if (first + turn * TB_CUDA_THREADS < move->lanes) {
            tb_number number = tb_number_of_bits(move->source_type, bits[turn]);
            tb_store_element(move, to[turn], move->destination_lane,
                             tb_bits_of_number(move->destination_type, number));
        }
    }
}

/*
 * Folds contributions into accumulators. What is finished takes the first bytes of its accumulator, and stays
 * there: no thread may write where another one still has to read.
 */
TB_FUNCTION void tb_fold_tile(const tb_cuda_move *move, uint64_t loops, uint32_t first) {
    uint64_t in[TB_CUDA_UNROLL];
    uint64_t acc[TB_CUDA_UNROLL];
    uint64_t to[TB_CUDA_UNROLL];
    uint32_t dtype = move->source_type;
    uint32_t acc_bytes = tb_element_bytes(tb_accumulator_type(dtype));
    TB_UNROLLED
    for (uint32_t turn = 0; turn < TB_CUDA_UNROLL; turn++) {
        if (first + turn * TB_CUDA_THREADS < move->lanes) {
            tb_lane at = tb_find_lane(move, loops, first + turn * TB_CUDA_THREADS);
            to[turn] = at.destination;
            in[turn] = tb_load_element(move, at.source, move->source_lane);
            acc[turn] = move->flags & TB_CUDA_FIRST ? 0 : tb_load_element(move, at.destination, acc_bytes);
        }
    }
    TB_UNROLLED
    for (uint32_t turn = 0; turn < TB_CUDA_UNROLL; turn++) {
        if (first + turn * TB_CUDA_THREADS < move->lanes) {
            uint64_t folded = move->flags & TB_CUDA_FIRST
                                ? tb_accumulator_of_bits(dtype, in[turn])
                                : tb_combine_bits(dtype, move->partial_op, acc[turn], in[turn]);
            if (move->flags & TB_CUDA_LAST) {
                tb_store_element(move, to[turn], tb_element_bytes(dtype),
                                 tb_finished_bits(dtype, folded, move->divide_by));
            } else {
                tb_store_element(move, to[turn], acc_bytes, folded);
            }
        }
    }
}

/* ---- kernels
 * ------------------------------------------------------------------------------------------------- */

/* The tiles of one block; `tile_of` moves one thread's part of a tile. */
#define TB_TILES_OF_BLOCK(launch, block, blocks, thread, tile_of)                                            \
    TB_ROLLED                                                                                                \
    for (uint32_t tile_ = (block); tile_ < (launch)->tile_count; tile_ += (blocks)) {                        \
        uint32_t tile = (launch)->first_tile + tile_;                                                        \
        tb_cuda_move move = tb_find_move(launch, tile);                                                      \
        uint32_t first = (tile - move.first_tile) * TB_CUDA_TILE + (thread);                                 \
        tile_of;                                                                                             \
    }

#endif
