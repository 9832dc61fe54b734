/* What only carriers that pull can get wrong: whose memory is read, by whom, and when it is free again. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "carriers/shm/book.h"
#include "carriers/registry.h"
#include "identity/identity.h"
#include "kernels/dtype.h"
#include "base/error.h"
#include "base/handle.h"
#include "world_kit.h"
#include "round/carrier.h"
#include "round/select.h"

enum { BYTES = 4 << 20 };

/* So many buckets from one tensor to another of one bucket's size that the round takes seconds. */
static void endless(kit *k, int buckets) {
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_UINT8, BYTES, TB_UINT8, BYTES);
    for (int i = 0; i < buckets; i++) {
        kit_copy(k, kit_bucket_add(k, 1, 0, 1, 0), 0, BYTES, kit_run(0, BYTES), kit_run(0, BYTES));
    }
}

static uint64_t bytes_done(const world *w, int rank) {
    uint64_t round, done, total, staging;
    CHECK(tb_transfer_progress(w->session[rank], w->transfer[rank], &round, &done, &total, &staging, NULL)
          == TB_OK);
    return done;
}

static void wait_for_bytes(world *w, int rank) {
    while (bytes_done(w, rank) == 0) {
        world_pump(w, 1);
    }
}

/* ---- selection ----------------------------------------------------------------------------------------- */

static tb_wire_identity host(uint32_t carriers, uint32_t memory) {
    return (tb_wire_identity){
        .boot = {1}, .pid_space = 2, .pid = 3, .user = 4, .carriers = carriers, .memory = memory};
}

static void selects(tb_wire_identity a, tb_wire_identity b, uint32_t flags, int32_t code,
                    const tb_carrier *expected, const char *why) {
    for (int turn = 0; turn < 2; turn++) {
        tb_error error;
        const tb_carrier *got = NULL;
        CHECK(tb_carrier_select(tb_carriers, turn ? &a : &b, turn ? &b : &a, flags, &got, &error) == code);
        CHECK(code != TB_OK || got == expected);
        CHECK(code == TB_OK || strstr(error.message, why) != NULL);
    }
}

static void test_select(void) {
    enum { STREAM = TB_CARRY_STREAM, SHM = TB_CARRY_SHM, IPC = TB_CARRY_CUDA_IPC };
    enum { ALL = STREAM | SHM | IPC | TB_CARRY_NCCL, HOST = TB_MEMORY_HOST, CUDA = TB_MEMORY_CUDA };
    tb_wire_identity far = host(ALL, HOST);
    far.boot[3] = 9;
    selects(host(ALL, HOST), host(ALL, HOST | TB_MEMORY_SHARED), 0, TB_OK, &tb_carrier_shm, NULL);
    selects(host(ALL, HOST), host(ALL, HOST), TB_TRANSFER_CHECKSUM, TB_OK, &tb_carrier_stream, NULL);
    selects(host(ALL, HOST), host(STREAM, HOST), 0, TB_OK, &tb_carrier_stream, NULL);
    selects(host(ALL, HOST), host(0, HOST), 0, TB_OK, &tb_carrier_stream, NULL);
    selects(host(ALL, HOST), far, 0, TB_OK, &tb_carrier_stream, NULL);
    far.carriers = SHM;
    selects(host(SHM, HOST), far, 0, TB_EUNSUPPORTED, NULL, "shm: the two are on different hosts");
    selects(host(SHM, HOST), host(STREAM, HOST), 0, TB_EUNSUPPORTED, NULL,
            "shm: one of the two does not use it");
    selects(host(SHM, HOST), host(SHM, HOST), TB_TRANSFER_CHECKSUM, TB_EUNSUPPORTED, NULL,
            "shm: it makes no checksums");
    selects(host(SHM, CUDA), host(SHM, HOST), 0, TB_EUNSUPPORTED, NULL, "those of the other in memory of the host");
    tb_wire_identity other = host(SHM, HOST);
    other.user = 5;
    selects(host(SHM, HOST), other, 0, TB_EUNSUPPORTED, NULL, "different users");
    other = host(SHM, HOST);
    other.pid_space = 5;
    selects(host(SHM, HOST), other, 0, TB_EUNSUPPORTED, NULL, "different PID namespaces");
    selects(host(ALL, CUDA), host(ALL, CUDA), 0, TB_OK, &tb_carrier_cuda_ipc, NULL);
}

