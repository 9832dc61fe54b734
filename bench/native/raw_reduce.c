/*
 * raw_reduce TENSORS ROWS COLUMNS: float32 matrices of four sources, in two pairs whose contributions add up, to
 * rows cut among four targets. Source i reduces quarter i: its partner's contribution comes over their socket, is added
 * to its own, and goes to target i. In mode 1 there is nothing to add: source i sends its own quarter i.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raw.h"

enum { SOURCES = 4, STAGED = 256 << 10 }; /* what stays in the second-level cache was fastest */

static size_t tensors, rows, columns;

typedef struct reduction {
    int rank;
    raw_flow give;    /* source: the partner's quarter of ours, to the partner */
    raw_flow arrive;  /* target: its quarter */
    int partner_fd, target_fd;
    raw_box own;      /* source: our quarter */
    uint8_t *staged;  /* what was added and waits for the target's socket: a ring */
} reduction;

static size_t quarter_bytes(void) {
    return rows / SOURCES * columns * 4;
}

static raw_box quarter(uint8_t *memory, size_t tensor_bytes, size_t which) {
    size_t bytes = quarter_bytes();
    return (raw_box){.first = memory + which * bytes, .tensors = tensors, .tensor_bytes = tensor_bytes,
                     .rows = 1, .run = bytes, .stride = bytes};
}

static float contribution(size_t tensor, size_t element, int rank) {
    return (float)((tensor * 31 + element) % 4093) + (float)(rank % 2 * 5);
}

static void *setup(const raw_mesh *mesh, int rank) {
    reduction *state = calloc(1, sizeof *state);
    if (state == NULL) {
        raw_die("calloc");
    }
    state->rank = rank;
    if (rank >= SOURCES) {
        uint8_t *memory = raw_touched(tensors * quarter_bytes());
        state->arrive = (raw_flow){.fd = mesh->fd[rank][rank - SOURCES], .box = quarter(memory, quarter_bytes(), 0)};
        return state;
    }
    size_t tensor_bytes = SOURCES * quarter_bytes(), elements = tensor_bytes / 4;
    uint8_t *memory = raw_touched(tensors * tensor_bytes);
    for (size_t tensor = 0; tensor < tensors; tensor++) {
        float *values = (float *)(void *)(memory + tensor * tensor_bytes);
        for (size_t element = 0; element < elements; element++) {
            values[element] = contribution(tensor, element, rank);
        }
    }
    int partner = rank ^ 1;
    state->partner_fd = mesh->fd[rank][partner];
    state->target_fd = mesh->fd[rank][rank + SOURCES];
    state->own = quarter(memory, tensor_bytes, (size_t)rank);
    state->give = (raw_flow){.fd = state->partner_fd, .box = quarter(memory, tensor_bytes, (size_t)partner)};
    state->staged = raw_touched(STAGED);
    return state;
}

/* Our own value of a position in our quarters. */
static const uint8_t *own_at(const reduction *state, size_t position) {
    return state->own.first + position / state->own.run * state->own.tensor_bytes + position % state->own.run;
}

static void add_own(const reduction *state, size_t from, size_t to) {
    while (from < to) {
        size_t count = state->own.run - from % state->own.run;
        size_t ring = STAGED - from % STAGED;
        count = count < ring ? count : ring;
        count = count < to - from ? count : to - from;
        float *sum = (float *)(void *)(state->staged + from % STAGED);
        const float *own = (const float *)(const void *)own_at(state, from);
        for (size_t index = 0; index < count / 4; index++) {
            sum[index] += own[index];
        }
        from += count;
    }
}

static raw_flow staged_run(const reduction *state, int fd, size_t position, size_t bytes) {
    size_t at = position % STAGED;
    bytes = bytes < STAGED - at ? bytes : STAGED - at;
    return (raw_flow){.fd = fd, .box = {.first = state->staged + at, .tensors = 1, .rows = 1, .run = bytes, .stride = bytes}};
}

