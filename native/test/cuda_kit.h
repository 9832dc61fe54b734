/* The worker of the double of libcuda (native/test/doubles/cuda), and memory on it, for tests without a GPU. */
#ifndef TB_TEST_CUDA_KIT_H
#define TB_TEST_CUDA_KIT_H

#include "check.h"
#include "cuda/cuda_worker.h"

static const uint8_t double_uuid[16] = "cuda-double-dev0";

static inline void use_cuda_double(void) {
    setenv("TENSOR_BUS_LIBCUDA", "build/doubles/libcuda.so", 1);
    tb_error err;
    CHECK(tb_cuda_worker_kernels("build/doubles/kernels.ptx", &err) == TB_OK, "%s", err.message);
}

static inline tb_cuda_worker *open_double(void) {
    tb_error err;
    tb_cuda_worker *worker;
    CHECK(tb_cuda_worker_open(double_uuid, &worker, &err) == TB_OK, "%s", err.message);
    return worker;
}

static inline void close_double(tb_cuda_worker *worker) {
    tb_error err;
    CHECK(tb_cuda_worker_close(worker, 10000, &err) == TB_OK, "%s", err.message);
}

/* What a test asks of the device in one call. */
typedef struct device_bytes {
    tb_cu_pointer address;
    void *host;
    uint64_t bytes;
} device_bytes;

static inline int32_t do_allocate(tb_cuda_worker *worker, void *argument, tb_error *err) {
    device_bytes *ask = argument;
    TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&ask->address, ask->bytes), err);
    return TB_OK;
}
static inline int32_t do_free(tb_cuda_worker *worker, void *argument, tb_error *err) {
    TB_CUDA_TRY(worker->api, cuMemFree_v2(((device_bytes *)argument)->address), err);
    return TB_OK;
}
static inline int32_t do_write(tb_cuda_worker *worker, void *argument, tb_error *err) {
    device_bytes *ask = argument;
    TB_CUDA_TRY(worker->api, cuMemcpyHtoD_v2(ask->address, ask->host, ask->bytes), err);
    return TB_OK;
}
static inline int32_t do_read(tb_cuda_worker *worker, void *argument, tb_error *err) {
    device_bytes *ask = argument;
    TB_CUDA_TRY(worker->api, cuMemcpyDtoH_v2(ask->host, ask->address, ask->bytes), err);
    return TB_OK;
}

static inline void on_device(tb_cuda_worker *worker, tb_cuda_function what, device_bytes *ask) {
    tb_error err;
    CHECK(tb_cuda_worker_call(worker, what, ask, &err) == TB_OK, "%s", err.message);
}

static inline uint64_t device_allocate(tb_cuda_worker *worker, uint64_t bytes) {
    device_bytes ask = {0, NULL, bytes};
    on_device(worker, do_allocate, &ask);
    return ask.address;
}
static inline void device_free(tb_cuda_worker *worker, uint64_t address) {
    on_device(worker, do_free, &(device_bytes){address, NULL, 0});
}
static inline void device_write(tb_cuda_worker *worker, uint64_t address, void *from, uint64_t bytes) {
    on_device(worker, do_write, &(device_bytes){address, from, bytes});
}
static inline void device_read(tb_cuda_worker *worker, uint64_t address, void *to, uint64_t bytes) {
    on_device(worker, do_read, &(device_bytes){address, to, bytes});
}

#endif