static void test_select_nccl(void) {
    enum { IPC = TB_CARRY_CUDA_IPC, NCCL = TB_CARRY_NCCL, CUDA = TB_MEMORY_CUDA };
    tb_wire_identity near = host(IPC | NCCL, CUDA);
    near.facts[TB_FACT_NCCL] = 23007;
    tb_wire_identity far = near;
    far.boot[3] = 9;
    far.device[0] = 7;
    selects(near, far, 0, TB_OK, &tb_carrier_nccl, NULL);
    tb_wire_identity beside = far;
    beside.boot[3] = near.boot[3];
    selects(near, beside, 0, TB_OK, &tb_carrier_cuda_ipc, NULL);
    beside.carriers = NCCL;
    selects(near, beside, 0, TB_OK, &tb_carrier_nccl, NULL);
    selects(near, far, TB_TRANSFER_CHECKSUM, TB_EUNSUPPORTED, NULL, "nccl: it makes no checksums");
    far.facts[TB_FACT_NCCL] = 22809;
    selects(near, far, 0, TB_EUNSUPPORTED, NULL, "cuda-ipc: the two are on different hosts; nccl: one has version 2.");
    far.facts[TB_FACT_NCCL] = 0;
    selects(near, far, 0, TB_EUNSUPPORTED, NULL, "nccl: one of the two has not loaded the library");
    /* Two ranks of one GPU: never NCCL, unless both were told that it can. */
    tb_wire_identity twin = near;
    selects(near, twin, 0, TB_OK, &tb_carrier_cuda_ipc, NULL);
    twin.carriers = NCCL;
    selects(near, twin, 0, TB_EDEVICE_SHARED, NULL, "nccl: the two share a GPU");
    twin.carriers = NCCL | TB_CARRY_SHARED_GPU;
    selects(near, twin, 0, TB_EDEVICE_SHARED, NULL, "nccl: the two share a GPU");
    selects(twin, twin, 0, TB_OK, &tb_carrier_nccl, NULL);
}

/* A process of this host is known to be gone; of another host nothing is known. */
static void test_who_may_live(void) {
    tb_error error;
    tb_wire_identity own = {.pid = getpid()};
    CHECK(tb_identity_fill(&own, &error) == TB_OK);
    CHECK(tb_identity_may_live(&own, &own));
    tb_wire_identity gone = own;
    gone.pid_start++; /* the number was given to another process */
    CHECK(!tb_identity_may_live(&own, &gone));
    tb_wire_identity far = gone;
    far.boot[0]++;
    CHECK(tb_identity_may_live(&own, &far));
    far = gone;
    far.pid_space++;
    CHECK(tb_identity_may_live(&own, &far));
}

/* ---- memory is free when the round says so ------------------------------------------------------------- */

/*
 * The source gives up in the middle, and nobody may read its memory from its event on: what would is a
 * SIGSEGV here, and EFAULT if it is read as another process's.
 */
