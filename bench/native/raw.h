/*
 * What the ceilings of the transfer benchmark share: processes, sockets, time. Each ceiling is a plain program of
 * sockets and the plainest loops over them, with the ranks, connections and boxes of a transfer case, and nothing of
 * tensorbus. It reads lines `run CALL_BYTES MODE`, moves everything once for each, and answers the nanoseconds.
 */
#ifndef TB_RAW_H
#define TB_RAW_H

#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

enum { RAW_RANKS = 16 };

noreturn void raw_die(const char *what);

/* Memory of that size, every page touched. */
void *raw_touched(size_t bytes);

/* Sockets between the ranks: fd[a][b] is a's end of the connection of a and b, made if wanted[a][b] or [b][a]. */
typedef struct raw_mesh {
    int ranks;
    int fd[RAW_RANKS][RAW_RANKS];
} raw_mesh;
void raw_mesh_connect(raw_mesh *mesh, int ranks, uint8_t wanted[RAW_RANKS][RAW_RANKS]);

/*
 * Forks the ranks, each of which calls setup once and then round for every line of standard input, and leads them: all
 * begin at once, and the time is that until the last has ended. Ends when the input does.
 */
typedef struct raw_program {
    void *(*setup)(const raw_mesh *mesh, int rank);
    void (*round)(void *state, size_t call_bytes, size_t mode);
    /* Ends the process if what arrived is wrong. Called once, after the first round of mode 0. */
    void (*check)(void *state);
} raw_program;
void raw_lead(raw_mesh *mesh, const raw_program *program);

/* What a program is told: PROGRAM SOURCES TARGETS TENSORS ROWS COLUMNS. */
typedef struct raw_sizes {
    size_t *sources, *targets, *tensors, *rows, *columns;
} raw_sizes;
/* Reads them; ends the process if they are missing or do not divide. */
void raw_read_sizes(int argc, char **argv, const raw_sizes *sizes);
/* Connects each of the sources with each of the targets, and leads them. */
void raw_lead_sides(size_t sources, size_t targets, const raw_program *program);

/* A box of rows that lie stride bytes apart, in each of the tensors, which lie tensor_bytes apart. */
typedef struct raw_box {
    uint8_t *first;
    size_t tensors, tensor_bytes;
    size_t rows, run, stride;
} raw_box;

static inline size_t raw_box_bytes(const raw_box *box) {
    return box->tensors * box->rows * box->run;
}

/* One end of a box on a nonblocking socket: how much of it has moved. */
typedef struct raw_flow {
    int fd;
    raw_box box;
    size_t done;
} raw_flow;

/* One call of at most call_bytes; does nothing if the socket would block. */
void raw_flow_send(raw_flow *flow, size_t call_bytes);
void raw_flow_receive(raw_flow *flow, size_t call_bytes);

static inline int raw_flow_ended(const raw_flow *flow) {
    return flow->done == raw_box_bytes(&flow->box);
}

#endif
