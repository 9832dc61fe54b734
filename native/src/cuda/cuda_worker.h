/*
 * One thread for each GPU, which alone calls CUDA for it (and NCCL): tasks are handed to it, and stepped
 * until they say that they are done. It never waits inside of the driver: streams and events are asked,
 * against deadlines of the tasks. Workers are shared by all of a process that use the device, which is named
 * by its UUID, never by a number.
 */
#ifndef TB_CUDA_WORKER_H
#define TB_CUDA_WORKER_H

#include <pthread.h>
#include <stdbool.h>

#include "../cuda/table.h"
#include "cuda/cuda_api.h"

/* For copies, so that a launch does not wait for the end of the one before. */
enum { TB_CUDA_STREAMS = 4 };

typedef struct tb_cuda_worker tb_cuda_worker;
typedef struct tb_cuda_task tb_cuda_task;
typedef struct tb_cuda_given tb_cuda_given;

enum tb_cuda_step { TB_CUDA_AGAIN, TB_CUDA_DONE };

/*
 * Embed it in what is to be done. step is called in the worker's thread, with the device's context current,
 * again and again (between tens of microseconds) until it gives TB_CUDA_DONE; after that the worker does not
 * touch the task. step must not block, and may submit other tasks.
 */
struct tb_cuda_task {
    tb_cuda_task *next; /* the worker's */
    enum tb_cuda_step (*step)(tb_cuda_task *task, tb_cuda_worker *worker);
};

/* An allocation of another process, mapped here. */
typedef struct tb_cuda_opened {
    struct tb_cuda_opened *next;
    tb_cu_ipc_memory handle;
    tb_cu_pointer address;
    uint64_t bytes;
    uint32_t uses;
} tb_cuda_opened;

struct tb_cuda_worker {
    /* The same while it is open; may be read from any thread. */
    const tb_cuda_api *api;
    uint8_t uuid[16];
    tb_cu_device device;
    int ordinal;
    char name[128];
    int multiprocessors, major, minor;

    /* Owned by the thread; no lock is needed. */
    tb_cu_context context;
    tb_cu_module module;
    tb_cu_function functions[TB_CUDA_KERNEL_COUNT];
    tb_cu_stream streams[TB_CUDA_STREAMS];
    uint32_t next_stream;
    tb_cu_event *free_events;
    uint32_t free_event_count, free_event_room;
    tb_cuda_opened *opened;
    tb_cuda_task *active;
    tb_cuda_given *given; /* memory that is still to be given back, by a task that is there meanwhile */
    tb_cuda_task give;
    bool giving;

    /* Behind the lock. */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    tb_cuda_task *submitted, **submitted_end;
    bool stop, started, ended;
    tb_error failure; /* why the thread could not begin */
    pthread_t thread;
    uint32_t users; /* behind the lock of all workers */
    tb_cuda_worker *next;
};

/*
 * The PTX of the kernels, read from a file when the first worker is opened after this. Workers that are open
 * keep theirs.
 */
int32_t tb_cuda_worker_kernels(const char *path, tb_error *err);

/*
 * The worker of a device; blocks while its thread begins. TB_ELIBRARY: no driver, too old a one, or no
 * kernels. TB_EDEVICE: this machine has no such device.
 */
int32_t tb_cuda_worker_open(const uint8_t uuid[16], tb_cuda_worker **worker, tb_error *err);
/* What those give who have no deadline of their own. */
enum { TB_CUDA_QUIESCE_MS = 5000 };
/* The last user's ends the thread, once its tasks are done. TB_EQUARANTINED if one does not end in time.
 */
int32_t tb_cuda_worker_close(tb_cuda_worker *worker, uint32_t quiesce_ms, tb_error *err);

void tb_cuda_worker_submit(tb_cuda_worker *worker, tb_cuda_task *task);
/* Calls a function in the worker's thread and waits for its end. Not from a task. */
typedef int32_t (*tb_cuda_function)(tb_cuda_worker *worker, void *argument, tb_error *err);
int32_t tb_cuda_worker_call(tb_cuda_worker *worker, tb_cuda_function function, void *argument, tb_error *err);

/*
 * Opens the worker for one such call. keep: 1, what the call made keeps the worker; -1, it took that away; 0, neither.
 */
int32_t tb_cuda_visit(const uint8_t uuid[16], tb_cuda_function function, void *argument, int keep, tb_error *err);

/*
 * A round of this process has kernels that wait for other ranks, until unhold; needs_worker: those may wait in turn
 * for what workers of this process are still to do. From any thread.
 */
void tb_cuda_hold(bool needs_worker);
void tb_cuda_unhold(bool needs_worker);

/* ---- in the worker's thread
 * ------------------------------------------------------------------------------------ */

/* The streams in turn. */
tb_cu_stream tb_cuda_worker_stream(tb_cuda_worker *worker);
/* An event, without timing, and back when nothing waits for it any more. */
int32_t tb_cuda_worker_take_event(tb_cuda_worker *worker, tb_cu_event *event, tb_error *err);
void tb_cuda_worker_give_event(tb_cuda_worker *worker, tb_cu_event event);
/* Puts a kernel of enum tb_cuda_kernel into the stream, with a block for each tile as far as that makes
 * sense. */
int32_t tb_cuda_worker_launch(tb_cuda_worker *worker, uint32_t kernel, uint32_t tiles, const void *parameter,
                              size_t parameter_bytes, tb_cu_stream stream, tb_error *err);
/* Memory of the device back, and an allocation of another process: at once, or when no round is under way. */
int32_t tb_cuda_worker_free(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err);
int32_t tb_cuda_worker_unmap(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err);
void tb_cuda_worker_give_all(tb_cuda_worker *worker);
/*
 * Maps an allocation of another process by its handle, once, however often it is asked for; close for every
 * open. The handle stands for the beginning of the allocation.
 */
int32_t tb_cuda_worker_open_memory(tb_cuda_worker *worker, const tb_cu_ipc_memory *handle,
                                   tb_cu_pointer *address, tb_error *err);
int32_t tb_cuda_worker_close_memory(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err);
/*
 * The handle of the allocation that an address lies in, and how far from its beginning. TB_EUNSUPPORTED for
 * memory of which there is no such handle, with what to do about it.
 */
#define TB_NO_IPC_HANDLE                                                                                     \
    "this CUDA memory has no handle that another process can open: it was mapped piece by piece, as PyTorch "  \
    "does with expandable segments. Set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False where it is allocated"
int32_t tb_cuda_worker_export(tb_cuda_worker *worker, tb_cu_pointer address, uint64_t bytes,
                              tb_cu_ipc_memory *handle, uint64_t *offset, tb_error *err);

#endif