static void cancelled_source(const world_options *options) {
    world w;
    kit k;
    endless(&k, 4000);
    world_open(&w, options, 2);
    world_prepare(&w, &k, 0);
    for (uint64_t round = 1; round <= 8; round++) {
        tb_event event;
        world_post(&w, 1, round, 60 * SECOND);
        world_post(&w, 0, round, 60 * SECOND);
        wait_for_bytes(&w, 1);
        CHECK(tb_transfer_cancel(w.session[0], w.transfer[0], TB_ECANCELLED, NULL) == TB_OK);
        world_expect(&w, 0, TB_EVENT_ROUND, TB_ECANCELLED, 0, NULL);
        CHECK(mprotect(w.memory[0][0][0], BYTES, PROT_NONE) == 0);
        CHECK(world_take(&w, 1, TB_EVENT_ROUND, 20 * SECOND, &event));
        CHECK(event.error.code == TB_ECANCELLED && event.error.rank == 0);
        CHECK(mprotect(w.memory[0][0][0], BYTES, PROT_READ | PROT_WRITE) == 0);
    }
    /* The same if the whole session ends. */
    world_post(&w, 1, 9, 60 * SECOND);
    world_post(&w, 0, 9, 60 * SECOND);
    wait_for_bytes(&w, 1);
    world_close_rank(&w, 0);
    CHECK(mprotect(w.memory[0][0][0], BYTES, PROT_NONE) == 0);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_EPEER_LOST, 0, NULL);
    CHECK(mprotect(w.memory[0][0][0], BYTES, PROT_READ | PROT_WRITE) == 0);
    world_close(&w);
    kit_free(&k);
}

/* ---- nothing stays ------------------------------------------------------------------------------------- */

static int count_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    CHECK(folder != NULL);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

static int count_mapped(void) {
    char command[64];
    snprintf(command, sizeof command, "/proc/%d/maps", getpid());
    FILE *file = fopen(command, "r");
    char line[512];
    int count = 0;
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        count += strstr(line, "memfd:") != NULL;
    }
    fclose(file);
    return count;
}

static void flat(const world_options *options) {
    world w;
    kit k;
    enum { SMALL = 4096 };
    kit_start(&k, 2, 4);
    kit_tensor(&k, 0, TB_FLOAT32, SMALL, TB_FLOAT32, SMALL);
    kit_piece_add(&k, 1, 0, TB_FLOAT32, 0, SMALL / 4, 1, 2);
    for (uint32_t member = 0; member < 2; member++) {
        kit_bucket *bucket = kit_bucket_add(&k, 0, member, 1, 0);
        bucket->fold_after = member == 0 ? -1 : 0;
        kit_reduce(&k, bucket, 0, member, kit_run(0, SMALL), 0);
    }
    kit_bucket *result = kit_bucket_add(&k, 1, 1, 0, 1);
    result->dependencies[result->dependency_count++] = 1;
    kit_copy(&k, result, 0, SMALL / 4, kit_in_piece(0), kit_run(0, SMALL));
    world_open(&w, options, 2);
    w.pool[1] = SMALL;
    int descriptors = 0;
    int mapped = 0;
    for (int batch = 0; batch < 20; batch++) {
        world_prepare(&w, &k, 0);
        for (uint64_t round = 1; round <= 50; round++) {
            world_round(&w, round);
        }
        world_release(&w);
        if (batch == 0) {
            descriptors = count_descriptors();
            mapped = count_mapped();
        }
    }
    CHECK(count_descriptors() == descriptors);
    CHECK(count_mapped() == mapped);
    world_close(&w);
    kit_free(&k);
}

/* ---- other processes ----------------------------------------------------------------------------------- */

/* One rank of two in a process of its own; the ends tell each other where they listen. */
typedef struct other {
    pid_t pid;
    int to, from;
} other;

static void meet(world *w, int rank, int to, int from) {
    uint32_t port;
    world_open_rank(w, rank);
    CHECK(write(to, &w->port[rank], sizeof port) == sizeof port);
    CHECK(read(from, &port, sizeof port) == sizeof port);
    CHECK(tb_session_set_peer(w->session[rank], 1 - rank, "127.0.0.1", port, NULL) == TB_OK);
}

static void await_prepared(world *w, const kit *k, int rank, int32_t code) {
    tb_event event;
    world_prepare_rank(w, k, rank, 0, 20 * SECOND);
    CHECK(world_take(w, rank, TB_EVENT_PREPARED, 20 * SECOND, &event));
    if (event.error.code != code) {
        fprintf(stderr, "rank %d: prepared with %d, not %d: %s\n", rank, event.error.code, code,
                event.error.message);
        exit(1);
    }
}

