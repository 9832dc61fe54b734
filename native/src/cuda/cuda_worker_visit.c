/* One call in the worker of a device, for those who have no worker of their own. No lock is needed. */
#include "cuda/cuda_worker.h"
#include "base/error.h"

int32_t tb_cuda_visit(const uint8_t uuid[16], tb_cuda_function function, void *argument, int keep, tb_error *err) {
    tb_cuda_worker *worker;
    int32_t code = tb_cuda_worker_open(uuid, &worker, err);
    if (code != TB_OK) {
        return code;
    }
    code = tb_cuda_worker_call(worker, function, argument, err);
    int leaving = code != TB_OK ? 1 : 1 - keep;
    for (int i = 0; i < leaving && code != TB_EQUARANTINED; i++) {
        int32_t left = tb_cuda_worker_close(worker, TB_CUDA_QUIESCE_MS, code == TB_OK ? err : NULL);
        code = code == TB_OK ? left : code;
    }
    return code;
}