/* Receives, adds and sends on, as far as the sockets and the ring allow; gives the partner its part meanwhile. */
static void reduce_round(reduction *state, size_t call_bytes) {
    size_t total = raw_box_bytes(&state->own), received = 0, added = 0, sent = 0;
    state->give.done = 0;
    while (sent < total || !raw_flow_ended(&state->give)) {
        size_t room = STAGED - (received - sent);
        struct pollfd polls[2] = {
            {.fd = state->partner_fd,
             .events = (short)((received < total && room > 0 ? POLLIN : 0) | (raw_flow_ended(&state->give) ? 0 : POLLOUT))},
            {.fd = added > sent ? state->target_fd : -1, .events = POLLOUT},
        };
        if (poll(polls, 2, -1) < 0) {
            raw_die("poll");
        }
        if (polls[0].revents & POLLOUT) {
            raw_flow_send(&state->give, call_bytes);
        }
        if (polls[0].revents & POLLIN) {
            size_t left = total - received;
            raw_flow in = staged_run(state, state->partner_fd, received, left < room ? left : room);
            raw_flow_receive(&in, call_bytes);
            received += in.done;
            size_t whole = received & ~(size_t)3;
            add_own(state, added, whole);
            added = whole;
        }
        if (polls[1].revents & POLLOUT) {
            raw_flow out = staged_run(state, state->target_fd, sent, added - sent);
            raw_flow_send(&out, call_bytes);
            sent += out.done;
        }
    }
}

static void move_alone(raw_flow *flow, short event, size_t call_bytes) {
    struct pollfd polled = {.fd = flow->fd, .events = event};
    flow->done = 0;
    while (!raw_flow_ended(flow)) {
        if (poll(&polled, 1, -1) < 0) {
            raw_die("poll");
        }
        if (event == POLLIN) {
            raw_flow_receive(flow, call_bytes);
        } else {
            raw_flow_send(flow, call_bytes);
        }
    }
}

static void round_of(void *of, size_t call_bytes, size_t mode) {
    reduction *state = of;
    if (state->rank >= SOURCES) {
        move_alone(&state->arrive, POLLIN, call_bytes);
    } else if (mode == 0) {
        reduce_round(state, call_bytes);
    } else {
        raw_flow out = {.fd = state->target_fd, .box = state->own};
        move_alone(&out, POLLOUT, call_bytes);
    }
}

static void check(void *of) {
    const reduction *state = of;
    if (state->rank < SOURCES) {
        return;
    }
    size_t elements = quarter_bytes() / 4, first = (size_t)(state->rank - SOURCES) * elements;
    for (size_t tensor = 0; tensor < tensors; tensor++) {
        const float *values = (const float *)(const void *)(state->arrive.box.first + tensor * quarter_bytes());
        for (size_t element = 0; element < elements; element++) {
            float expected = contribution(tensor, first + element, 0) + contribution(tensor, first + element, 1);
            if (values[element] != expected) {
                fprintf(stderr, "raw_reduce: %g, not %g\n", (double)values[element], (double)expected);
                exit(1);
            }
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "raw_reduce TENSORS ROWS COLUMNS\n");
        return 2;
    }
    tensors = strtoul(argv[1], NULL, 10);
    rows = strtoul(argv[2], NULL, 10);
    columns = strtoul(argv[3], NULL, 10);
    if (tensors == 0 || rows == 0 || columns == 0 || rows % SOURCES != 0) {
        fprintf(stderr, "raw_reduce: sizes that do not divide\n");
        return 2;
    }
    static uint8_t wanted[RAW_RANKS][RAW_RANKS];
    for (int source = 0; source < SOURCES; source++) {
        wanted[source][source + SOURCES] = 1;
        wanted[source][source ^ 1] = 1;
    }
    static raw_mesh mesh;
    raw_mesh_connect(&mesh, 2 * SOURCES, wanted);
    raw_program program = {setup, round_of, check};
    raw_lead(&mesh, &program);
    return 0;
}
