/* What the bus asks of the system: wake-ups, kernel-freed locks, the gate, the heartbeat; handles that go stale. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "check.h"
#include "host/semaphore.h"
#include "tensorbus.h"

#define OK(call) CHECK((call) == TB_OK, "%s", err.message)
#define SECOND UINT64_C(1000000000)
/* Offsets in LMDB's lock file, where a pthread_mutex_t has 40 bytes: the reader table's lock and the writers'. */
#define READER_LOCK 24
#define WRITER_LOCK 64
/* In such a lock, and what LMDB's are: robust, for several processes. */
#ifdef __GLIBC__
enum { WORD = 0, KIND = 16, ROBUST = 144 };
#else /* musl */
enum { WORD = 4, KIND = 0, ROBUST = 132 };
#endif

static tb_error err;
static char folder[] = "/tmp/tensorbus-bus-test-XXXXXX";
static char name[64];
static char locks[128];

static void new_name(void) {
    static unsigned count;
    snprintf(name, sizeof name, "/tensorbus-%u-test-%d-%u", (unsigned)geteuid(), (int)getpid(), count++);
}

static uint64_t port;
static int port_fd;

/* The next token within a second; 0 if none comes. */
static uint64_t next_token(int wait_ms) {
    uint64_t token = 0;
    uint32_t found = 0;
    OK(tb_port_next(port, &token, &found, &err));
    struct pollfd readable = {.fd = port_fd, .events = POLLIN};
    while (found == 0 && poll(&readable, 1, wait_ms) > 0) {
        char bytes[64];
        CHECK(read(port_fd, bytes, sizeof bytes) > 0, "a port that is readable has bytes");
        OK(tb_port_next(port, &token, &found, &err));
    }
    return found ? token : 0;
}

static void *post_often(void *argument) {
    for (int i = 0; i < 2000; i++) {
        tb_semaphore_post(*(uint64_t *)argument, NULL);
    }
    return NULL;
}

static void wake_ups(uint64_t spin_ns) {
    uint64_t semaphore, waiter;
    uint32_t removed;
    new_name();
    OK(tb_semaphore_create(name, &semaphore, &err));
    OK(tb_waiter_start(port, semaphore, 7, spin_ns, &waiter, &err));
    CHECK(tb_port_close(port, &err) == TB_EBUSY, "a waiter reports to it");
    CHECK(next_token(20) == 0, "nobody has posted");
    for (int i = 0; i < 200; i++) {
        OK(tb_semaphore_post(semaphore, &err));
        CHECK(next_token(5000) == 7, "every post is told of");
    }
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[i], NULL, post_often, &semaphore) == 0, "a thread");
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(next_token(5000) == 7, "many posts are told of as well");
    while (next_token(50) != 0) {
    }
    uint32_t taken;
    OK(tb_semaphore_try(semaphore, &taken, &err));
    CHECK(taken == 0, "the waiter has taken all of them");
    /* The handle may be closed while a thread still uses it. */
    OK(tb_semaphore_close(semaphore, &err));
    CHECK(tb_semaphore_post(semaphore, &err) == TB_ECLOSED, "a closed handle");
    OK(tb_waiter_stop(waiter, &err));
    CHECK(tb_waiter_stop(waiter, &err) == TB_ECLOSED, "a stale handle");
    OK(tb_semaphore_unlink(name, &removed, &err));
    CHECK(removed == 1, "the name");
}

static void deadlines(void) {
    uint64_t semaphore;
    uint32_t removed;
    new_name();
    OK(tb_semaphore_create(name, &semaphore, &err));
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    CHECK(tb_semaphore_wait(semaphore, 30000000, &err) == TB_ETIMEOUT, "30 ms");
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t ns = (after.tv_sec - before.tv_sec) * (int64_t)SECOND + after.tv_nsec - before.tv_nsec;
    CHECK(ns >= 30000000, "%lld ns", (long long)ns);
    OK(tb_semaphore_post(semaphore, &err));
    OK(tb_semaphore_wait(semaphore, UINT64_MAX, &err));
    CHECK(tb_lock_close(semaphore, &err) == TB_ECLOSED, "a handle of another kind");
    OK(tb_semaphore_close(semaphore, &err));
    OK(tb_semaphore_unlink(name, &removed, &err));
    CHECK(tb_semaphore_open(name, &semaphore, &err) == TB_ESYSTEM && err.os_errno == ENOENT, "no such name");
}

