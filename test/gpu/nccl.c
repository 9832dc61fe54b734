/*
 * What NCCL does on one GPU, asked through the same table, configuration and order of calls as the library:
 *
 *   nccl alone            one rank sends to itself, in a group with the receive
 *   nccl missing          of two ranks one never comes: in progress until it is aborted, and then at once
 *   nccl shared           two processes on one GPU exchange, where NCCL allows it
 *
 * Ends with 0, with 1 and what was wrong, or with 3 and what lacks. $TENSOR_BUS_LIBCUDA and $TENSOR_BUS_LIBNCCL name the
 * libraries; the first device is used.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda/cuda_api.h"
#include "carriers/nccl/nccl_api.h"

enum { BYTES = 8 << 20, DEADLINE_MS = 60000 };

static const tb_cuda_api *cuda;
static const tb_nccl_api *nccl;

static _Noreturn void end(int code, const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(code);
}

static void check_cuda(tb_cu_result result, const char *what) {
    tb_error err;
    if (result != TB_CU_SUCCESS) {
        tb_cuda_fail(cuda, result, &err, what);
        end(1, "CUDA", err.message);
    }
}

static void check_nccl(tb_nccl_result result, tb_nccl_comm comm, const char *what) {
    tb_error err;
    if (result != TB_NCCL_SUCCESS && result != TB_NCCL_IN_PROGRESS) {
        tb_nccl_fail(nccl, result, comm, &err, what);
        end(1, "NCCL", err.message);
    }
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void pause_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* In progress still, after so long? */
static int settles(tb_nccl_comm comm, double within_ms) {
    double until = now_ms() + within_ms;
    tb_nccl_result state = TB_NCCL_IN_PROGRESS;
    while (state == TB_NCCL_IN_PROGRESS && now_ms() < until) {
        check_nccl(nccl->ncclCommGetAsyncError(comm, &state), comm, "ncclCommGetAsyncError");
        check_nccl(state, comm, "an operation");
        pause_ms(1);
    }
    return state == TB_NCCL_SUCCESS;
}

