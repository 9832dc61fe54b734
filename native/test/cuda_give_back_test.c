/*
 * Memory is given back at once if no round is under way, else after the last one, or late in those that
 * need nothing of this process. On the double of libcuda, which knows an address until then. A worker steps
 * its tasks in their order, so what is due has been done when a later call looks.
 */
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda_kit.h"

/* LOOKS: each is a step of what gives back. LONGEST_MS: as in cuda_give_back.c. */
enum { BYTES = 4096, LOOKS = 20, LONGEST_MS = 5000 };

static void pause_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

/* ---- what is asked in the worker's thread
 * -------------------------------------------------------------------------- */

static int32_t do_give_back(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_worker_free(worker, ((device_bytes *)argument)->address, err);
}

/* Leaves no bytes if the driver knows no such memory, its own or mapped. */
static int32_t do_look(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)err;
    device_bytes *ask = argument;
    tb_cu_pointer base;
    size_t bytes = 0;
    worker->api->cuMemGetAddressRange_v2(&base, &bytes, ask->address);
    ask->bytes = bytes;
    return TB_OK;
}

static int32_t do_export(tb_cuda_worker *worker, void *argument, tb_error *err) {
    device_bytes *ask = argument;
    uint64_t offset;
    return tb_cuda_worker_export(worker, ask->address, ask->bytes, ask->host, &offset, err);
}

static int32_t do_open(tb_cuda_worker *worker, void *argument, tb_error *err) {
    device_bytes *ask = argument;
    return tb_cuda_worker_open_memory(worker, ask->host, &ask->address, err);
}

static int32_t do_close(tb_cuda_worker *worker, void *argument, tb_error *err) {
    return tb_cuda_worker_close_memory(worker, ((device_bytes *)argument)->address, err);
}

static void give_back(tb_cuda_worker *worker, uint64_t address) {
    on_device(worker, do_give_back, &(device_bytes){.address = address});
}

static bool is_there(tb_cuda_worker *worker, uint64_t address) {
    device_bytes ask = {.address = address};
    on_device(worker, do_look, &ask);
    return ask.bytes > 0;
}

static bool stays(tb_cuda_worker *worker, uint64_t address) {
    for (int i = 0; i < LOOKS; i++) {
        if (!is_there(worker, address)) {
            return false;
        }
    }
    return true;
}

/* ---- memory of this process
 * ---------------------------------------------------------------------------------------- */

static void gives_at_once(tb_cuda_worker *worker) {
    uint64_t address = device_allocate(worker, BYTES);
    CHECK(is_there(worker, address), "nothing was allocated");
    give_back(worker, address);
    CHECK(!is_there(worker, address), "it was kept, and no round is under way");
    tb_error err;
    device_bytes ask = {.address = address};
    CHECK(tb_cuda_worker_call(worker, do_give_back, &ask, &err) == TB_ECUDA, "it was given back twice");
}

static void waits_for_rounds(tb_cuda_worker *worker, bool needs_worker) {
    uint64_t address = device_allocate(worker, BYTES);
    tb_cuda_hold(needs_worker);
    tb_cuda_hold(!needs_worker);
    give_back(worker, address);
    CHECK(stays(worker, address), "it was given back during two rounds");
    tb_cuda_unhold(!needs_worker);
    CHECK(stays(worker, address), "it was given back during a round");
    tb_cuda_unhold(needs_worker);
    CHECK(!is_there(worker, address), "it was kept after the round");
}

/* Several at once, while others of the same rounds stay in use, and again in a later round. */
static void gives_all_that_waits(tb_cuda_worker *worker) {
    enum { COUNT = 5, ROUNDS = 2 };
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t addresses[COUNT];
        uint64_t used = device_allocate(worker, BYTES);
        tb_cuda_hold(true);
        for (int i = 0; i < COUNT; i++) {
            addresses[i] = device_allocate(worker, BYTES);
            give_back(worker, addresses[i]);
        }
        for (int i = 0; i < COUNT; i++) {
            CHECK(stays(worker, addresses[i]), "no. %d was given back during round %d", i, round);
        }
        tb_cuda_unhold(true);
        for (int i = 0; i < COUNT; i++) {
            CHECK(!is_there(worker, addresses[i]), "no. %d was kept after round %d", i, round);
        }
        CHECK(is_there(worker, used), "what nobody gave back is gone");
        give_back(worker, used);
    }
}

