/*
 * raw_copy SOURCES TARGETS TENSORS ROWS COLUMNS: float32 matrices from rows cut among the sources to columns cut among the
 * targets, all in shared mappings that every process has: each target copies its boxes by memcpy, a row at a time, or
 * call_bytes at a time if both sides are contiguous.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "raw.h"

static size_t sources, targets, tensors, rows, columns;
static uint8_t *memory[RAW_RANKS]; /* of each rank */

static float value_at(size_t tensor, size_t element) {
    return (float)((tensor * 7919 + element) % 16381);
}

static size_t bytes_of(size_t rank) {
    return rank < sources ? 4 * tensors * (rows / sources) * columns : 4 * tensors * rows * (columns / targets);
}

static float *local(size_t rank) {
    return (float *)(void *)memory[rank];
}

static void fill(size_t source) {
    size_t elements = rows / sources * columns;
    for (size_t tensor = 0; tensor < tensors; tensor++) {
        for (size_t i = 0; i < elements; i++) {
            local(source)[tensor * elements + i] = value_at(tensor, source * elements + i);
        }
    }
}

static void *setup(const raw_mesh *mesh, int rank) {
    static size_t own;
    (void)mesh;
    own = (size_t)rank;
    if (own < sources) {
        fill(own);
    } else {
        memset(memory[own], 1, bytes_of(own));
    }
    /* Every page of every source is mapped before the first round. */
    volatile uint8_t sum = 0;
    for (size_t source = 0; source < sources; source++) {
        for (size_t at = 0; at < bytes_of(source); at += 4096) {
            sum = (uint8_t)(sum + memory[source][at]);
        }
    }
    return &own;
}

static void copy_whole(uint8_t *to, const uint8_t *from, size_t bytes, size_t call_bytes) {
    for (size_t at = 0; at < bytes; at += call_bytes) {
        memcpy(to + at, from + at, bytes - at < call_bytes ? bytes - at : call_bytes);
    }
}

static void copy_boxes(size_t rank, size_t source) {
    size_t source_rows = rows / sources, run = 4 * (columns / targets), target = rank - sources;
    for (size_t tensor = 0; tensor < tensors; tensor++) {
        const uint8_t *from = memory[source] + 4 * tensor * source_rows * columns + target * run;
        uint8_t *to = memory[rank] + (tensor * rows + source * source_rows) * run;
        for (size_t row = 0; row < source_rows; row++) {
            memcpy(to + row * run, from + row * 4 * columns, run);
        }
    }
}

static void round_of(void *of, size_t call_bytes, size_t mode) {
    size_t rank = *(size_t *)of;
    (void)mode;
    if (rank < sources) {
        return;
    }
    if (sources == 1 && targets == 1) {
        copy_whole(memory[rank], memory[0], bytes_of(rank), call_bytes);
        return;
    }
    for (size_t source = 0; source < sources; source++) {
        copy_boxes(rank, source);
    }
}

static void check(void *of) {
    size_t rank = *(size_t *)of, width = columns / targets;
    for (size_t tensor = 0; rank >= sources && tensor < tensors; tensor++) {
        for (size_t i = 0; i < rows * width; i++) {
            size_t element = i / width * columns + (rank - sources) * width + i % width;
            if (local(rank)[tensor * rows * width + i] != value_at(tensor, element)) {
                fprintf(stderr, "raw_copy: element %zu of tensor %zu is wrong\n", element, tensor);
                exit(1);
            }
        }
    }
}

int main(int argc, char **argv) {
    raw_sizes sizes = {&sources, &targets, &tensors, &rows, &columns};
    raw_read_sizes(argc, argv, &sizes);
    for (size_t rank = 0; rank < sources + targets; rank++) {
        memory[rank] = mmap(NULL, bytes_of(rank), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory[rank] == MAP_FAILED) {
            raw_die("mmap");
        }
    }
    static raw_mesh mesh;
    mesh.ranks = (int)(sources + targets);
    raw_program program = {setup, round_of, check};
    raw_lead(&mesh, &program);
    return 0;
}
