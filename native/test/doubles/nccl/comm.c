/* Communicators: how they are made and end. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "double.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_nccl_comm all;
static char last_error[256];

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("double of NCCL: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

tb_nccl_result fail_with(tb_nccl_result result, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return result;
}

void pause_briefly(uint64_t us) {
    nanosleep(&(struct timespec){(time_t)(us / 1000000), (long)(us % 1000000) * 1000}, NULL);
}

uint64_t delay_us(void) {
    return double_number("NCCL_DOUBLE_DELAY_US", 0);
}

static int pretended_version(void) {
    return (int)double_number("NCCL_DOUBLE_VERSION", 23007);
}

uint32_t nccl_double_alive(void) {
    uint32_t count = 0;
    pthread_mutex_lock(&lock);
    for (tb_nccl_comm one = all; one != NULL; one = one->next) {
        count++;
    }
    pthread_mutex_unlock(&lock);
    return count;
}

/* ---- what every call checks ---------------------------------------------------------------------------- */

void check_comm(tb_nccl_comm comm, const char *call) {
    tb_cu_context context;
    pthread_mutex_lock(&lock);
    tb_nccl_comm one = all;
    while (one != NULL && one != comm) {
        one = one->next;
    }
    pthread_mutex_unlock(&lock);
    if (one == NULL) {
        die("%s on a communicator that was destroyed or never made", call);
    }
    if (!pthread_equal(one->owner, pthread_self())) {
        die("%s from another thread than the one that made the communicator", call);
    }
    if (double_context(&context) == INVALID_CONTEXT || context != one->context) {
        die("%s while another device than the communicator's is current", call);
    }
}

tb_nccl_result check_ready(tb_nccl_comm comm, const char *call) {
    int state = comm->state;
    if (state == TB_NCCL_IN_PROGRESS) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "%s before the previous operation returned success", call);
    }
    return state;
}

static void join_helper(tb_nccl_comm comm) {
    if (comm->helping) {
        pthread_join(comm->helper, NULL);
        comm->helping = false;
    }
}

tb_nccl_result help(tb_nccl_comm comm, void *(*function)(void *), void *argument) {
    join_helper(comm);
    comm->state = TB_NCCL_IN_PROGRESS;
    if (pthread_create(&comm->helper, NULL, function, argument) != 0) {
        die("no thread for what is in progress");
    }
    comm->helping = true;
    if (!comm->blocking) {
        return TB_NCCL_IN_PROGRESS; /* however fast it is over */
    }
    join_helper(comm);
    return comm->state;
}

/* ---- beginning ----------------------------------------------------------------------------------------- */

tb_nccl_result ncclGetVersion(int *version) {
    *version = pretended_version();
    return TB_NCCL_SUCCESS;
}

tb_nccl_result ncclGetUniqueId(tb_nccl_id *id) {
    return segment_create(id) ? TB_NCCL_SUCCESS : fail_with(TB_NCCL_SYSTEM_ERROR, "no memory to share");
}

static bool all_joined(segment *shared, int ranks) {
    for (int rank = 0; rank < ranks; rank++) {
        if (shared->members[rank].pid == 0) {
            return false;
        }
    }
    return true;
}

static tb_nccl_result agree(const segment *shared, int ranks) {
    const char *enabled = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    bool may_share = pretended_version() >= TB_NCCL_SHARED_DEVICE_VERSION && enabled != NULL && atoi(enabled) == 1;
    for (int i = 0; i < ranks; i++) {
        for (int j = 0; j < i; j++) {
            const member *one = &shared->members[i];
            const member *other = &shared->members[j];
            if (one->version != other->version) {
                return fail_with(TB_NCCL_INVALID_USAGE, "ranks %d and %d have NCCL %d and %d", j, i, other->version,
                                 one->version);
            }
            if (!may_share && memcmp(one->device, other->device, sizeof one->device) == 0) {
                return fail_with(TB_NCCL_INVALID_USAGE, "Duplicate GPU detected: ranks %d and %d", j, i);
            }
        }
    }
    return TB_NCCL_SUCCESS;
}

static void *begin(void *argument) {
    tb_nccl_comm comm = argument;
    pause_briefly(delay_us());
    segment *shared = NULL;
    while (!comm->abort && (shared = segment_open(&comm->id)) == NULL) {
        pause_briefly(1000);
    }
    comm->shared = shared;
    if (shared == NULL) {
        return NULL;
    }
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&shared->ranks, &nobody, comm->ranks) && nobody != comm->ranks) {
        die("rank %d joins as one of %d, others as one of %d", comm->rank, comm->ranks, nobody);
    }
    member *self = &shared->members[comm->rank];
    tb_cu_uuid uuid;
    if (cuDeviceGetUuid_v2(&uuid, comm->context->device) != TB_CU_SUCCESS) {
        die("a device without a UUID");
    }
    if (self->version != 0) {
        die("rank %d joins twice by one id", comm->rank);
    }
    self->version = pretended_version();
    memcpy(self->device, uuid.bytes, sizeof self->device);
    self->pid = getpid();
    while (!comm->abort && !all_joined(shared, comm->ranks)) {
        pause_briefly(200);
    }
    if (!comm->abort) {
        comm->state = agree(shared, comm->ranks);
    }
    return NULL;
}