static void handles(void) {
    uint64_t opened[100];
    for (int i = 0; i < 100; i++) {
        OK(tb_lock_open(locks, &opened[i], &err));
    }
    for (int i = 0; i < 100; i += 2) {
        OK(tb_lock_close(opened[i], &err));
    }
    uint64_t again;
    OK(tb_lock_open(locks, &again, &err));
    uint32_t taken;
    for (int i = 0; i < 100; i++) {
        int32_t rc = tb_lock_try(opened[i], 99, &taken, &err);
        CHECK(rc == (i % 2 == 0 ? TB_ECLOSED : TB_OK), "a slot that was used again does not revive a handle");
        if (rc == TB_OK) {
            OK(tb_lock_close(opened[i], &err));
        }
    }
    OK(tb_lock_close(again, &err));
    CHECK(tb_lock_close(0, &err) == TB_ECLOSED, "no handle");
    CHECK(tb_lock_close(UINT64_MAX, &err) == TB_ECLOSED, "no handle");
    CHECK(tb_lock_close(again, NULL) == TB_ECLOSED, "the error may be left out");
}

/* A process that holds the lock at offset until it is killed. */
static pid_t fork_holder(uint64_t offset) {
    int ready[2];
    CHECK(pipe(ready) == 0, "a pipe");
    pid_t child = fork();
    CHECK(child >= 0, "a child");
    if (child == 0) {
        /* It ends with the test, however that ends. */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = open(locks, O_RDWR);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
        _exit(fcntl(fd, F_OFD_SETLK, &lock) == 0 && write(ready[1], "", 1) == 1 && pause() ? 1 : 2);
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1, "the child holds it");
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void death(void) {
    const uint64_t offset = (UINT64_C(1) << 62) + 5;
    pid_t child = fork_holder(offset);
    uint64_t lock, watch, cancelled;
    uint32_t answer;
    OK(tb_lock_open(locks, &lock, &err));
    OK(tb_lock_held(lock, offset, &answer, &err));
    CHECK(answer == 1, "held");
    OK(tb_lock_try(lock, offset, &answer, &err));
    CHECK(answer == 0, "not to be had");
    OK(tb_watch_start(port, locks, offset, 21, &watch, &err));
    OK(tb_watch_start(port, locks, offset, 22, &cancelled, &err));
    CHECK(next_token(30) == 0, "it lives");
    OK(tb_watch_stop(cancelled, &err));
    kill(child, SIGSTOP);
    CHECK(next_token(30) == 0, "stopped is not dead");
    kill(child, SIGKILL);
    CHECK(next_token(5000) == 21, "dead");
    waitpid(child, NULL, 0);
    OK(tb_watch_stop(watch, &err));
    OK(tb_lock_try(lock, offset, &answer, &err));
    CHECK(answer == 1, "free");
    OK(tb_lock_release(lock, offset, &err));
    CHECK(tb_lock_try(lock, UINT64_MAX, &answer, &err) == TB_ESYSTEM, "no such offset");
    OK(tb_lock_close(lock, &err));
    CHECK(chmod(locks, 0640) == 0 && tb_lock_open(locks, &lock, &err) == TB_EFOREIGN, "open to others");
    CHECK(chmod(locks, 0600) == 0, "private again");
}

static void set_word(const char *path, long offset, uint32_t word) {
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, &word, sizeof word, offset) == sizeof word, "a word");
    close(fd);
}

