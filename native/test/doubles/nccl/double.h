/*
 * A test double of libnccl.so.2: the part of the interface that native/src/carriers/nccl/nccl_api.h lists, on the memory and streams
 * of the double of libcuda, between real threads and real processes. It keeps NCCL's rules for communicators that do not
 * block, and stops the process with words on stderr if a call would be undefined, crash or hang there for a reason
 * that the caller could have known: a communicator that was destroyed, another thread, a send that meets a receive of
 * another size. What NCCL refuses is refused with its result.
 *
 * - An id names memory of the process that made it, which must live until all have joined; until then an init is in
 *   progress, for ever if need be.
 * - Until ncclCommGetAsyncError says success, every other call is an invalid argument.
 * - A group takes effect where its outermost end is, some time later: the first between two ranks only once both have
 *   one, then kernels are put into their streams, one after the other for each communicator.
 * - A send is over once all of it was received, in order; nothing is sent early. A rank that died is waited for, unless
 *   NCCL_DOUBLE_REMOTE_ERRORS=1: then its peers see ncclRemoteError.
 * - Two ranks on one device are an invalid usage, but from 2.30 on with NCCL_MULTI_RANK_GPU_ENABLE=1.
 *
 * It is stricter than NCCL where our own rules are: a communicator belongs to the thread that made it, and every member of
 * a group to one communicator. NCCL_DOUBLE_VERSION (23007) says what it pretends to be, NCCL_DOUBLE_DELAY_US (0) how long
 * everything that happens later takes to begin.
 */
#ifndef NCCL_DOUBLE_H
#define NCCL_DOUBLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../cuda/double.h"
#include "carriers/nccl/nccl_api.h"

#define DECLARE_NCCL(result, name, arguments) EXPORT result name arguments;
TB_NCCL_FIRST_FUNCTIONS(DECLARE_NCCL)
TB_NCCL_FUNCTIONS(DECLARE_NCCL)
#undef DECLARE_NCCL

/* Communicators that are alive in this process, and bytes that were sent to other ranks and received by them. */
EXPORT uint32_t nccl_double_alive(void);

/* ---- segment.c: memory that the ranks of one id share -------------------------------------------------- */

enum { MOST_RANKS = 16, RING_BYTES = 65536 };

typedef struct member {
    _Atomic int pid; /* 0: it has not joined */
    int version;
    char device[16];
    _Atomic int verdict; /* of its init: a result, or ncclInProgress */
} member;

/* From one rank to another: messages, each a header and its bytes, on an endless line of which a ring holds a part. */
typedef struct wire {
    atomic_bool sends, receives; /* who has said that there will be something */
    _Atomic uint64_t written, read;
    uint8_t ring[RING_BYTES];
} wire;

typedef struct segment {
    uint64_t magic, serial;
    _Atomic int ranks; /* that the first to join asked for */
    member members[MOST_RANKS];
    wire wires[MOST_RANKS][MOST_RANKS];
} segment;

bool segment_create(tb_nccl_id *id);
/* NULL: its process is gone. */
segment *segment_open(const tb_nccl_id *id);
void segment_close(segment *shared);

/* ---- comm.c -------------------------------------------------------------------------------------------- */

struct tb_nccl_comm_st {
    struct tb_nccl_comm_st *next;
    pthread_t owner;
    tb_cu_context context;
    tb_nccl_id id;
    segment *shared;
    int rank, ranks;
    bool blocking, finalized;
    _Atomic int state; /* what ncclCommGetAsyncError gives */
    atomic_bool abort;
    bool helping; /* a thread is to be joined */
    pthread_t helper;
    uint64_t launched;         /* groups that were put into streams */
    _Atomic uint64_t finished; /* those of them that are over */
};

/* Stops the process: no test may go on after this. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
tb_nccl_result fail_with(tb_nccl_result result, const char *format, ...) __attribute__((format(printf, 2, 3)));
void pause_briefly(uint64_t us);
uint64_t delay_us(void);
/* Stops the process unless it is alive, of this thread, and its device current. */
void check_comm(tb_nccl_comm comm, const char *call);
/* Success, or what a call on it has to give instead. */
tb_nccl_result check_ready(tb_nccl_comm comm, const char *call);
/* Runs something in a thread of the communicator, which is in progress meanwhile; waits for it if it blocks. */
tb_nccl_result help(tb_nccl_comm comm, void *(*function)(void *), void *argument);

/* ---- group.c ------------------------------------------------------------------------------------------- */

/* True within a group of this thread. */
bool in_group(void);

#endif
