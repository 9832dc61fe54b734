/*
 * Memory that is given back to the driver. To free or to unmap waits for all that the GPU has under way, and so for
 * kernels of NCCL, which wait for other ranks: those may wait in turn for what only this worker does. So it waits until
 * no round is under way, and nobody for it. Who holds is guarded by a lock of its own, the rest belongs to the worker's
 * thread.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "cuda/cuda_worker.h"
#include "base/clock.h"
#include "base/error.h"

/* If rounds follow each other without a gap, it is given back during one that needs nothing of this process. */
#define LONGEST_NS 5000000000ull

static _Atomic uint32_t rounds, needy;

struct tb_cuda_given {
    tb_cuda_given *next;
    tb_cu_pointer address;
    bool mapped; /* another process's */
    uint64_t until;
};

void tb_cuda_hold(bool needs_worker) {
    rounds++;
    needy += needs_worker;
}

void tb_cuda_unhold(bool needs_worker) {
    rounds--;
    needy -= needs_worker;
}

static int32_t give(tb_cuda_worker *worker, tb_cu_pointer address, bool mapped, tb_error *err) {
    if (mapped) {
        TB_CUDA_TRY(worker->api, cuIpcCloseMemHandle(address), err);
    } else {
        TB_CUDA_TRY(worker->api, cuMemFree_v2(address), err);
    }
    return TB_OK;
}

void tb_cuda_worker_give_all(tb_cuda_worker *worker) {
    while (worker->given != NULL) {
        tb_cuda_given *one = worker->given;
        worker->given = one->next;
        give(worker, one->address, one->mapped, NULL);
        free(one);
    }
}

static bool is_stopping(tb_cuda_worker *worker) {
    pthread_mutex_lock(&worker->lock);
    bool stopping = worker->stop;
    pthread_mutex_unlock(&worker->lock);
    return stopping;
}

static enum tb_cuda_step step(tb_cuda_task *task, tb_cuda_worker *worker) {
    (void)task;
    bool late = needy == 0 && worker->given != NULL && tb_now() >= worker->given->until;
    if (rounds > 0 && !late && !is_stopping(worker)) {
        return TB_CUDA_AGAIN;
    }
    worker->giving = false;
    tb_cuda_worker_give_all(worker);
    return TB_CUDA_DONE;
}

static int32_t give_back(tb_cuda_worker *worker, tb_cu_pointer address, bool mapped, tb_error *err) {
    tb_cuda_given *one = rounds > 0 ? malloc(sizeof *one) : NULL;
    if (one == NULL) {
        return give(worker, address, mapped, err);
    }
    *one = (tb_cuda_given){NULL, address, mapped, tb_now() + LONGEST_NS};
    tb_cuda_given **end = &worker->given;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = one;
    if (!worker->giving) {
        worker->giving = true;
        worker->give.step = step;
        tb_cuda_worker_submit(worker, &worker->give);
    }
    return TB_OK;
}

int32_t tb_cuda_worker_free(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err) {
    return give_back(worker, address, false, err);
}

int32_t tb_cuda_worker_unmap(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err) {
    return give_back(worker, address, true, err);
}
