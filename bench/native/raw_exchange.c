/*
 * raw_exchange SOURCES TARGETS TENSORS ROWS COLUMNS: float32 matrices from rows cut among the sources to columns cut
 * among the targets, each box straight from its rows into its rows, over one socket a pair.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "raw.h"

static size_t sources, targets, tensors, rows, columns;

typedef struct exchange {
    int sends;
    int flows;
    raw_flow flow[RAW_RANKS];
    size_t offset[RAW_RANKS]; /* of a box in its matrix, in elements */
} exchange;

static float value_at(size_t tensor, size_t element) {
    return (float)((tensor * 7919 + element) % 16381);
}

static float *element_at(const raw_box *box, size_t tensor, size_t row, size_t column) {
    return (float *)(void *)(box->first + tensor * box->tensor_bytes + row * box->stride) + column;
}

static void visit(const exchange *state, void (*each)(float *at, float value)) {
    for (int flow = 0; flow < state->flows; flow++) {
        const raw_box *box = &state->flow[flow].box;
        for (size_t tensor = 0; tensor < tensors; tensor++) {
            for (size_t row = 0; row < box->rows; row++) {
                for (size_t column = 0; column < box->run / 4; column++) {
                    each(element_at(box, tensor, row, column),
                         value_at(tensor, state->offset[flow] + row * columns + column));
                }
            }
        }
    }
}

static void fill(float *at, float value) {
    *at = value;
}

static void compare(float *at, float value) {
    if (*at != value) {
        fprintf(stderr, "raw_exchange: %g, not %g\n", (double)*at, (double)value);
        exit(1);
    }
}

/* A source holds rows / sources of each tensor, a target columns / targets; what they share is one box. */
static void *setup(const raw_mesh *mesh, int rank) {
    exchange *state = calloc(1, sizeof *state);
    if (state == NULL) {
        raw_die("calloc");
    }
    size_t own = (size_t)rank, source_rows = rows / sources, target_columns = columns / targets;
    state->sends = own < sources;
    state->flows = (int)(state->sends ? targets : sources);
    size_t tensor_bytes = 4 * (state->sends ? source_rows * columns : rows * target_columns);
    uint8_t *memory = raw_touched(tensors * tensor_bytes);
    for (int flow = 0; flow < state->flows; flow++) {
        size_t other = (size_t)flow, target = own - sources;
        raw_box box = {.tensors = tensors, .tensor_bytes = tensor_bytes, .rows = source_rows, .run = 4 * target_columns};
        if (state->sends) {
            box.first = memory + other * box.run;
            box.stride = 4 * columns;
            state->offset[flow] = own * source_rows * columns + other * target_columns;
        } else {
            box.first = memory + other * source_rows * box.run;
            box.stride = box.run;
            state->offset[flow] = other * source_rows * columns + target * target_columns;
        }
        int peer = state->sends ? (int)sources + flow : flow;
        state->flow[flow] = (raw_flow){.fd = mesh->fd[rank][peer], .box = box};
    }
    if (state->sends) {
        visit(state, fill);
    }
    return state;
}

static void round_of(void *of, size_t call_bytes, size_t mode) {
    (void)mode;
    exchange *state = of;
    struct pollfd polls[RAW_RANKS];
    for (int flow = 0; flow < state->flows; flow++) {
        state->flow[flow].done = 0;
        polls[flow] = (struct pollfd){.fd = state->flow[flow].fd, .events = state->sends ? POLLOUT : POLLIN};
    }
    for (int left = state->flows; left > 0;) {
        if (poll(polls, (nfds_t)state->flows, -1) < 0) {
            raw_die("poll");
        }
        for (int flow = 0; flow < state->flows; flow++) {
            if (polls[flow].revents == 0) {
                continue;
            }
            if (state->sends) {
                raw_flow_send(&state->flow[flow], call_bytes);
            } else {
                raw_flow_receive(&state->flow[flow], call_bytes);
            }
            if (raw_flow_ended(&state->flow[flow])) {
                polls[flow].fd = -1;
                left--;
            }
        }
    }
}

static void check(void *of) {
    const exchange *state = of;
    if (!state->sends) {
        visit(state, compare);
    }
}

int main(int argc, char **argv) {
    raw_sizes sizes = {&sources, &targets, &tensors, &rows, &columns};
    raw_read_sizes(argc, argv, &sizes);
    raw_program program = {setup, round_of, check};
    raw_lead_sides(sources, targets, &program);
    return 0;
}
