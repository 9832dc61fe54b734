/*
 * The worker of a device: one thread that makes all calls of the driver. It has its own lock, and the list of
 * workers another.
 */
#include "cuda/cuda_worker.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/spawn.h"

/* Compiling PTX takes a deep stack. */
enum { STACK_BYTES = 16 << 20 };
/* What is under way is asked without a pause this often, then at pauses that grow. */
enum { EAGER_TURNS = 200, FIRST_PAUSE_NS = 5000, LONGEST_PAUSE_NS = 200000 };
enum { LOG_BYTES = 2048 };

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static tb_cuda_worker *all;
static char *kernels_path;

/* ---- kernels
 * --------------------------------------------------------------------------------------------------- */

int32_t tb_cuda_worker_kernels(const char *path, tb_error *err) {
    char *copy = strdup(path);
    if (copy == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a path");
    }
    pthread_mutex_lock(&all_lock);
    free(kernels_path);
    kernels_path = copy;
    pthread_mutex_unlock(&all_lock);
    return TB_OK;
}

static int32_t read_kernels(const char *path, char **text, tb_error *err) {
    long bytes = -1;
    *text = NULL;
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        bytes = ftell(file);
        rewind(file);
    }
    if (bytes >= 0 && (*text = calloc((size_t)bytes + 1, 1)) != NULL
        && fread(*text, 1, (size_t)bytes, file) != (size_t)bytes) {
        free(*text);
        *text = NULL;
    }
    int error = errno;
    if (file != NULL) {
        fclose(file);
    }
    if (*text == NULL) {
        return tb_fail(err, TB_ELIBRARY, -1, path == NULL ? 0 : error,
                       "the kernels for CUDA are missing (%.200s): this package was built without nvcc",
                       path == NULL ? "no file named" : path);
    }
    return TB_OK;
}

static int32_t load_module(tb_cuda_worker *worker, const char *text, tb_error *err) {
    char log[LOG_BYTES] = "";
    tb_cu_jit_option options[] = {TB_CU_JIT_ERROR_LOG, TB_CU_JIT_ERROR_LOG_BYTES};
    void *values[] = {log, (void *)(uintptr_t)sizeof log};
    tb_cu_result result = worker->api->cuModuleLoadDataEx(&worker->module, text, 2, options, values);
    if (result != TB_CU_SUCCESS) {
        int32_t code = tb_cuda_fail(worker->api, result, err, "cuModuleLoadDataEx");
        if (err != NULL && log[0] != '\0') {
            tb_error first = *err;
            tb_fail(err, code, -1, 0, "%.250s: %.200s", first.message, log);
        }
        return code;
    }
    static const char *const names[] = {TB_CUDA_KERNEL_NAMES};
    _Static_assert(sizeof names / sizeof *names == TB_CUDA_KERNEL_COUNT, "a name for each kernel");
    for (int i = 0; i < TB_CUDA_KERNEL_COUNT; i++) {
        result = worker->api->cuModuleGetFunction(&worker->functions[i], worker->module, names[i]);
        if (result != TB_CU_SUCCESS) {
            return tb_fail(err, TB_ELIBRARY, -1, 0,
                           "the kernels for CUDA do not have %s: they come from another version", names[i]);
        }
    }
    return TB_OK;
}

/* ---- the thread
 * -------------------------------------------------------------------------------------------------- */

static int32_t begin(tb_cuda_worker *worker, const char *path, tb_error *err) {
    const tb_cuda_api *api = worker->api;
    char *text;
    int32_t code = read_kernels(path, &text, err);
    if (code != TB_OK) {
        return code;
    }
    tb_cu_result result = api->cuDevicePrimaryCtxRetain(&worker->context, worker->device);
    if (result != TB_CU_SUCCESS) {
        worker->context = NULL;
        code = tb_cuda_fail(api, result, err, "cuDevicePrimaryCtxRetain");
    } else if ((result = api->cuCtxSetCurrent(worker->context)) != TB_CU_SUCCESS) {
        code = tb_cuda_fail(api, result, err, "cuCtxSetCurrent");
    } else {
        code = load_module(worker, text, err);
    }
    free(text);
    for (int i = 0; i < TB_CUDA_STREAMS && code == TB_OK; i++) {
        result = api->cuStreamCreate(&worker->streams[i], TB_CU_STREAM_NON_BLOCKING);
        code = result == TB_CU_SUCCESS ? TB_OK : tb_cuda_fail(api, result, err, "cuStreamCreate");
    }
    return code;
}

