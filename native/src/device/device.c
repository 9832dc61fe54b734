/* A session's part of a GPU. What waits to be moved has a lock of its own; calls are made without the session's. */
#include "device/device.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "round/carrier.h"

/* A bucket to be moved. */
typedef struct order {
    struct order *next;
    tb_pull *pull;
    const tb_cuda_moves *moves;
    uint32_t group;
    void (*then)(void *argument);
    void *argument;
} order;

/* Orders whose moves are in a stream, and the event behind them. */
typedef struct flight {
    struct flight *next;
    order *orders;
    tb_cu_event event;
    tb_error error; /* code TB_OK: everything went into the stream */
} flight;

struct tb_device {
    tb_cuda_task task; /* first: the worker steps it while there is something to do */
    tb_cuda_worker *worker;
    pthread_mutex_t lock;
    order *waiting, **waiting_end;
    bool stepped;    /* the worker has the task */
    flight *flights; /* owned by the worker's thread */
};

/* ---- moving: in the worker's thread ----------------------------------------------------------------------
 */

static void end_order(order *one, int32_t code, int os_errno, const char *message) {
    int32_t rank = one->pull->transfer->session->options.rank;
    if (one->then != NULL) {
        one->then(one->argument);
    }
    tb_pull_end(one->pull, code, rank, os_errno, message);
    free(one);
}

static order *take_waiting(tb_device *device) {
    pthread_mutex_lock(&device->lock);
    order *taken = device->waiting;
    device->waiting = NULL;
    device->waiting_end = &device->waiting;
    pthread_mutex_unlock(&device->lock);
    return taken;
}

/* Ends those whose round has failed; of them not a byte was touched. */
static order *drop_stopped(order *orders) {
    order **at = &orders;
    while (*at != NULL) {
        order *one = *at;
        if (tb_pull_stopped(one->pull)) {
            *at = one->next;
            end_order(one, TB_ECANCELLED, 0, "its round failed before it was moved");
        } else {
            at = &one->next;
        }
    }
    return orders;
}

/* As many orders as follow one another in one table are one launch for each kernel. */
static int32_t launch(tb_device *device, const order *orders, tb_cu_stream stream, tb_error *err) {
    int32_t code = TB_OK;
    while (orders != NULL && code == TB_OK) {
        const order *first = orders;
        uint32_t count = 0;
        while (orders != NULL && orders->moves == first->moves && orders->group == first->group + count) {
            count++;
            orders = orders->next;
        }
        code = tb_cuda_moves_launch(first->moves, device->worker, first->group, count, stream, err);
    }
    return code;
}

static void land(flight *landed, tb_cuda_worker *worker) {
    while (landed->orders != NULL) {
        order *one = landed->orders;
        landed->orders = one->next;
        end_order(one, landed->error.code, landed->error.os_errno, landed->error.message);
    }
    if (landed->event != NULL) {
        tb_cuda_worker_give_event(worker, landed->event);
    }
    free(landed);
}

static void take_off(tb_device *device, order *orders) {
    tb_cuda_worker *worker = device->worker;
    flight *one = calloc(1, sizeof *one);
    if (one == NULL) {
        while (orders != NULL) {
            order *next = orders->next;
            end_order(orders, TB_ENO_MEMORY, 0, "no memory for a bucket on a GPU");
            orders = next;
        }
        return;
    }
    one->orders = orders;
    tb_cu_stream stream = tb_cuda_worker_stream(worker);
    int32_t code = tb_cuda_worker_take_event(worker, &one->event, &one->error);
    if (code == TB_OK) {
        code = launch(device, orders, stream, &one->error);
        /* What went into the stream before a failure is waited for all the same. */
        tb_cu_result result = worker->api->cuEventRecord(one->event, stream);
        if (code == TB_OK && result != TB_CU_SUCCESS) {
            code = tb_cuda_fail(worker->api, result, &one->error, "cuEventRecord");
        }
    }
    one->error.code = code;
    one->next = device->flights;
    device->flights = one;
}

/* If the event of a flight fails, nothing of the flight moves any more either. */
static void look(tb_device *device) {
    tb_cuda_worker *worker = device->worker;
    flight **at = &device->flights;
    while (*at != NULL) {
        flight *one = *at;
        tb_cu_result result = one->event == NULL ? TB_CU_SUCCESS : worker->api->cuEventQuery(one->event);
        if (result == TB_CU_NOT_READY) {
            at = &one->next;
            continue;
        }
        if (result != TB_CU_SUCCESS && one->error.code == TB_OK) {
            one->error.code = tb_cuda_fail(worker->api, result, &one->error, "moving on the GPU");
        }
        *at = one->next;
        land(one, worker);
    }
}

static enum tb_cuda_step step(tb_cuda_task *task, tb_cuda_worker *worker) {
    (void)worker;
    tb_device *device = (tb_device *)task;
    order *orders = drop_stopped(take_waiting(device));
    if (orders != NULL) {
        take_off(device, orders);
    }
    look(device);
    pthread_mutex_lock(&device->lock);
    device->stepped = device->flights != NULL || device->waiting != NULL;
    enum tb_cuda_step step = device->stepped ? TB_CUDA_AGAIN : TB_CUDA_DONE;
    pthread_mutex_unlock(&device->lock);
    return step;
}

void tb_device_submit(tb_device *device, tb_pull *pull, const tb_cuda_moves *moves, uint32_t group) {
    tb_device_submit_then(device, pull, moves, group, NULL, NULL);
}