/* Rounds without a gap between them: in the end one that needs nothing of this process is enough. */
static void gives_late(tb_cuda_worker *worker) {
    uint64_t address = device_allocate(worker, BYTES);
    tb_cuda_hold(false);
    tb_cuda_hold(true);
    give_back(worker, address);
    pause_ms(LONGEST_MS + 100);
    CHECK(stays(worker, address), "it was given back while a round may wait for this process");
    tb_cuda_unhold(true);
    CHECK(!is_there(worker, address), "it was kept during a round that needs nothing of this process");
    tb_cuda_unhold(false);
}

/* ---- memory of another process
 * -------------------------------------------------------------------------------------- */

typedef struct owner {
    pid_t process;
    int lives; /* it ends when this is closed */
    tb_cu_ipc_memory handle;
} owner;

static void run_owner(int handles, int lives) {
    use_cuda_double();
    tb_cuda_worker *worker = open_double();
    tb_cu_ipc_memory handle;
    uint64_t address = device_allocate(worker, BYTES);
    on_device(worker, do_export, &(device_bytes){address, &handle, BYTES});
    char byte;
    bool told = write(handles, &handle, sizeof handle) == sizeof handle && read(lives, &byte, 1) == 0;
    _exit(told ? 0 : 1);
}

/* Before anything of CUDA is used here: a driver does not outlive a fork. */
static owner start_owner(void) {
    int handles[2];
    int lives[2];
    CHECK(pipe(handles) == 0 && pipe(lives) == 0, "pipe");
    owner made = {.process = fork(), .lives = lives[1]};
    if (made.process == 0) {
        close(lives[1]);
        run_owner(handles[1], lives[0]);
    }
    close(handles[1]);
    close(lives[0]);
    CHECK(read(handles[0], &made.handle, sizeof made.handle) == sizeof made.handle, "no handle came");
    close(handles[0]);
    return made;
}

static void end_owner(const owner *of) {
    int status;
    close(of->lives);
    CHECK(waitpid(of->process, &status, 0) == of->process && status == 0, "the owner ended with %d", status);
}

static uint64_t open_handle(tb_cuda_worker *worker, owner *of) {
    device_bytes ask = {.host = &of->handle};
    on_device(worker, do_open, &ask);
    return ask.address;
}

static void close_handle(tb_cuda_worker *worker, uint64_t address) {
    on_device(worker, do_close, &(device_bytes){.address = address});
}

static void unmaps_after_rounds(tb_cuda_worker *worker, owner *of) {
    uint64_t address = open_handle(worker, of);
    CHECK(is_there(worker, address), "nothing was mapped");
    close_handle(worker, address);
    CHECK(!is_there(worker, address), "the mapping was kept, and no round is under way");

    address = open_handle(worker, of);
    tb_cuda_hold(true);
    close_handle(worker, address);
    CHECK(stays(worker, address), "it was unmapped during a round");
    tb_cuda_unhold(true);
    CHECK(!is_there(worker, address), "the mapping was kept after the round");
}

/* A mapping that is opened again before it ends is used once more, not made anew. */
static void reopens_what_waits(tb_cuda_worker *worker, owner *of) {
    uint64_t address = open_handle(worker, of);
    tb_cuda_hold(true);
    close_handle(worker, address);
    uint64_t again = open_handle(worker, of);
    tb_cuda_unhold(true);
    CHECK(stays(worker, again), "it was unmapped, and opened again before");
    close_handle(worker, again);
    CHECK(!is_there(worker, again), "the mapping was kept");
}

/* ---- the end of a worker
 * ------------------------------------------------------------------------------------------- */

/* A round that never ends keeps neither the worker nor the memory. */
static void gives_all_at_the_end(owner *of) {
    tb_cuda_worker *worker = open_double();
    uint64_t addresses[] = {device_allocate(worker, BYTES), open_handle(worker, of),
                            device_allocate(worker, BYTES)};
    tb_cuda_hold(true);
    give_back(worker, addresses[0]);
    close_handle(worker, addresses[1]);
    give_back(worker, addresses[2]);
    close_double(worker);
    worker = open_double();
    for (int i = 0; i < 3; i++) {
        CHECK(!is_there(worker, addresses[i]), "no. %d outlived the worker", i);
    }
    close_double(worker);
    tb_cuda_unhold(true);
}

int main(void) {
    owner other = start_owner();
    use_cuda_double();
    tb_cuda_worker *worker = open_double();
    gives_at_once(worker);
    waits_for_rounds(worker, false);
    waits_for_rounds(worker, true);
    gives_all_that_waits(worker);
    gives_late(worker);
    unmaps_after_rounds(worker, &other);
    reopens_what_waits(worker, &other);
    close_double(worker);
    gives_all_at_the_end(&other);
    end_owner(&other);
    return 0;
}
