/*
 * The double of libnccl keeps NCCL's rules: what it refuses, what stays in progress, what meets what, and what stops the
 * process. Ranks are threads, or processes if one has to die.
 */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "cuda/cuda_api.h"
#include "carriers/nccl/nccl_api.h"

static const tb_cuda_api *cuda;
static const tb_nccl_api *nccl;

static void load(void) {
    tb_error err;
    CHECK(tb_cuda_load("build/doubles/libcuda.so", &cuda, &err) == TB_OK, "%s", err.message);
    CHECK(tb_nccl_load("build/doubles/libnccl.so", &nccl, &err) == TB_OK, "%s", err.message);
}

static void pause_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

#define CUDA(call) CHECK(cuda->call == TB_CU_SUCCESS, "CUDA")
#define GIVES(result, call)                                                                                            \
    do {                                                                                                               \
        tb_nccl_result got_ = nccl->call;                                                                              \
        CHECK(got_ == (result), "it gave %d: %s", got_, nccl->ncclGetLastError(NULL));                                 \
    } while (0)

typedef struct rank {
    tb_nccl_comm comm;
    tb_cu_stream stream;
    tb_cu_pointer memory;
} rank;

enum { BYTES = 300000 };

static tb_nccl_result settle(tb_nccl_comm comm) {
    tb_nccl_result state = TB_NCCL_IN_PROGRESS;
    while (state == TB_NCCL_IN_PROGRESS) {
        GIVES(TB_NCCL_SUCCESS, ncclCommGetAsyncError(comm, &state));
        pause_ms(1);
    }
    return state;
}

static void use_device(int number) {
    tb_cu_context context;
    CUDA(cuDevicePrimaryCtxRetain(&context, number));
    CUDA(cuCtxSetCurrent(context));
}

static tb_nccl_comm start(const tb_nccl_id *id, int number, int count) {
    tb_nccl_config config;
    tb_nccl_config_init(&config);
    tb_nccl_comm comm;
    GIVES(TB_NCCL_IN_PROGRESS, ncclCommInitRankConfig(&comm, count, *id, number, &config));
    return comm;
}

static rank join(const tb_nccl_id *id, int number, int count) {
    rank self = {0};
    use_device(number);
    CUDA(cuStreamCreate(&self.stream, TB_CU_STREAM_NON_BLOCKING));
    CUDA(cuMemAlloc_v2(&self.memory, 2 * BYTES));
    self.comm = start(id, number, count);
    CHECK(settle(self.comm) == TB_NCCL_SUCCESS, "init");
    return self;
}

static void *at(const rank *self, uint64_t offset) {
    return (void *)(uintptr_t)(self->memory + offset);
}

static void leave(const rank *self) {
    GIVES(TB_NCCL_IN_PROGRESS, ncclCommFinalize(self->comm));
    CHECK(settle(self->comm) == TB_NCCL_SUCCESS, "finalize");
    GIVES(TB_NCCL_SUCCESS, ncclCommDestroy(self->comm));
}

/* ---- sends meet receives -------------------------------------------------------------------------------- */

static tb_nccl_id shared_id;

static void *exchange(void *argument) {
    int number = *(int *)argument;
    uint64_t seed = 17 + (uint64_t)number;
    static uint8_t sent[2][BYTES];
    static uint8_t got[2][BYTES];
    rank self = join(&shared_id, number, 2);
    random_fill(&seed, sent[number], BYTES);
    CUDA(cuMemcpyHtoD_v2(self.memory, sent[number], BYTES));
    for (int turn = 0; turn < 20; turn++) {
        GIVES(TB_NCCL_SUCCESS, ncclGroupStart());
        GIVES(TB_NCCL_SUCCESS, ncclSend(at(&self, 0), BYTES, TB_NCCL_UINT8, 1 - number, self.comm, self.stream));
        GIVES(TB_NCCL_SUCCESS, ncclRecv(at(&self, BYTES), 1000, TB_NCCL_UINT8, number, self.comm, self.stream));
        GIVES(TB_NCCL_SUCCESS,
              ncclRecv(at(&self, BYTES), BYTES, TB_NCCL_UINT8, 1 - number, self.comm, self.stream));
        GIVES(TB_NCCL_SUCCESS, ncclSend(at(&self, 500), 1000, TB_NCCL_UINT8, number, self.comm, self.stream));
        GIVES(TB_NCCL_IN_PROGRESS, ncclGroupEnd());
        CHECK(settle(self.comm) == TB_NCCL_SUCCESS, "a group");
    }
    CUDA(cuStreamSynchronize(self.stream));
    CUDA(cuMemcpyDtoH_v2(got[number], self.memory + BYTES, BYTES));
    seed = 17 + (uint64_t)(1 - number);
    random_fill(&seed, sent[number], BYTES);
    CHECK(memcmp(got[number] + 1000, sent[number] + 1000, BYTES - 1000) == 0, "other bytes");
    leave(&self);
    return NULL;
}

