/*
 * raw_ucx SOURCES TARGETS TENSORS ROWS COLUMNS: as raw_exchange, by UCX: a target reads each box of its sources' memory into
 * its own, a get for each run of it, or for so many bytes of it as a call has if rows of both lie in one row. Both sides
 * sleep when UCX has nothing to do: there may be more of them than cores. UCX_TLS says over what.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ucp/api/ucp.h>

#include "raw.h"

enum { UNDER_WAY = 128, WORD_BYTES = 4096 };

static size_t sources, targets, tensors, rows, columns;

/* What a source says to its targets, over their socket. */
typedef struct word {
    uint64_t base;
    uint32_t address_bytes, key_bytes;
    uint8_t bytes[WORD_BYTES];
} word;

/* The other end of a box. */
typedef struct way {
    int fd;
    ucp_ep_h ep;
    ucp_rkey_h key;
    uint64_t there; /* target: where the box begins at the source */
    raw_box box;    /* of the own memory */
    size_t stride;  /* of its rows at the source */
    size_t offset;  /* in its matrix, in elements */
    int over;       /* source: it was read in this round */
} way;

typedef struct exchange {
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_mem_h memory;
    int events; /* readable when the worker has something to do */
    int reads;
    int ways;
    way way[RAW_RANKS];
    size_t under_way;
    size_t source_tensor_bytes;
} exchange;

static void must(ucs_status_t status, const char *what) {
    if (status != UCS_OK) {
        fprintf(stderr, "raw_ucx: %s: %s\n", what, ucs_status_string(status));
        exit(1);
    }
}

static void move_word(int fd, void *bytes, size_t count, int sends) {
    for (size_t done = 0; done < count;) {
        struct pollfd one = {.fd = fd, .events = sends ? POLLOUT : POLLIN};
        poll(&one, 1, -1);
        ssize_t moved = sends ? write(fd, (uint8_t *)bytes + done, count - done) : read(fd, (uint8_t *)bytes + done, count - done);
        if (moved > 0) {
            done += (size_t)moved;
        } else if (moved == 0) {
            exit(1); /* the other end is gone */
        }
    }
}

static float value_at(size_t tensor, size_t element) {
    return (float)((tensor * 7919 + element) % 16381);
}

static void visit(const exchange *state, int compares) {
    for (int index = 0; index < state->ways; index++) {
        const way *to = &state->way[index];
        for (size_t tensor = 0; tensor < tensors; tensor++) {
            for (size_t row = 0; row < to->box.rows; row++) {
                float *at = (float *)(void *)(to->box.first + tensor * to->box.tensor_bytes + row * to->box.stride);
                for (size_t column = 0; column < to->box.run / 4; column++) {
                    float value = value_at(tensor, to->offset + row * columns + column);
                    if (compares && at[column] != value) {
                        fprintf(stderr, "raw_ucx: %g, not %g\n", (double)at[column], (double)value);
                        exit(1);
                    }
                    at[column] = value;
                }
            }
        }
    }
}

static void open_ucx(exchange *state, void *memory, size_t bytes) {
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP};
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE, .thread_mode = UCS_THREAD_MODE_SINGLE};
    ucp_mem_map_params_t map = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
                                .address = memory,
                                .length = bytes};
    must(ucp_init(&params, NULL, &state->context), "ucp_init");
    must(ucp_worker_create(state->context, &worker, &state->worker), "ucp_worker_create");
    must(ucp_worker_get_efd(state->worker, &state->events), "ucp_worker_get_efd");
    must(ucp_mem_map(state->context, &map, &state->memory), "ucp_mem_map");
}

static void say(const exchange *state, int fd, void *memory) {
    word said = {.base = (uint64_t)(uintptr_t)memory};
    ucp_address_t *address;
    void *key;
    size_t address_bytes, key_bytes;
    must(ucp_worker_get_address(state->worker, &address, &address_bytes), "ucp_worker_get_address");
    must(ucp_rkey_pack(state->context, state->memory, &key, &key_bytes), "ucp_rkey_pack");
    if (address_bytes + key_bytes > WORD_BYTES) {
        fprintf(stderr, "raw_ucx: an address of %zu bytes\n", address_bytes);
        exit(1);
    }
    said.address_bytes = (uint32_t)address_bytes;
    said.key_bytes = (uint32_t)key_bytes;
    memcpy(said.bytes, address, address_bytes);
    memcpy(said.bytes + address_bytes, key, key_bytes);
    move_word(fd, &said, sizeof said, 1);
    ucp_rkey_buffer_release(key);
    ucp_worker_release_address(state->worker, address);
}

static void hear(const exchange *state, way *from) {
    word said;
    move_word(from->fd, &said, sizeof said, 0);
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = (ucp_address_t *)said.bytes};
    must(ucp_ep_create(state->worker, &params, &from->ep), "ucp_ep_create");
    must(ucp_ep_rkey_unpack(from->ep, said.bytes + said.address_bytes, &from->key), "ucp_ep_rkey_unpack");
    from->there += said.base;
}