static void gate(void) {
    char lmdb[160];
    snprintf(lmdb, sizeof lmdb, "%s/lock.mdb", folder);
    uint64_t one, two;
    uint32_t answer;
    int32_t holder;
    OK(tb_gate_open(port, locks, 31, &one, &err));
    OK(tb_gate_open(port, locks, 32, &two, &err));
    OK(tb_gate_attach(one, lmdb, lmdb, &answer, &err));
    CHECK(answer == 0, "there is no file yet");
    OK(tb_gate_enter(one, 0, &answer, &holder, &err));
    CHECK(answer == 1, "free");
    OK(tb_gate_enter(two, 1000000, &answer, &holder, &err));
    CHECK(answer == 0 && holder == 0, "another is inside, and is not known");
    OK(tb_gate_await(two, &err));
    OK(tb_gate_await(two, &err));
    CHECK(next_token(30) == 0, "still inside");
    OK(tb_gate_leave(one, &err));
    CHECK(next_token(5000) == 32, "free again");
    /* The file of LMDB, with another process's thread as owner of the writers' lock. */
    int fd = open(lmdb, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0, "a lock file");
    OK(tb_gate_attach(two, lmdb, lmdb, &answer, &err));
    CHECK(answer == 1, "the file stands");
    set_word(lmdb, WRITER_LOCK + WORD, 4242u);
    OK(tb_gate_enter(two, 1000000, &answer, &holder, &err));
    CHECK(answer == 1 && holder == 0, "noise names no writer");
    OK(tb_gate_leave(two, &err));
    set_word(lmdb, 0, 0xbeefc0deu);
    for (long lock = READER_LOCK, i = 0; i < 3; lock = i == 0 ? WRITER_LOCK : lock + 40, i++) {
        set_word(lmdb, lock + KIND, ROBUST);
    }
    const long words[] = {WRITER_LOCK + WORD, READER_LOCK + WORD};
    for (int i = 0; i < 2 && sizeof(pthread_mutex_t) == 40; i++) {
        set_word(lmdb, words[i], 4242u | 0x80000000u);
        OK(tb_gate_enter(two, 1000000, &answer, &holder, &err));
        CHECK(answer == 0 && holder == 4242, "a writer past the gate: %d", holder);
        OK(tb_gate_await(two, &err));
        CHECK(next_token(30) == 0, "it still writes");
        /* The owner has died: the word holds the kernel's mark for that, and no thread's number. */
        set_word(lmdb, words[i], 0x40000000u);
        CHECK(next_token(5000) == 32, "LMDB recovers that");
        OK(tb_gate_enter(two, 0, &answer, &holder, &err));
        CHECK(answer == 1, "so it is free");
        OK(tb_gate_verify(two, &answer, &err));
        CHECK(answer == 0, "nobody is in a transaction");
        set_word(lmdb, words[i], (uint32_t)syscall(SYS_gettid));
        OK(tb_gate_verify(two, &answer, &err));
        CHECK(answer == 1, "this thread is");
        set_word(lmdb, words[i], 0);
        OK(tb_gate_leave(two, &err));
    }
    close(fd);
    /* It is closed while its thread waits. */
    pid_t child = fork_holder(0);
    OK(tb_gate_await(two, &err));
    OK(tb_gate_close(two, &err));
    CHECK(tb_gate_leave(two, &err) == TB_ECLOSED, "a closed gate");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    OK(tb_gate_close(one, &err));
}

static void heartbeat(void) {
    uint64_t heart, other, pulse, age;
    uint32_t removed;
    new_name();
    CHECK(tb_heartbeat_start(name, 0, &heart, &err) == TB_ESYSTEM, "no pause between beats");
    OK(tb_heartbeat_start(name, 5, &heart, &err));
    CHECK(tb_heartbeat_start(name, 5, &other, &err) == TB_EEXISTS, "the name is taken");
    OK(tb_pulse_open(name, &pulse, &err));
    for (int i = 0; i < 50; i++) {
        OK(tb_pulse_age(pulse, &age, &err));
        CHECK(age < 2 * SECOND, "it beats: %llu", (unsigned long long)age);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    OK(tb_heartbeat_stop(heart, &err));
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    OK(tb_pulse_age(pulse, &age, &err));
    CHECK(age >= 50000000, "it has stopped: %llu", (unsigned long long)age);
    OK(tb_pulse_close(pulse, &err));
    CHECK(tb_pulse_open(name, &pulse, &err) == TB_ESYSTEM && err.os_errno == ENOENT, "its name is gone");
    OK(tb_heartbeat_unlink(name, &removed, &err));
    CHECK(removed == 0, "there was none");
}

static void *post_later(void *semaphore) {
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    sem_post(semaphore);
    return NULL;
}

/* What systems without sem_clockwait have. */
static void wall_clock(void) {
    sem_t semaphore;
    sem_init(&semaphore, 0, 1);
    CHECK(tb_semaphore_await_by_wall_clock(&semaphore, 0) == 0, "one that is posted, after the deadline");
    uint64_t end = tb_now() + SECOND / 4;
    CHECK(tb_semaphore_await_by_wall_clock(&semaphore, end) == ETIMEDOUT, "nobody posts");
    CHECK(tb_now() >= end, "over several slices");
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, post_later, &semaphore) == 0, "a thread");
    CHECK(tb_semaphore_await_by_wall_clock(&semaphore, UINT64_MAX) == 0, "posted while it waits");
    pthread_join(thread, NULL);
    sem_destroy(&semaphore);
}

int main(void) {
    CHECK(mkdtemp(folder) != NULL, "a folder");
    snprintf(locks, sizeof locks, "%s/locks", folder);
    OK(tb_port_open(&port, &port_fd, &err));
    wake_ups(0);
    wake_ups(50000);
    deadlines();
    wall_clock();
    handles();
    death();
    gate();
    heartbeat();
    OK(tb_port_close(port, &err));
    CHECK(tb_port_close(port, &err) == TB_ECLOSED, "twice");
    close(port_fd);
    char lmdb[160];
    snprintf(lmdb, sizeof lmdb, "%s/lock.mdb", folder);
    unlink(lmdb);
    unlink(locks);
    rmdir(folder);
    return 0;
}