static void end(tb_cuda_worker *worker) {
    const tb_cuda_api *api = worker->api;
    tb_cuda_worker_give_all(worker);
    while (worker->opened != NULL) {
        tb_cuda_opened *one = worker->opened;
        worker->opened = one->next;
        api->cuIpcCloseMemHandle(one->address);
        free(one);
    }
    for (uint32_t i = 0; i < worker->free_event_count; i++) {
        api->cuEventDestroy_v2(worker->free_events[i]);
    }
    free(worker->free_events);
    for (int i = 0; i < TB_CUDA_STREAMS; i++) {
        if (worker->streams[i] != NULL) {
            api->cuStreamDestroy_v2(worker->streams[i]);
        }
    }
    if (worker->module != NULL) {
        api->cuModuleUnload(worker->module);
    }
    if (worker->context != NULL) {
        api->cuCtxSetCurrent(NULL);
        api->cuDevicePrimaryCtxRelease_v2(worker->device);
    }
}

/* Steps every task once; true if one of them ended. */
static bool step_all(tb_cuda_worker *worker) {
    bool progress = false;
    tb_cuda_task **at = &worker->active;
    while (*at != NULL) {
        tb_cuda_task *task = *at;
        tb_cuda_task *next = task->next;
        if (task->step(task, worker) == TB_CUDA_DONE) {
            *at = next;
            progress = true;
        } else {
            at = &task->next;
        }
    }
    return progress;
}

/* Takes what was submitted, in its order; waits for it if nothing is under way. False if it is to end.
 */
static bool take_tasks(tb_cuda_worker *worker, uint32_t idle) {
    pthread_mutex_lock(&worker->lock);
    if (worker->submitted == NULL && worker->active != NULL && idle > EAGER_TURNS) {
        uint64_t pause = (uint64_t)FIRST_PAUSE_NS * (idle - EAGER_TURNS);
        struct timespec until = tb_timespec(tb_deadline(pause < LONGEST_PAUSE_NS ? pause : LONGEST_PAUSE_NS));
        pthread_cond_timedwait(&worker->wake, &worker->lock, &until);
    }
    while (worker->submitted == NULL && worker->active == NULL && !worker->stop) {
        pthread_cond_wait(&worker->wake, &worker->lock);
    }
    tb_cuda_task *taken = worker->submitted;
    worker->submitted = NULL;
    worker->submitted_end = &worker->submitted;
    bool over = worker->stop && taken == NULL && worker->active == NULL;
    pthread_mutex_unlock(&worker->lock);
    tb_cuda_task **tail = &worker->active;
    while (*tail != NULL) {
        tail = &(*tail)->next;
    }
    *tail = taken;
    return !over;
}

static void say(tb_cuda_worker *worker, bool *what) {
    pthread_mutex_lock(&worker->lock);
    *what = true;
    pthread_cond_broadcast(&worker->wake);
    pthread_mutex_unlock(&worker->lock);
}

typedef struct beginning {
    tb_cuda_worker *worker;
    char *path;
} beginning;

static void *run(void *argument) {
    beginning *given = argument;
    tb_cuda_worker *worker = given->worker;
    if (begin(worker, given->path, &worker->failure) == TB_OK) {
        worker->failure.code = TB_OK;
    }
    bool good = worker->failure.code == TB_OK;
    free(given->path);
    free(given);
    say(worker, &worker->started);
    uint32_t idle = 0;
    while (good && take_tasks(worker, idle)) {
        idle = step_all(worker) ? 0 : idle < UINT32_MAX ? idle + 1 : idle;
        if (idle > 0 && idle <= EAGER_TURNS) {
            sched_yield();
        }
    }
    end(worker);
    say(worker, &worker->ended);
    return NULL;
}

