/* Streams, each a thread that takes one thing after the other. */
#include "double.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct entry {
    struct entry *next;
    void (*run)(tb_cu_context, void *);
    uint64_t argument[];
} entry;

struct tb_cu_stream_st {
    struct tb_cu_stream_st *next;
    tb_cu_context context;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    entry *first, **end;
    bool busy, stop;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_cu_stream streams;

static void pause_us(uint64_t us) {
    nanosleep(&(struct timespec){(time_t)(us / 1000000), (long)(us % 1000000) * 1000}, NULL);
}

static void *serve(void *argument) {
    tb_cu_stream stream = argument;
    uint64_t delay = double_number("CUDA_DOUBLE_DELAY_US", 0);
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (stream->first == NULL && !stream->stop) {
            pthread_cond_wait(&stream->changed, &stream->lock);
        }
        entry *one = stream->first;
        if (one == NULL) {
            break;
        }
        stream->first = one->next;
        stream->end = stream->first == NULL ? &stream->first : stream->end;
        stream->busy = true;
        pthread_mutex_unlock(&stream->lock);
        if (delay > 0) {
            pause_us(delay);
        }
        if (stream->context->failure == TB_CU_SUCCESS) {
            one->run(stream->context, one->argument);
        }
        free(one);
        pthread_mutex_lock(&stream->lock);
        stream->busy = false;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

/* The stream's context must be current. */
static tb_cu_result check_stream(tb_cu_stream stream) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_mutex_lock(&lock);
    tb_cu_stream one = streams;
    while (one != NULL && one != stream) {
        one = one->next;
    }
    pthread_mutex_unlock(&lock);
    return one == NULL ? INVALID_HANDLE : one->context != context ? INVALID_CONTEXT : TB_CU_SUCCESS;
}

tb_cu_result cuStreamCreate(tb_cu_stream *made, unsigned flags) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS || flags > TB_CU_STREAM_NON_BLOCKING) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    tb_cu_stream stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        return TB_CU_OUT_OF_MEMORY;
    }
    stream->context = context;
    stream->end = &stream->first;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    if (pthread_create(&stream->thread, NULL, serve, stream) != 0) {
        free(stream);
        return TB_CU_OUT_OF_MEMORY;
    }
    pthread_mutex_lock(&lock);
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&lock);
    *made = stream;
    return TB_CU_SUCCESS;
}

static void await(tb_cu_stream stream) {
    pthread_mutex_lock(&stream->lock);
    while (stream->first != NULL || stream->busy) {
        pthread_cond_wait(&stream->changed, &stream->lock);
    }
    pthread_mutex_unlock(&stream->lock);
}

tb_cu_result cuStreamDestroy_v2(tb_cu_stream stream) {
    tb_cu_result result = check_stream(stream);
    if (result == INVALID_HANDLE || result == INVALID_CONTEXT) {
        return result;
    }
    pthread_mutex_lock(&lock);
    tb_cu_stream *at = &streams;
    while (*at != stream) {
        at = &(*at)->next;
    }
    *at = stream->next;
    pthread_mutex_unlock(&lock);
    pthread_mutex_lock(&stream->lock);
    stream->stop = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    pthread_cond_destroy(&stream->changed);
    pthread_mutex_destroy(&stream->lock);
    free(stream);
    return result;
}

tb_cu_result cuStreamQuery(tb_cu_stream stream) {
    tb_cu_result result = check_stream(stream);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_mutex_lock(&stream->lock);
    bool ready = stream->first == NULL && !stream->busy;
    pthread_mutex_unlock(&stream->lock);
    return stream->context->failure != TB_CU_SUCCESS ? stream->context->failure
         : ready                                     ? TB_CU_SUCCESS
                                                     : TB_CU_NOT_READY;
}

tb_cu_result cuStreamSynchronize(tb_cu_stream stream) {
    tb_cu_result result = check_stream(stream);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    await(stream);
    return stream->context->failure;
}

void double_drain(tb_cu_context context) {
    pthread_mutex_lock(&lock);
    for (tb_cu_stream stream = streams; stream != NULL; stream = stream->next) {
        if (stream->context == context) {
            await(stream);
        }
    }
    pthread_mutex_unlock(&lock);
}