static void load(void) {
    tb_error err;
    tb_cu_device device;
    tb_cu_context context;
    if (tb_cuda_load(NULL, &cuda, &err) != TB_OK || tb_nccl_load(NULL, &nccl, &err) != TB_OK) {
        end(3, "lacks", err.message);
    }
    check_cuda(cuda->cuDeviceGet(&device, 0), "cuDeviceGet");
    check_cuda(cuda->cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    check_cuda(cuda->cuCtxSetCurrent(context), "cuCtxSetCurrent");
}

static tb_nccl_comm init(const tb_nccl_id *id, int rank, int ranks) {
    tb_nccl_config config;
    tb_nccl_comm comm = NULL;
    tb_nccl_config_init(&config);
    check_nccl(nccl->ncclCommInitRankConfig(&comm, ranks, *id, rank, &config), comm, "ncclCommInitRankConfig");
    return comm;
}

/* Sends a pattern of its own to a peer, which may be itself, and compares what came. */
static void exchange(tb_nccl_comm comm, int rank, int peer) {
    static uint8_t host[BYTES];
    tb_cu_pointer memory;
    tb_cu_stream stream;
    check_cuda(cuda->cuMemAlloc_v2(&memory, 2 * BYTES), "cuMemAlloc_v2");
    check_cuda(cuda->cuStreamCreate(&stream, TB_CU_STREAM_NON_BLOCKING), "cuStreamCreate");
    for (int turn = 1; turn <= 3; turn++) {
        for (int i = 0; i < BYTES; i++) {
            host[i] = (uint8_t)(i * 7 + i / 253 + rank * 31 + turn);
        }
        check_cuda(cuda->cuMemcpyHtoD_v2(memory, host, BYTES), "cuMemcpyHtoD_v2");
        check_nccl(nccl->ncclGroupStart(), comm, "ncclGroupStart");
        check_nccl(nccl->ncclSend((void *)(uintptr_t)memory, BYTES, TB_NCCL_UINT8, peer, comm, stream), comm, "ncclSend");
        check_nccl(nccl->ncclRecv((void *)(uintptr_t)(memory + BYTES), BYTES, TB_NCCL_UINT8, peer, comm, stream), comm,
                   "ncclRecv");
        check_nccl(nccl->ncclGroupEnd(), comm, "ncclGroupEnd");
        if (!settles(comm, DEADLINE_MS)) {
            end(1, "a group", "still in progress");
        }
        double until = now_ms() + DEADLINE_MS;
        tb_cu_result result;
        while ((result = cuda->cuStreamQuery(stream)) == TB_CU_NOT_READY && now_ms() < until) {
            pause_ms(1);
        }
        check_cuda(result, "cuStreamQuery");
        check_cuda(cuda->cuMemcpyDtoH_v2(host, memory + BYTES, BYTES), "cuMemcpyDtoH_v2");
        for (int i = 0; i < BYTES; i++) {
            if (host[i] != (uint8_t)(i * 7 + i / 253 + peer * 31 + turn)) {
                end(1, "an exchange", "other bytes came");
            }
        }
    }
    check_cuda(cuda->cuStreamDestroy_v2(stream), "cuStreamDestroy_v2");
    check_cuda(cuda->cuMemFree_v2(memory), "cuMemFree_v2");
}

static void leave(tb_nccl_comm comm) {
    check_nccl(nccl->ncclCommFinalize(comm), comm, "ncclCommFinalize");
    if (!settles(comm, DEADLINE_MS)) {
        end(1, "ncclCommFinalize", "still in progress");
    }
    check_nccl(nccl->ncclCommDestroy(comm), NULL, "ncclCommDestroy");
}

static void run_alone(void) {
    tb_nccl_id id;
    load();
    check_nccl(nccl->ncclGetUniqueId(&id), NULL, "ncclGetUniqueId");
    tb_nccl_comm comm = init(&id, 0, 1);
    if (!settles(comm, DEADLINE_MS)) {
        end(1, "an init of one rank", "still in progress");
    }
    exchange(comm, 0, 0);
    leave(comm);
}

static void run_missing(void) {
    tb_nccl_id id;
    load();
    check_nccl(nccl->ncclGetUniqueId(&id), NULL, "ncclGetUniqueId");
    tb_nccl_comm comm = init(&id, 0, 2);
    if (settles(comm, 2000)) {
        end(1, "an init of two ranks, of which one never came", "succeeded");
    }
    double begin = now_ms();
    check_nccl(nccl->ncclCommAbort(comm), NULL, "ncclCommAbort");
    printf("aborted in %.1f ms\n", now_ms() - begin);
}

static void run_shared(void) {
    int ids[2];
    tb_nccl_id id;
    if (pipe(ids) != 0) {
        end(1, "pipe", "none");
    }
    setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
    pid_t child = fork(); /* before anything of CUDA: a driver does not outlive it */
    int rank = child == 0 ? 1 : 0;
    load();
    if (nccl->version < TB_NCCL_SHARED_DEVICE_VERSION) {
        end(3, "lacks", "NCCL 2.30 or newer");
    }
    if (rank == 0) {
        check_nccl(nccl->ncclGetUniqueId(&id), NULL, "ncclGetUniqueId");
        if (write(ids[1], &id, sizeof id) != sizeof id) {
            end(1, "pipe", "closed");
        }
    } else if (read(ids[0], &id, sizeof id) != sizeof id) {
        end(1, "pipe", "closed");
    }
    tb_nccl_comm comm = init(&id, rank, 2);
    if (!settles(comm, DEADLINE_MS)) {
        end(1, "an init of two ranks", "still in progress");
    }
    exchange(comm, rank, 1 - rank);
    leave(comm);
    int status = 0;
    if (rank == 0 && (waitpid(child, &status, 0) != child || status != 0)) {
        end(1, "the other rank", "failed");
    }
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "alone") == 0) {
        run_alone();
    } else if (strcmp(what, "missing") == 0) {
        run_missing();
    } else if (strcmp(what, "shared") == 0) {
        run_shared();
    } else {
        end(2, "usage", "nccl alone | missing | shared");
    }
    return 0;
}