static int32_t start(tb_cuda_worker *worker, tb_error *err) {
    beginning *given = malloc(sizeof *given);
    char *path = kernels_path == NULL ? NULL : strdup(kernels_path);
    if (given == NULL || (path == NULL && kernels_path != NULL)) {
        free(given);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a worker");
    }
    *given = (beginning){worker, path};
    int error = tb_spawn(&worker->thread, STACK_BYTES, 0, run, given);
    if (error != 0) {
        free(path);
        free(given);
        return tb_fail(err, TB_ESYSTEM, -1, error, "the thread of a GPU");
    }
    pthread_mutex_lock(&worker->lock);
    while (!worker->started) {
        pthread_cond_wait(&worker->wake, &worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    if (worker->failure.code == TB_OK) {
        return TB_OK;
    }
    pthread_join(worker->thread, NULL);
    return tb_fail(err, worker->failure.code, -1, 0, "%s", worker->failure.message);
}

/* ---- opening and closing
 * --------------------------------------------------------------------------------------------- */

static int32_t find_device(tb_cuda_worker *worker, tb_error *err) {
    const tb_cuda_api *api = worker->api;
    char text[TB_UUID_TEXT];
    int count = 0;
    TB_CUDA_TRY(api, cuDeviceGetCount(&count), err);
    for (int i = 0; i < count; i++) {
        tb_cu_uuid uuid;
        TB_CUDA_TRY(api, cuDeviceGet(&worker->device, i), err);
        TB_CUDA_TRY(api, cuDeviceGetUuid_v2(&uuid, worker->device), err);
        if (memcmp(uuid.bytes, worker->uuid, sizeof worker->uuid) == 0) {
            worker->ordinal = i;
            TB_CUDA_TRY(api, cuDeviceGetName(worker->name, sizeof worker->name, worker->device), err);
            TB_CUDA_TRY(
                api,
                cuDeviceGetAttribute(&worker->multiprocessors, TB_CU_DEVICE_MULTIPROCESSORS, worker->device),
                err);
            TB_CUDA_TRY(api, cuDeviceGetAttribute(&worker->major, TB_CU_DEVICE_MAJOR, worker->device), err);
            TB_CUDA_TRY(api, cuDeviceGetAttribute(&worker->minor, TB_CU_DEVICE_MINOR, worker->device), err);
            return TB_OK;
        }
    }
    tb_cuda_uuid_text(worker->uuid, text);
    return tb_fail(err, TB_EDEVICE, -1, 0, "no GPU %s here, among %d that are visible", text, count);
}

static void free_worker(tb_cuda_worker *worker) {
    pthread_cond_destroy(&worker->wake);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

static int32_t make_worker(const tb_cuda_api *api, const uint8_t uuid[16], tb_cuda_worker **made,
                           tb_error *err) {
    tb_cuda_worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a worker");
    }
    tb_cond_init(&worker->wake);
    pthread_mutex_init(&worker->lock, NULL);
    worker->api = api;
    worker->submitted_end = &worker->submitted;
    memcpy(worker->uuid, uuid, sizeof worker->uuid);
    int32_t code = find_device(worker, err);
    if (code == TB_OK) {
        code = start(worker, err);
    }
    if (code != TB_OK) {
        free_worker(worker);
        return code;
    }
    *made = worker;
    return TB_OK;
}

static int32_t open_worker(const uint8_t uuid[16], tb_cuda_worker **worker, tb_error *err) {
    const tb_cuda_api *api;
    int32_t code = tb_cuda_load(NULL, &api, err);
    if (code != TB_OK) {
        return code;
    }
    for (tb_cuda_worker *one = all; one != NULL; one = one->next) {
        if (one->api == api && memcmp(one->uuid, uuid, sizeof one->uuid) == 0) {
            one->users++;
            *worker = one;
            return TB_OK;
        }
    }
    code = make_worker(api, uuid, worker, err);
    if (code == TB_OK) {
        (*worker)->users = 1;
        (*worker)->next = all;
        all = *worker;
    }
    return code;
}

int32_t tb_cuda_worker_open(const uint8_t uuid[16], tb_cuda_worker **worker, tb_error *err) {
    pthread_mutex_lock(&all_lock);
    int32_t code = open_worker(uuid, worker, err);
    pthread_mutex_unlock(&all_lock);
    return code;
}

/* True if it was the last user, and the worker is out of the list. */
static bool leave(tb_cuda_worker *worker) {
    pthread_mutex_lock(&all_lock);
    bool last = --worker->users == 0;
    tb_cuda_worker **at = &all;
    while (last && *at != worker) {
        at = &(*at)->next;
    }
    if (last) {
        *at = worker->next;
    }
    pthread_mutex_unlock(&all_lock);
    return last;
}

int32_t tb_cuda_worker_close(tb_cuda_worker *worker, uint32_t quiesce_ms, tb_error *err) {
    if (!leave(worker)) {
        return TB_OK;
    }
    struct timespec until = tb_timespec(tb_deadline((uint64_t)quiesce_ms * 1000000));
    bool late = false;
    pthread_mutex_lock(&worker->lock);
    worker->stop = true;
    pthread_cond_broadcast(&worker->wake);
    while (!worker->ended && !late) {
        late = pthread_cond_timedwait(&worker->wake, &worker->lock, &until) == ETIMEDOUT;
    }
    bool ended = worker->ended;
    pthread_mutex_unlock(&worker->lock);
    if (!ended) {
        /* It may still touch memory: what is left belongs to it. */
        pthread_detach(worker->thread);
        return tb_fail(err, TB_EQUARANTINED, -1, 0, "the GPU did not become quiet within %u ms", quiesce_ms);
    }
    pthread_join(worker->thread, NULL);
    free_worker(worker);
    return TB_OK;
}

/* ---- tasks
 * --------------------------------------------------------------------------------------------------------------
 */

void tb_cuda_worker_submit(tb_cuda_worker *worker, tb_cuda_task *task) {
    task->next = NULL;
    pthread_mutex_lock(&worker->lock);
    *worker->submitted_end = task;
    worker->submitted_end = &task->next;
    pthread_cond_broadcast(&worker->wake);
    pthread_mutex_unlock(&worker->lock);
}

typedef struct call {
    tb_cuda_task task;
    tb_cuda_function function;
    void *argument;
    tb_error *err;
    int32_t code;
    bool done;
} call;

static enum tb_cuda_step step_call(tb_cuda_task *task, tb_cuda_worker *worker) {
    call *one = (call *)task;
    one->code = one->function(worker, one->argument, one->err);
    say(worker, &one->done);
    return TB_CUDA_DONE;
}

int32_t tb_cuda_worker_call(tb_cuda_worker *worker, tb_cuda_function function, void *argument,
                            tb_error *err) {
    call one = {.task.step = step_call, .function = function, .argument = argument, .err = err};
    tb_cuda_worker_submit(worker, &one.task);
    pthread_mutex_lock(&worker->lock);
    while (!one.done) {
        pthread_cond_wait(&worker->wake, &worker->lock);
    }
    pthread_mutex_unlock(&worker->lock);
    return one.code;
}

/* ---- in the worker's thread
 * ------------------------------------------------------------------------------------------------ */

tb_cu_stream tb_cuda_worker_stream(tb_cuda_worker *worker) {
    return worker->streams[worker->next_stream++ % TB_CUDA_STREAMS];
}

int32_t tb_cuda_worker_take_event(tb_cuda_worker *worker, tb_cu_event *event, tb_error *err) {
    if (worker->free_event_count > 0) {
        *event = worker->free_events[--worker->free_event_count];
        return TB_OK;
    }
    TB_CUDA_TRY(worker->api, cuEventCreate(event, TB_CU_EVENT_DISABLE_TIMING), err);
    return TB_OK;
}

void tb_cuda_worker_give_event(tb_cuda_worker *worker, tb_cu_event event) {
    if (worker->free_event_count == worker->free_event_room) {
        uint32_t room = worker->free_event_room == 0 ? 16 : 2 * worker->free_event_room;
        tb_cu_event *larger = realloc(worker->free_events, room * sizeof *larger);
        if (larger == NULL) {
            worker->api->cuEventDestroy_v2(event);
            return;
        }
        worker->free_events = larger;
        worker->free_event_room = room;
    }
    worker->free_events[worker->free_event_count++] = event;
}

int32_t tb_cuda_worker_launch(tb_cuda_worker *worker, uint32_t kernel, uint32_t tiles, const void *parameter,
                              size_t parameter_bytes, tb_cu_stream stream, tb_error *err) {
    /* More than can run at once, so that those which end early take others' tiles. */
    uint32_t most = (uint32_t)worker->multiprocessors * 16;
    void *extra[] = {(void *)(uintptr_t)1, (void *)(uintptr_t)parameter, /* CU_LAUNCH_PARAM_BUFFER_POINTER */
                     (void *)(uintptr_t)2, &parameter_bytes,             /* CU_LAUNCH_PARAM_BUFFER_SIZE */
                     NULL};                                              /* CU_LAUNCH_PARAM_END */
    TB_CUDA_TRY(worker->api,
                cuLaunchKernel(worker->functions[kernel], tiles < most ? tiles : most, 1, 1, TB_CUDA_THREADS,
                               1, 1, 0, stream, NULL, extra),
                err);
    return TB_OK;
}