tb_nccl_result ncclCommInitRankConfig(tb_nccl_comm *made, int ranks, tb_nccl_id id, int rank,
                                      tb_nccl_config *config) {
    tb_cu_context context;
    *made = NULL;
    if (double_context(&context) != TB_CU_SUCCESS) {
        return fail_with(TB_NCCL_CUDA_ERROR, "Cuda failure: no device is current, or it has failed");
    }
    if (config != NULL && (config->size < 16 || config->magic != 0xcafebeef)) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "a configuration without its magic");
    }
    bool valid = config == NULL || config->blocking == 0 || config->blocking == 1 || config->blocking == INT32_MIN;
    if (ranks < 1 || rank < 0 || rank >= ranks || !valid) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "Invalid rank requested : %d/%d", rank, ranks);
    }
    if (ranks > MOST_RANKS || in_group()) {
        die("%d ranks, or an init within a group: NCCL does it, this double does not", ranks);
    }
    tb_nccl_comm comm = calloc(1, sizeof *comm);
    if (comm == NULL) {
        return TB_NCCL_SYSTEM_ERROR;
    }
    comm->owner = pthread_self();
    comm->context = context;
    comm->id = id;
    comm->rank = rank;
    comm->ranks = ranks;
    comm->blocking = config == NULL || config->blocking != 0;
    pthread_mutex_lock(&lock);
    comm->next = all;
    all = comm;
    pthread_mutex_unlock(&lock);
    *made = comm;
    return help(comm, begin, comm);
}

/* ---- asking -------------------------------------------------------------------------------------------- */

tb_nccl_result ncclCommGetAsyncError(tb_nccl_comm comm, tb_nccl_result *state) {
    if (comm == NULL) {
        return fail_with(TB_NCCL_INVALID_ARGUMENT, "ncclCommGetAsyncError: comm argument is NULL");
    }
    check_comm(comm, "ncclCommGetAsyncError");
    *state = comm->state;
    return TB_NCCL_SUCCESS;
}

const char *ncclGetErrorString(tb_nccl_result result) {
    static const char *const words[] = {
        "no error",      "unhandled cuda error",     "unhandled system error", "internal error", "invalid argument",
        "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress",
    };
    return result >= 0 && (size_t)result < sizeof words / sizeof *words ? words[result] : "unknown result code";
}

const char *ncclGetLastError(tb_nccl_comm comm) {
    (void)comm;
    return last_error;
}

/* ---- ending -------------------------------------------------------------------------------------------- */

static void await_groups(tb_nccl_comm comm) {
    while (comm->finished < comm->launched) {
        pause_briefly(100);
    }
}

static void *finalize(void *argument) {
    tb_nccl_comm comm = argument;
    pause_briefly(delay_us());
    while (comm->finished < comm->launched && !comm->abort) {
        pause_briefly(100);
    }
    comm->state = TB_NCCL_SUCCESS;
    return NULL;
}

tb_nccl_result ncclCommFinalize(tb_nccl_comm comm) {
    if (comm == NULL) {
        return TB_NCCL_SUCCESS;
    }
    check_comm(comm, "ncclCommFinalize");
    tb_nccl_result result = check_ready(comm, "ncclCommFinalize");
    if (result != TB_NCCL_SUCCESS || comm->finalized) {
        return result != TB_NCCL_SUCCESS ? result : fail_with(TB_NCCL_INVALID_ARGUMENT, "finalized twice");
    }
    comm->finalized = true;
    return help(comm, finalize, comm);
}

static void take_out(tb_nccl_comm comm) {
    join_helper(comm);
    await_groups(comm);
    pthread_mutex_lock(&lock);
    tb_nccl_comm *at = &all;
    while (*at != comm) {
        at = &(*at)->next;
    }
    *at = comm->next;
    pthread_mutex_unlock(&lock);
    segment_close(comm->shared);
    free(comm);
}

tb_nccl_result ncclCommDestroy(tb_nccl_comm comm) {
    if (comm == NULL) {
        return TB_NCCL_SUCCESS;
    }
    check_comm(comm, "ncclCommDestroy");
    if (in_group()) {
        die("ncclCommDestroy within a group");
    }
    tb_nccl_result result = check_ready(comm, "ncclCommDestroy");
    if (result == TB_NCCL_INVALID_ARGUMENT) {
        return result;
    }
    take_out(comm);
    return TB_NCCL_SUCCESS;
}

tb_nccl_result ncclCommAbort(tb_nccl_comm comm) {
    if (comm == NULL) {
        return TB_NCCL_SUCCESS;
    }
    check_comm(comm, "ncclCommAbort");
    if (in_group()) {
        die("ncclCommAbort within a group");
    }
    comm->abort = true;
    take_out(comm);
    return TB_NCCL_SUCCESS;
}