void tb_device_submit_then(tb_device *device, tb_pull *pull, const tb_cuda_moves *moves, uint32_t group,
                           void (*then)(void *argument), void *argument) {
    order *one = malloc(sizeof *one);
    if (one == NULL) {
        if (then != NULL) {
            then(argument);
        }
        tb_pull_end(pull, TB_ENO_MEMORY, pull->transfer->session->options.rank, 0, "no memory for a bucket on a GPU");
        return;
    }
    *one = (order){NULL, pull, moves, group, then, argument};
    pthread_mutex_lock(&device->lock);
    *device->waiting_end = one;
    device->waiting_end = &one->next;
    bool begin = !device->stepped;
    device->stepped = true;
    pthread_mutex_unlock(&device->lock);
    if (begin) {
        tb_cuda_worker_submit(device->worker, &device->task);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static int32_t open_device(const uint8_t uuid[16], tb_device **made, tb_error *err) {
    tb_device *device = calloc(1, sizeof *device);
    if (device == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a device");
    }
    int32_t code = tb_cuda_worker_open(uuid, &device->worker, err);
    if (code != TB_OK) {
        free(device);
        return code;
    }
    device->task.step = step;
    device->waiting_end = &device->waiting;
    pthread_mutex_init(&device->lock, NULL);
    *made = device;
    return TB_OK;
}

static int32_t do_nothing(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)worker;
    (void)argument;
    (void)err;
    return TB_OK;
}

/* The worker may still be on its way out of the step that ended the last bucket. */
static bool is_stepped(tb_device *device) {
    pthread_mutex_lock(&device->lock);
    bool stepped = device->stepped;
    pthread_mutex_unlock(&device->lock);
    return stepped;
}

static int32_t close_device(tb_device *device, uint32_t quiesce_ms, tb_error *err) {
    do {
        tb_cuda_worker_call(device->worker, do_nothing, NULL, NULL);
    } while (is_stepped(device));
    int32_t code = tb_cuda_worker_close(device->worker, quiesce_ms, err);
    pthread_mutex_destroy(&device->lock);
    free(device);
    return code;
}

tb_cuda_worker *tb_device_worker(const tb_device *device) {
    return device->worker;
}

int32_t tb_device_make_current(const tb_device *device, tb_error *err) {
    TB_CUDA_TRY(device->worker->api, cuCtxSetCurrent(device->worker->context), err);
    return TB_OK;
}

/* ---- memory ------------------------------------------------------------------------------------------ */

typedef struct memory_call {
    uint64_t address, bytes;
    tb_device_memory *memory;
    tb_cuda_moves *moves;
} memory_call;

static int32_t do_describe(tb_cuda_worker *worker, void *argument, tb_error *err) {
    memory_call *ask = argument;
    tb_cu_ipc_memory handle = {{0}};
    int32_t code =
        tb_cuda_worker_export(worker, ask->address, ask->bytes, &handle, &ask->memory->offset, err);
    /* Without a handle it moves within this process all the same; who exports it says why not further. */
    ask->memory->on_device = code == TB_OK || code == TB_EUNSUPPORTED;
    ask->memory->has_handle = code == TB_OK;
    memcpy(ask->memory->handle, &handle, sizeof ask->memory->handle);
    return ask->memory->on_device ? TB_OK : code;
}

int32_t tb_device_describe(tb_device *device, uint64_t address, uint64_t bytes, tb_device_memory *memory,
                           tb_error *err) {
    memory_call ask = {.address = address, .bytes = bytes, .memory = memory};
    return tb_cuda_worker_call(device->worker, do_describe, &ask, err);
}

static int32_t do_allocate(tb_cuda_worker *worker, void *argument, tb_error *err) {
    memory_call *ask = argument;
    tb_cu_pointer address = 0;
    TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&address, ask->bytes), err);
    ask->address = address;
    return TB_OK;
}

int32_t tb_device_allocate(tb_device *device, uint64_t bytes, uint64_t *address, tb_error *err) {
    memory_call ask = {.bytes = bytes};
    int32_t code = tb_cuda_worker_call(device->worker, do_allocate, &ask, err);
    *address = ask.address;
    return code;
}

static int32_t do_free(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_worker_free(worker, ((memory_call *)argument)->address, err);
}

void tb_device_free(tb_device *device, uint64_t address) {
    memory_call ask = {.address = address};
    tb_cuda_worker_call(device->worker, do_free, &ask, NULL);
}

static int32_t do_load(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_moves_upload(((memory_call *)argument)->moves, worker, err);
}

int32_t tb_device_load(tb_device *device, tb_cuda_moves *moves, uint32_t group_count, tb_error *err) {
    int32_t code = tb_cuda_moves_sort(moves, group_count, err);
    memory_call ask = {.moves = moves};
    return code == TB_OK ? tb_cuda_worker_call(device->worker, do_load, &ask, err) : code;
}

static int32_t do_unload(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)err;
    tb_cuda_moves_unload(((memory_call *)argument)->moves, worker);
    return TB_OK;
}

void tb_device_unload(tb_device *device, tb_cuda_moves *moves) {
    memory_call ask = {.moves = moves};
    if (moves->device_moves != 0) {
        tb_cuda_worker_call(device->worker, do_unload, &ask, NULL);
    }
    tb_cuda_moves_free(moves);
}

const tb_device_kind tb_devices_cuda = {
    .open = open_device,
    .close = close_device,
    .describe = tb_device_describe,
    .transfer_allocate = tb_device_transfer_allocate,
    .transfer_free = tb_device_transfer_free,
    .piece_words = tb_device_piece_words,
};