typedef struct act {
    const world_options *options;
    bool hidden;      /* the other process lets nobody read in it */
    int32_t prepared; /* how that ends */
    int rank;         /* of the other process */
} act;

static void be_other(const act *act, const kit *k, int to, int from) {
    world w;
    tb_event event;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    world_start(&w, act->options, 2);
    meet(&w, act->rank, to, from);
    if (act->hidden) {
        CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    }
    await_prepared(&w, k, act->rank, act->prepared);
    if (act->prepared == TB_OK) {
        world_post(&w, act->rank, 1, 60 * SECOND);
        world_take(&w, act->rank, TB_EVENT_ROUND, 60 * SECOND, &event);
    }
    char over;
    _exit(read(from, &over, 1) == 0 ? 0 : 1); /* until our parent has seen enough */
}

static other start_other(world *w, const act *act, const kit *k) {
    int down[2];
    int up[2];
    CHECK(pipe2(down, O_CLOEXEC) == 0 && pipe2(up, O_CLOEXEC) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(down[1]);
        close(up[0]);
        be_other(act, k, up[1], down[0]);
    }
    close(down[0]);
    close(up[1]);
    world_start(w, act->options, 2);
    meet(w, 1 - act->rank, down[1], up[0]);
    await_prepared(w, k, 1 - act->rank, act->prepared);
    return (other){pid, down[1], up[0]};
}

/* Waits for it: until the thread that takes the signal has run, the others go on. */
static void stop_other(const other *one) {
    int status;
    kill(one->pid, SIGSTOP);
    CHECK(waitpid(one->pid, &status, WUNTRACED) == one->pid && WIFSTOPPED(status));
}

static void end_other(const other *one) {
    close(one->to);
    close(one->from);
    kill(one->pid, SIGCONT);
    kill(one->pid, SIGKILL);
    CHECK(waitpid(one->pid, NULL, 0) == one->pid);
}

/* A source that dies while it is read. */
static void test_killed_source(bool shared) {
    world_options options = {
        .kind = TB_BACKEND_TCP, .threads = 2, .connections = 1, .carriers = TB_CARRY_SHM, .shared = shared};
    world w;
    kit k;
    endless(&k, 4000);
    act act = {.options = &options, .rank = 0};
    other source = start_other(&w, &act, &k);
    world_post(&w, 1, 1, 60 * SECOND);
    wait_for_bytes(&w, 1);
    kill(source.pid, SIGKILL);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_EPEER_LOST, 0, NULL);
    for (uint64_t at = 0; at < BYTES; at++) {
        CHECK(w.memory[1][0][1][at] == pattern(0, 0, at) || w.memory[1][0][1][at] == 0xee);
    }
    end_other(&source);
    world_close(&w);
    kit_free(&k);
}

/* A target that stops in the middle may go on reading whenever it wakes up; one that died does not. */
static void test_stopped_target(bool dies) {
    world_options options = {.kind = TB_BACKEND_TCP,
                             .threads = 1,
                             .connections = 1,
                             .carriers = TB_CARRY_SHM,
                             .quiesce_ms = dies ? 60000 : 100};
    world w;
    kit k;
    tb_error error;
    endless(&k, 4000);
    act act = {.options = &options, .rank = 1};
    other target = start_other(&w, &act, &k);
    uint64_t memory = (uint64_t)(uintptr_t)w.memory[0][0][0];
    world_post(&w, 0, 1, 60 * SECOND);
    wait_for_bytes(&w, 0);
    stop_other(&target);
    CHECK(tb_transfer_cancel(w.session[0], w.transfer[0], TB_ECANCELLED, NULL) == TB_OK);
    if (dies) {
        kill(target.pid, SIGKILL);
        world_expect(&w, 0, TB_EVENT_ROUND, TB_ECANCELLED, 0, NULL);
        end_other(&target);
        world_close(&w);
        kit_free(&k);
        return;
    }
    world_expect(&w, 0, TB_EVENT_ROUND, TB_EQUARANTINED, 1, NULL);
    CHECK(tb_transfer_post(w.session[0], w.transfer[0], 2, SECOND, &error) == TB_EQUARANTINED);
    CHECK(tb_session_unregister(w.session[0], memory, BYTES, &error) == TB_EQUARANTINED);
    CHECK(tb_transfer_release(w.session[0], w.transfer[0], &error) == TB_OK);
    CHECK(tb_session_unregister(w.session[0], memory, BYTES, &error) == TB_EQUARANTINED);
    CHECK(tb_session_close(w.session[0], &error) == TB_EQUARANTINED);
    close(w.event_fd[0]);
    w.open[0] = false;
    end_other(&target);
    world_close(&w);
    kit_free(&k);
}