/* A source holds rows / sources of each tensor, a target columns / targets; what they share is one box. */
static void *setup(const raw_mesh *mesh, int rank) {
    exchange *state = calloc(1, sizeof *state);
    if (state == NULL) {
        raw_die("calloc");
    }
    size_t own = (size_t)rank, source_rows = rows / sources, target_columns = columns / targets;
    state->reads = own >= sources;
    state->ways = (int)(state->reads ? sources : targets);
    state->source_tensor_bytes = 4 * source_rows * columns;
    size_t tensor_bytes = state->reads ? 4 * rows * target_columns : state->source_tensor_bytes;
    uint8_t *memory = raw_touched(tensors * tensor_bytes);
    open_ucx(state, memory, tensors * tensor_bytes);
    for (int index = 0; index < state->ways; index++) {
        way *to = &state->way[index];
        size_t other = (size_t)index, target = own - sources;
        to->fd = mesh->fd[rank][state->reads ? index : (int)sources + index];
        to->stride = 4 * columns;
        to->box = (raw_box){.tensors = tensors, .tensor_bytes = tensor_bytes, .rows = source_rows, .run = 4 * target_columns};
        if (state->reads) {
            to->box.first = memory + other * source_rows * to->box.run;
            to->box.stride = to->box.run;
            to->there = target * to->box.run;
            to->offset = other * source_rows * columns + target * target_columns;
        } else {
            to->box.first = memory + other * to->box.run;
            to->box.stride = 4 * columns;
            to->offset = own * source_rows * columns + other * target_columns;
            say(state, to->fd, memory);
        }
    }
    for (int index = 0; index < state->ways && state->reads; index++) {
        hear(state, &state->way[index]);
    }
    if (!state->reads) {
        visit(state, 0);
    }
    return state;
}

static void came(void *request, ucs_status_t status, void *of) {
    exchange *state = of;
    must(status, "a get");
    state->under_way--;
    ucp_request_free(request);
}

/* Lets the worker go on, and waits until there is something to do for it, or for a socket if a source waits. */
static void go_on(const exchange *state) {
    if (ucp_worker_progress(state->worker) != 0 || ucp_worker_arm(state->worker) != UCS_OK) {
        return;
    }
    struct pollfd polls[1 + RAW_RANKS] = {{.fd = state->events, .events = POLLIN}};
    int count = 1;
    for (int index = 0; index < state->ways && !state->reads; index++) {
        polls[count++] = (struct pollfd){.fd = state->way[index].over ? -1 : state->way[index].fd, .events = POLLIN};
    }
    poll(polls, (nfds_t)count, -1);
}

static void get(exchange *state, const way *from, uint8_t *to, uint64_t there, size_t bytes) {
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMH,
                                 .cb.send = came,
                                 .user_data = state,
                                 .memh = state->memory};
    while (state->under_way >= UNDER_WAY) {
        go_on(state);
    }
    ucs_status_ptr_t request = ucp_get_nbx(from->ep, to, bytes, there, from->key, &param);
    if (UCS_PTR_IS_ERR(request)) {
        must(UCS_PTR_STATUS(request), "ucp_get_nbx");
    }
    state->under_way += request != NULL;
}

static void read_tensor(exchange *state, const way *from, size_t tensor, size_t call_bytes) {
    const raw_box *box = &from->box;
    uint8_t *to = box->first + tensor * box->tensor_bytes;
    uint64_t there = from->there + tensor * state->source_tensor_bytes;
    /* A run for each row, or all rows as one if they follow each other at both ends. */
    int whole = from->stride == box->run && box->stride == box->run;
    size_t runs = whole ? 1 : box->rows, run = whole ? box->rows * box->run : box->run;
    for (size_t row = 0; row < runs; row++) {
        for (size_t done = 0; done < run; done += call_bytes) {
            size_t bytes = run - done < call_bytes ? run - done : call_bytes;
            get(state, from, to + row * box->stride + done, there + row * from->stride + done, bytes);
        }
    }
}

static void round_of(void *of, size_t call_bytes, size_t mode) {
    (void)mode;
    exchange *state = of;
    char over = 1;
    for (size_t tensor = 0; tensor < tensors && state->reads; tensor++) {
        for (int index = 0; index < state->ways; index++) {
            read_tensor(state, &state->way[index], tensor, call_bytes);
        }
    }
    while (state->under_way > 0) {
        go_on(state);
    }
    for (int index = 0; index < state->ways && state->reads; index++) {
        move_word(state->way[index].fd, &over, 1, 1);
    }
    for (int index = 0; index < state->ways; index++) {
        state->way[index].over = 0;
    }
    for (int left = state->reads ? 0 : state->ways; left > 0;) {
        go_on(state);
        for (int index = 0; index < state->ways; index++) {
            way *to = &state->way[index];
            to->over = to->over || read(to->fd, &over, 1) == 1;
        }
        left = 0;
        for (int index = 0; index < state->ways; index++) {
            left += !state->way[index].over;
        }
    }
}

static void check(void *of) {
    const exchange *state = of;
    if (state->reads) {
        visit(state, 1);
    }
}

int main(int argc, char **argv) {
    raw_sizes sizes = {&sources, &targets, &tensors, &rows, &columns};
    raw_read_sizes(argc, argv, &sizes);
    raw_program program = {setup, round_of, check};
    raw_lead_sides(sources, targets, &program);
    return 0;
}
