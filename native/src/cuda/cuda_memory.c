/*
 * tb_cuda_*: devices and their memory, for those who own some of it. No lock is needed: the worker of a device does one
 * thing after another.
 */
#include <string.h>
#include <time.h>

#include "cuda/cuda_worker.h"
#include "base/clock.h"
#include "base/error.h"

int32_t tb_cuda_kernels(const char *path, tb_error *err) {
    return tb_cuda_worker_kernels(path, err);
}

int32_t tb_cuda_count(uint32_t *count, uint32_t *version, tb_error *err) {
    const tb_cuda_api *api;
    int found = 0;
    int32_t code = tb_cuda_load(NULL, &api, err);
    if (code != TB_OK) {
        return code;
    }
    TB_CUDA_TRY(api, cuDeviceGetCount(&found), err);
    *count = (uint32_t)found;
    *version = (uint32_t)api->version;
    return TB_OK;
}

int32_t tb_cuda_device(uint32_t index, uint8_t uuid[16], void *name, uint32_t bytes, tb_error *err) {
    const tb_cuda_api *api;
    tb_cu_device device;
    tb_cu_uuid found;
    int32_t code = tb_cuda_load(NULL, &api, err);
    if (code != TB_OK) {
        return code;
    }
    TB_CUDA_TRY(api, cuDeviceGet(&device, (int)index), err);
    TB_CUDA_TRY(api, cuDeviceGetUuid_v2(&found, device), err);
    TB_CUDA_TRY(api, cuDeviceGetName(name, (int)bytes, device), err);
    memcpy(uuid, found.bytes, sizeof found.bytes);
    return TB_OK;
}

/* What is asked of a worker. */
typedef struct asking {
    uint64_t address, bytes;
    void *host;
    tb_cu_ipc_memory handle;
    uint64_t second, times;
} asking;

static int32_t do_allocate(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    tb_cu_pointer address = 0;
    TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&address, ask->bytes), err);
    ask->address = address;
    return TB_OK;
}

static int32_t do_free(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_worker_free(worker, ((asking *)argument)->address, err);
}

static int32_t do_write(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    TB_CUDA_TRY(worker->api, cuMemcpyHtoD_v2(ask->address, ask->host, ask->bytes), err);
    return TB_OK;
}

static int32_t do_read(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    TB_CUDA_TRY(worker->api, cuMemcpyDtoH_v2(ask->host, ask->address, ask->bytes), err);
    return TB_OK;
}

static int32_t do_export(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    return tb_cuda_worker_export(worker, ask->address, ask->bytes, &ask->handle, &ask->second, err);
}

static int32_t do_open(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    tb_cu_pointer address = 0;
    tb_cu_pointer base = 0;
    size_t bytes = 0;
    int32_t code = tb_cuda_worker_open_memory(worker, &ask->handle, &address, err);
    if (code == TB_OK) {
        ask->address = address;
        TB_CUDA_TRY(worker->api, cuMemGetAddressRange_v2(&base, &bytes, address), err);
        ask->second = bytes;
    }
    return code;
}

static int32_t do_close(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_worker_close_memory(worker, ((asking *)argument)->address, err);
}

static int32_t do_info(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    size_t left = 0;
    size_t total = 0;
    TB_CUDA_TRY(worker->api, cuMemGetInfo_v2(&left, &total), err);
    ask->address = left;
    ask->bytes = total;
    return TB_OK;
}

/* Benchmarks have the worker to themselves: this one call waits inside of the driver. */
static int32_t do_time(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    tb_cu_stream stream = tb_cuda_worker_stream(worker);
    uint64_t begin = tb_now();
    for (uint64_t i = 0; i < ask->times; i++) {
        TB_CUDA_TRY(worker->api, cuMemcpyDtoDAsync_v2(ask->address, ask->second, ask->bytes, stream), err);
    }
    TB_CUDA_TRY(worker->api, cuStreamSynchronize(stream), err);
    ask->times = tb_now() - begin;
    return TB_OK;
}

int32_t tb_cuda_allocate(const uint8_t uuid[16], uint64_t bytes, uint64_t *address, tb_error *err) {
    asking ask = {.bytes = bytes};
    int32_t code = tb_cuda_visit(uuid, do_allocate, &ask, 1, err);
    *address = ask.address;
    return code;
}

int32_t tb_cuda_free(const uint8_t uuid[16], uint64_t address, tb_error *err) {
    asking ask = {.address = address};
    return tb_cuda_visit(uuid, do_free, &ask, -1, err);
}

int32_t tb_cuda_write(const uint8_t uuid[16], uint64_t address, const void *from, uint64_t bytes,
                      tb_error *err) {
    asking ask = {.address = address, .bytes = bytes, .host = (void *)(uintptr_t)from};
    return tb_cuda_visit(uuid, do_write, &ask, 0, err);
}

int32_t tb_cuda_read(const uint8_t uuid[16], uint64_t address, void *to, uint64_t bytes, tb_error *err) {
    asking ask = {.address = address, .bytes = bytes, .host = to};
    return tb_cuda_visit(uuid, do_read, &ask, 0, err);
}

int32_t tb_cuda_export(const uint8_t uuid[16], uint64_t address, uint64_t bytes, uint8_t handle[64],
                       uint64_t *offset, tb_error *err) {
    asking ask = {.address = address, .bytes = bytes};
    int32_t code = tb_cuda_visit(uuid, do_export, &ask, 0, err);
    memcpy(handle, &ask.handle, sizeof ask.handle);
    *offset = ask.second;
    return code;
}

int32_t tb_cuda_open(const uint8_t uuid[16], const uint8_t handle[64], uint64_t *address, uint64_t *bytes,
                     tb_error *err) {
    asking ask = {0};
    memcpy(&ask.handle, handle, sizeof ask.handle);
    int32_t code = tb_cuda_visit(uuid, do_open, &ask, 1, err);
    *address = ask.address;
    *bytes = ask.second;
    return code;
}

int32_t tb_cuda_close(const uint8_t uuid[16], uint64_t address, tb_error *err) {
    asking ask = {.address = address};
    return tb_cuda_visit(uuid, do_close, &ask, -1, err);
}

int32_t tb_cuda_info(const uint8_t uuid[16], uint64_t *left, uint64_t *total, tb_error *err) {
    asking ask = {0};
    int32_t code = tb_cuda_visit(uuid, do_info, &ask, 0, err);
    *left = ask.address;
    *total = ask.bytes;
    return code;
}

int32_t tb_cuda_time_copies(const uint8_t uuid[16], uint64_t to, uint64_t from, uint64_t bytes, uint32_t times,
                            uint64_t *nanoseconds, tb_error *err) {
    asking ask = {.address = to, .second = from, .bytes = bytes, .times = times};
    int32_t code = tb_cuda_visit(uuid, do_time, &ask, 0, err);
    *nanoseconds = ask.times;
    return code;
}