static void test_exchange(void) {
    pthread_t threads[2];
    int numbers[2] = {0, 1};
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&shared_id));
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, exchange, &numbers[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
    }
}

/* ---- what is refused ------------------------------------------------------------------------------------ */

static void test_refusals(void) {
    tb_nccl_id id;
    tb_nccl_comm comm;
    tb_nccl_config config = {.size = sizeof config};
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    GIVES(TB_NCCL_CUDA_ERROR, ncclCommInitRankConfig(&comm, 1, id, 0, &config));
    use_device(0);
    GIVES(TB_NCCL_INVALID_ARGUMENT, ncclCommInitRankConfig(&comm, 1, id, 0, &config));
    tb_nccl_config_init(&config);
    GIVES(TB_NCCL_INVALID_ARGUMENT, ncclCommInitRankConfig(&comm, 2, id, 2, &config));
    GIVES(TB_NCCL_INVALID_USAGE, ncclGroupEnd());
    rank self = join(&id, 0, 1);
    GIVES(TB_NCCL_INVALID_ARGUMENT, ncclSend(at(&self, 0), 1, TB_NCCL_UINT8, 1, self.comm, self.stream));
    /* To itself and without a receive: it would never end. */
    GIVES(TB_NCCL_INVALID_USAGE, ncclSend(at(&self, 0), 1, TB_NCCL_UINT8, 0, self.comm, self.stream));
    GIVES(TB_NCCL_SUCCESS, ncclGroupStart());
    GIVES(TB_NCCL_SUCCESS, ncclSend(at(&self, 0), 8, TB_NCCL_UINT8, 0, self.comm, self.stream));
    GIVES(TB_NCCL_SUCCESS, ncclRecv(at(&self, 8), 8, TB_NCCL_UINT8, 0, self.comm, self.stream));
    setenv("NCCL_DOUBLE_DELAY_US", "20000", 1);
    GIVES(TB_NCCL_IN_PROGRESS, ncclGroupEnd());
    /* Before the group is in its stream nothing else may be asked for. */
    GIVES(TB_NCCL_INVALID_ARGUMENT, ncclCommFinalize(self.comm));
    CHECK(settle(self.comm) == TB_NCCL_SUCCESS, "a group");
    unsetenv("NCCL_DOUBLE_DELAY_US");
    CUDA(cuStreamSynchronize(self.stream));
    leave(&self);
}

static void *join_same_device(void *argument) {
    use_device(0);
    tb_nccl_comm comm = start(&shared_id, *(int *)argument, 2);
    static tb_nccl_result results[2];
    results[*(int *)argument] = settle(comm);
    GIVES(TB_NCCL_SUCCESS, ncclCommAbort(comm));
    return &results[*(int *)argument];
}

static void check_same_device(tb_nccl_result expected) {
    pthread_t threads[2];
    int numbers[2] = {0, 1};
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&shared_id));
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, join_same_device, &numbers[i]);
    }
    for (int i = 0; i < 2; i++) {
        void *result;
        pthread_join(threads[i], &result);
        CHECK(*(tb_nccl_result *)result == expected, "two ranks on one device: %d", *(tb_nccl_result *)result);
    }
}

static void test_same_device(void) {
    check_same_device(TB_NCCL_INVALID_USAGE);
    setenv("NCCL_MULTI_RANK_GPU_ENABLE", "1", 1);
    check_same_device(TB_NCCL_SUCCESS);
    setenv("NCCL_DOUBLE_VERSION", "22907", 1);
    check_same_device(TB_NCCL_INVALID_USAGE);
    unsetenv("NCCL_DOUBLE_VERSION");
    unsetenv("NCCL_MULTI_RANK_GPU_ENABLE");
}

/* ---- who does not come ---------------------------------------------------------------------------------- */

static void test_missing_peer(void) {
    tb_nccl_id id;
    tb_nccl_result state;
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    use_device(0);
    tb_nccl_comm comm = start(&id, 0, 2);
    pause_ms(50);
    GIVES(TB_NCCL_SUCCESS, ncclCommGetAsyncError(comm, &state));
    CHECK(state == TB_NCCL_IN_PROGRESS, "%d", state);
    GIVES(TB_NCCL_SUCCESS, ncclCommAbort(comm));
}