/* A source that names a file in which no answer of its own stands: that of any other process of this user. */
static void test_liar(void) {
    world_options options = {
        .kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM | TB_CARRY_APART};
    tb_book *elsewhere;
    CHECK(tb_book_create(2, &elsewhere, NULL) == TB_OK);
    world w;
    kit k;
    endless(&k, 1);
    world_open(&w, &options, 2);
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, w.session[0], NULL);
    CHECK(session != NULL);
    session->identity.book = tb_book_file(elsewhere);
    tb_handle_put(w.session[0]);
    for (int rank = 0; rank < 2; rank++) {
        world_prepare_rank(&w, &k, rank, 0, 20 * SECOND);
    }
    for (int rank = 0; rank < 2; rank++) {
        world_expect(&w, rank, TB_EVENT_PREPARED, TB_EAUTH, 0, NULL);
    }
    tb_book_free(elsewhere);
    world_close(&w);
    kit_free(&k);
}

/*
 * A source in which nobody may read. If the stream is allowed it serves instead, at both ends; else the
 * prepare fails at both. It takes a user without privileges to be refused.
 */
static void test_refused(uint32_t carriers, bool shared) {
    world_options options = {
        .kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = carriers, .shared = shared};
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid > 0) {
        int status;
        CHECK(waitpid(pid, &status, 0) == pid);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        return;
    }
    if (geteuid() == 0) {
        CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    }
    CHECK(prctl(PR_SET_DUMPABLE, 1) == 0);
    world w;
    kit k;
    endless(&k, 3);
    bool stream = (carriers & TB_CARRY_STREAM) != 0;
    act act = {.options = &options, .hidden = true, .prepared = stream ? TB_OK : TB_EUNSUPPORTED, .rank = 0};
    other source = start_other(&w, &act, &k);
    if (stream) {
        world_post(&w, 1, 1, 20 * SECOND);
        world_expect(&w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
        for (uint64_t at = 0; at < BYTES; at++) {
            CHECK(w.memory[1][0][1][at] == pattern(0, 0, at));
        }
    }
    end_other(&source);
    world_close(&w);
    kit_free(&k);
    exit(0);
}

int main(void) {
    static const world_options ways[] = {
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM},
        {.kind = TB_BACKEND_TCP, .threads = 3, .connections = 1, .carriers = TB_CARRY_SHM},
        {.kind = TB_BACKEND_TCP, .threads = 2, .connections = 1, .carriers = TB_CARRY_SHM | TB_CARRY_APART},
        {.kind = TB_BACKEND_MEMORY, .threads = 2, .connections = 1, .carriers = TB_CARRY_SHM},
    };
    test_select();
    test_select_nccl();
    test_who_may_live();
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        cancelled_source(&ways[i]);
    }
    world_options apart = ways[2];
    flat(&apart);
    apart.shared = true;
    flat(&apart);
    test_liar();
    test_killed_source(false);
    test_killed_source(true);
    test_stopped_target(true);
    test_stopped_target(false);
    test_refused(TB_CARRY_SHM, false);
    test_refused(TB_CARRY_SHM, true);
    test_refused(TB_CARRY_SHM | TB_CARRY_STREAM, false);
    test_refused(TB_CARRY_SHM | TB_CARRY_STREAM, true);
    return 0;
}