tb_cu_result double_enqueue(tb_cu_stream stream, void (*run)(tb_cu_context, void *), const void *argument,
                            size_t bytes) {
    if (stream == NULL) {
        /* The default stream comes after all others of its context. */
        tb_cu_context context;
        tb_cu_result result = double_context(&context);
        if (result == TB_CU_SUCCESS) {
            double_drain(context);
            run(context, (void *)(uintptr_t)argument);
            result = context->failure;
        }
        return result;
    }
    tb_cu_result result = check_stream(stream);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    entry *one = malloc(sizeof *one + bytes);
    if (one == NULL) {
        return TB_CU_OUT_OF_MEMORY;
    }
    one->next = NULL;
    one->run = run;
    memcpy(one->argument, argument, bytes);
    pthread_mutex_lock(&stream->lock);
    *stream->end = one;
    stream->end = &one->next;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return TB_CU_SUCCESS;
}

/* ---- what goes into them
 * ------------------------------------------------------------------------------------------- */

typedef struct copying {
    tb_cu_pointer to, from;
    uint64_t bytes;
    uint8_t fill;
    uint8_t host[];
} copying;

static uint8_t *reach(tb_cu_context context, tb_cu_pointer address, uint64_t bytes) {
    char why[160];
    uint8_t *at = double_reach(address, bytes, why, sizeof why);
    if (at == NULL) {
        double_fail(context, ILLEGAL_ADDRESS, "copying: %s", why);
    }
    return at;
}

static void run_copy(tb_cu_context context, void *argument) {
    copying *copy = argument;
    uint8_t *to = reach(context, copy->to, copy->bytes);
    uint8_t *from = to == NULL ? NULL : reach(context, copy->from, copy->bytes);
    if (from != NULL) {
        memmove(to, from, copy->bytes);
    }
}

static void run_upload(tb_cu_context context, void *argument) {
    copying *copy = argument;
    uint8_t *to = reach(context, copy->to, copy->bytes);
    if (to != NULL) {
        memcpy(to, copy->host, copy->bytes);
    }
}

static void run_fill(tb_cu_context context, void *argument) {
    copying *copy = argument;
    uint8_t *to = reach(context, copy->to, copy->bytes);
    if (to != NULL) {
        memset(to, copy->fill, copy->bytes);
    }
}

/* A call names memory that is there now; what becomes of it until the stream comes to it is its caller's
 * part. */
static tb_cu_result check_range(tb_cu_pointer address, uint64_t bytes) {
    char why[160];
    return bytes == 0 || double_reach(address, bytes, why, sizeof why) != NULL ? TB_CU_SUCCESS
                                                                               : TB_CU_INVALID_VALUE;
}

tb_cu_result cuMemcpyDtoDAsync_v2(tb_cu_pointer to, tb_cu_pointer from, size_t bytes, tb_cu_stream stream) {
    copying copy = {to, from, bytes, 0};
    if (check_range(to, bytes) != TB_CU_SUCCESS || check_range(from, bytes) != TB_CU_SUCCESS) {
        return TB_CU_INVALID_VALUE;
    }
    return bytes == 0 ? check_stream(stream) : double_enqueue(stream, run_copy, &copy, sizeof copy);
}

tb_cu_result cuMemcpyHtoDAsync_v2(tb_cu_pointer to, const void *from, size_t bytes, tb_cu_stream stream) {
    if (check_range(to, bytes) != TB_CU_SUCCESS) {
        return TB_CU_INVALID_VALUE;
    }
    /* From memory that is not pinned it is read before the call returns. */
    copying *copy = malloc(sizeof *copy + bytes);
    if (copy == NULL) {
        return TB_CU_OUT_OF_MEMORY;
    }
    *copy = (copying){to, 0, bytes, 0};
    memcpy(copy->host, from, bytes);
    tb_cu_result result =
        bytes == 0 ? check_stream(stream) : double_enqueue(stream, run_upload, copy, sizeof *copy + bytes);
    free(copy);
    return result;
}

tb_cu_result cuMemsetD8Async(tb_cu_pointer to, unsigned char fill, size_t bytes, tb_cu_stream stream) {
    copying copy = {to, 0, bytes, fill};
    if (check_range(to, bytes) != TB_CU_SUCCESS) {
        return TB_CU_INVALID_VALUE;
    }
    return bytes == 0 ? check_stream(stream) : double_enqueue(stream, run_fill, &copy, sizeof copy);
}