/* The other rank joins, sends once, and is gone in the middle of the second. */
static void run_doomed(const tb_nccl_id *id, int ready) {
    rank self = join(id, 1, 2);
    GIVES(TB_NCCL_IN_PROGRESS, ncclSend(at(&self, 0), 8, TB_NCCL_UINT8, 0, self.comm, self.stream));
    CHECK(settle(self.comm) == TB_NCCL_SUCCESS, "a group");
    CUDA(cuStreamSynchronize(self.stream));
    CHECK(write(ready, "", 1) == 1, "write");
    pause();
}

static void check_death(bool remote_errors) {
    tb_nccl_id id;
    int ends[2];
    tb_nccl_result state;
    setenv("NCCL_DOUBLE_REMOTE_ERRORS", remote_errors ? "1" : "0", 1);
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    CHECK(pipe(ends) == 0, "pipe");
    pid_t child = fork();
    if (child == 0) {
        run_doomed(&id, ends[1]);
    }
    rank self = join(&id, 0, 2);
    for (int turn = 0; turn < 2; turn++) {
        GIVES(TB_NCCL_IN_PROGRESS, ncclRecv(at(&self, 0), 8, TB_NCCL_UINT8, 1, self.comm, self.stream));
        CHECK(settle(self.comm) == TB_NCCL_SUCCESS, "a group");
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1, "read");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    pause_ms(100);
    GIVES(TB_NCCL_SUCCESS, ncclCommGetAsyncError(self.comm, &state));
    CHECK(state == (remote_errors ? TB_NCCL_REMOTE_ERROR : TB_NCCL_SUCCESS), "%d", state);
    CHECK(cuda->cuStreamQuery(self.stream) == (remote_errors ? TB_CU_SUCCESS : TB_CU_NOT_READY), "a kernel");
    GIVES(TB_NCCL_SUCCESS, ncclCommAbort(self.comm));
    CUDA(cuStreamSynchronize(self.stream));
}

/* ---- what stops the process ------------------------------------------------------------------------------ */

static void use_after_abort(void) {
    tb_nccl_id id;
    tb_nccl_result state;
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    rank self = join(&id, 0, 1);
    GIVES(TB_NCCL_SUCCESS, ncclCommAbort(self.comm));
    nccl->ncclCommGetAsyncError(self.comm, &state);
}

static void *ask_elsewhere(void *argument) {
    tb_nccl_result state;
    use_device(0);
    nccl->ncclCommGetAsyncError(argument, &state);
    return NULL;
}

static void use_from_elsewhere(void) {
    tb_nccl_id id;
    pthread_t thread;
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    rank self = join(&id, 0, 1);
    pthread_create(&thread, NULL, ask_elsewhere, self.comm);
    pthread_join(thread, NULL);
}

static void meet_another_size(void) {
    tb_nccl_id id;
    GIVES(TB_NCCL_SUCCESS, ncclGetUniqueId(&id));
    rank self = join(&id, 0, 1);
    GIVES(TB_NCCL_SUCCESS, ncclGroupStart());
    GIVES(TB_NCCL_SUCCESS, ncclSend(at(&self, 0), 8, TB_NCCL_UINT8, 0, self.comm, self.stream));
    GIVES(TB_NCCL_SUCCESS, ncclRecv(at(&self, 8), 16, TB_NCCL_UINT8, 0, self.comm, self.stream));
    GIVES(TB_NCCL_IN_PROGRESS, ncclGroupEnd());
    settle(self.comm);
    cuda->cuStreamSynchronize(self.stream);
}

static void check_stops(const char *what, void (*run)(void)) {
    pid_t child = fork();
    if (child == 0) {
        CHECK(freopen("/dev/null", "w", stderr) != NULL, "stderr");
        run();
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "%s went on", what);
}

int main(void) {
    setenv("CUDA_DOUBLE_DEVICES", "2", 1);
    load();
    /* First what forks: no threads are there yet. */
    check_stops("a call on a communicator that was aborted", use_after_abort);
    check_stops("a call from another thread", use_from_elsewhere);
    check_stops("a send that meets a receive of another size", meet_another_size);
    check_death(false);
    check_death(true);
    CUDA(cuCtxSetCurrent(NULL));
    test_refusals();
    test_missing_peer();
    test_same_device();
    test_exchange();
    return 0;
}
