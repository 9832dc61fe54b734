/* Events: how far streams have come, in a page that other processes can map. */
#include "double.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct tb_cu_event_st {
    struct tb_cu_event_st *next;
    double_header *header;
    int fd; /* -1: of another process */
    bool interprocess;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_cu_event events;

static tb_cu_result check_event(tb_cu_event event) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_mutex_lock(&lock);
    tb_cu_event one = events;
    while (one != NULL && one != event) {
        one = one->next;
    }
    pthread_mutex_unlock(&lock);
    return one == NULL ? INVALID_HANDLE : TB_CU_SUCCESS;
}

static tb_cu_result add_event(tb_cu_event *made, double_header *header, int fd, bool interprocess) {
    tb_cu_event event = malloc(sizeof *event);
    if (event == NULL) {
        return TB_CU_OUT_OF_MEMORY;
    }
    *event = (struct tb_cu_event_st){NULL, header, fd, interprocess};
    pthread_mutex_lock(&lock);
    event->next = events;
    events = event;
    pthread_mutex_unlock(&lock);
    *made = event;
    return TB_CU_SUCCESS;
}

tb_cu_result cuEventCreate(tb_cu_event *event, unsigned flags) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    bool interprocess = (flags & TB_CU_EVENT_INTERPROCESS) != 0;
    if (result != TB_CU_SUCCESS || (interprocess && (flags & TB_CU_EVENT_DISABLE_TIMING) == 0)) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    int fd;
    double_header *header = double_file_create(EVENT_MAGIC, 0, &fd);
    if (header != NULL && !interprocess) {
        close(fd);
        fd = -1;
    }
    return header == NULL ? TB_CU_OUT_OF_MEMORY : add_event(event, header, fd, interprocess);
}

tb_cu_result cuEventDestroy_v2(tb_cu_event event) {
    tb_cu_result result = check_event(event);
    if (result == INVALID_HANDLE || result == INVALID_CONTEXT) {
        return result;
    }
    pthread_mutex_lock(&lock);
    tb_cu_event *at = &events;
    while (*at != event) {
        at = &(*at)->next;
    }
    *at = event->next;
    pthread_mutex_unlock(&lock);
    /* What a stream still says of it must find its page: it goes with the process, its descriptor at once. */
    if (event->fd >= 0) {
        close(event->fd);
    }
    if (event->header->recorded == event->header->completed) {
        munmap(event->header, HEADER_BYTES);
    }
    free(event);
    return result;
}

typedef struct moment {
    double_header *header;
    uint64_t number;
} moment;

static void run_record(tb_cu_context context, void *argument) {
    (void)context;
    moment *when = argument;
    uint64_t before = when->header->completed;
    while (before < when->number
           && !atomic_compare_exchange_weak(&when->header->completed, &before, when->number)) {
    }
}

static void run_wait(tb_cu_context context, void *argument) {
    moment *when = argument;
    while (when->header->completed < when->number && context->failure == TB_CU_SUCCESS) {
        nanosleep(&(struct timespec){0, 50000}, NULL);
    }
}

tb_cu_result cuEventRecord(tb_cu_event event, tb_cu_stream stream) {
    tb_cu_result result = check_event(event);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    moment when = {event->header, ++event->header->recorded};
    return double_enqueue(stream, run_record, &when, sizeof when);
}

tb_cu_result cuStreamWaitEvent(tb_cu_stream stream, tb_cu_event event, unsigned flags) {
    tb_cu_result result = check_event(event);
    if (result != TB_CU_SUCCESS || flags != 0) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    moment when = {event->header, event->header->recorded};
    return double_enqueue(stream, run_wait, &when, sizeof when);
}

tb_cu_result cuEventQuery(tb_cu_event event) {
    tb_cu_result result = check_event(event);
    return result != TB_CU_SUCCESS                             ? result
         : event->header->completed >= event->header->recorded ? TB_CU_SUCCESS
                                                               : TB_CU_NOT_READY;
}

tb_cu_result cuIpcGetEventHandle(tb_cu_ipc_event *handle, tb_cu_event event) {
    tb_cu_result result = check_event(event);
    if (result != TB_CU_SUCCESS || !event->interprocess || event->fd < 0) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    double_handle filled = {EVENT_MAGIC, event->header->serial, 0, getpid(), event->fd, 0, {0}, {0}};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &filled, sizeof filled);
    return TB_CU_SUCCESS;
}

tb_cu_result cuIpcOpenEventHandle(tb_cu_event *event, tb_cu_ipc_event given) {
    tb_cu_context context;
    double_handle handle;
    tb_cu_result result = double_context(&context);
    memcpy(&handle, &given, sizeof handle);
    if (result != TB_CU_SUCCESS || handle.pid == getpid()) {
        return result != TB_CU_SUCCESS ? result : INVALID_CONTEXT;
    }
    double_header *header = double_file_open(&handle, EVENT_MAGIC);
    return header == NULL ? INVALID_HANDLE : add_event(event, header, -1, true);
}
