/*
 * Events that tell another process when memory may be touched: made in one, opened by their IPC handles in others. What
 * a stream has recorded is waited for by the worker of the device, which tells a port; no thread of the host blocks in
 * the driver. Each watch has its own lock.
 */
#include <stdlib.h>
#include <string.h>

#include "base/handle.h"
#include "host/port.h"
#include "cuda/cuda_worker.h"
#include "base/error.h"

typedef struct asking {
    tb_cu_event event;
    tb_cu_ipc_event handle;
} asking;

static int32_t do_create(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    unsigned flags = TB_CU_EVENT_DISABLE_TIMING | TB_CU_EVENT_INTERPROCESS;
    TB_CUDA_TRY(worker->api, cuEventCreate(&ask->event, flags), err);
    return TB_OK;
}

static int32_t do_open(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    TB_CUDA_TRY(worker->api, cuIpcOpenEventHandle(&ask->event, ask->handle), err);
    return TB_OK;
}

static int32_t do_close(tb_cuda_worker *worker, void *argument, tb_error *err) {
    TB_CUDA_TRY(worker->api, cuEventDestroy_v2(((asking *)argument)->event), err);
    return TB_OK;
}

static int32_t do_export(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    TB_CUDA_TRY(worker->api, cuIpcGetEventHandle(&ask->handle, ask->event), err);
    return TB_OK;
}

static int32_t do_record(tb_cuda_worker *worker, void *argument, tb_error *err) {
    asking *ask = argument;
    TB_CUDA_TRY(worker->api, cuEventRecord(ask->event, tb_cuda_worker_stream(worker)), err);
    return TB_OK;
}

static tb_cu_event event_of(uint64_t event) {
    return (tb_cu_event)(uintptr_t)event;
}

int32_t tb_cuda_event_create(const uint8_t uuid[16], uint64_t *event, tb_error *err) {
    asking ask = {0};
    int32_t code = tb_cuda_visit(uuid, do_create, &ask, 1, err);
    *event = (uintptr_t)ask.event;
    return code;
}

int32_t tb_cuda_event_open(const uint8_t uuid[16], const uint8_t handle[64], uint64_t *event, tb_error *err) {
    asking ask = {0};
    memcpy(&ask.handle, handle, sizeof ask.handle);
    int32_t code = tb_cuda_visit(uuid, do_open, &ask, 1, err);
    *event = (uintptr_t)ask.event;
    return code;
}

int32_t tb_cuda_event_close(const uint8_t uuid[16], uint64_t event, tb_error *err) {
    asking ask = {.event = event_of(event)};
    return tb_cuda_visit(uuid, do_close, &ask, -1, err);
}

int32_t tb_cuda_event_export(const uint8_t uuid[16], uint64_t event, uint8_t handle[64], tb_error *err) {
    asking ask = {.event = event_of(event)};
    int32_t code = tb_cuda_visit(uuid, do_export, &ask, 0, err);
    memcpy(handle, &ask.handle, sizeof ask.handle);
    return code;
}

int32_t tb_cuda_event_record(const uint8_t uuid[16], uint64_t event, tb_error *err) {
    asking ask = {.event = event_of(event)};
    return tb_cuda_visit(uuid, do_record, &ask, 0, err);
}

/* ---- waiting for one
 * -------------------------------------------------------------------------------------------- */

typedef struct event_watch {
    tb_cuda_task task;
    tb_cuda_worker *worker;
    tb_source source;
    tb_cu_event event;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stop, over;
    int32_t code;
    tb_error failure;
} event_watch;

static enum tb_cuda_step step(tb_cuda_task *task, tb_cuda_worker *worker) {
    event_watch *watch = (event_watch *)task;
    pthread_mutex_lock(&watch->lock);
    bool stop = watch->stop;
    pthread_mutex_unlock(&watch->lock);
    tb_cu_result result = stop ? TB_CU_SUCCESS : worker->api->cuEventQuery(watch->event);
    if (result == TB_CU_NOT_READY) {
        return TB_CUDA_AGAIN;
    }
    pthread_mutex_lock(&watch->lock);
    watch->code =
        result == TB_CU_SUCCESS ? TB_OK : tb_cuda_fail(worker->api, result, &watch->failure, "cuEventQuery");
    watch->over = true;
    tb_source_raise(&watch->source);
    pthread_cond_broadcast(&watch->changed);
    pthread_mutex_unlock(&watch->lock);
    return TB_CUDA_DONE;
}

static void destroy_watch(void *object) {
    event_watch *watch = object;
    pthread_mutex_lock(&watch->lock);
    watch->stop = true;
    while (!watch->over) {
        pthread_cond_wait(&watch->changed, &watch->lock);
    }
    pthread_mutex_unlock(&watch->lock);
    tb_source_detach(&watch->source);
    tb_cuda_worker_close(watch->worker, TB_CUDA_QUIESCE_MS, NULL);
    pthread_cond_destroy(&watch->changed);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
}

int32_t tb_cuda_event_watch(uint64_t port, uint64_t token, const uint8_t uuid[16], uint64_t event, uint64_t *handle,
                            tb_error *err) {
    event_watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a watch");
    }
    watch->task.step = step;
    watch->event = event_of(event);
    int32_t code = tb_cuda_worker_open(uuid, &watch->worker, err);
    if (code != TB_OK) {
        free(watch);
        return code;
    }
    code = tb_source_attach(&watch->source, port, token, err);
    if (code != TB_OK) {
        tb_cuda_worker_close(watch->worker, TB_CUDA_QUIESCE_MS, NULL);
        free(watch);
        return code;
    }
    pthread_mutex_init(&watch->lock, NULL);
    pthread_cond_init(&watch->changed, NULL);
    tb_cuda_worker_submit(watch->worker, &watch->task);
    code = tb_handle_add(TB_HANDLE_EVENT, watch, destroy_watch, handle, err);
    if (code != TB_OK) {
        destroy_watch(watch);
    }
    return code;
}

int32_t tb_cuda_event_watched(uint64_t handle, uint32_t *over, tb_error *err) {
    event_watch *watch = tb_handle_get(TB_HANDLE_EVENT, handle, err);
    if (watch == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&watch->lock);
    *over = watch->over;
    int32_t code = watch->over ? watch->code : TB_OK;
    if (code != TB_OK) {
        tb_fail(err, code, -1, 0, "%s", watch->failure.message);
    }
    pthread_mutex_unlock(&watch->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_cuda_event_unwatch(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_EVENT, handle, err);
}
