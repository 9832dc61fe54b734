/* Maps of files that are cut: a guarded page is replaced and told of, and every other fault goes where it went before. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "host/lmdb.h"
#include "tensorbus_bus.h"
#include "host/map_guard.h"

static tb_error err;
static char path[] = "/tmp/tensorbus-guard-test-XXXXXX";
static size_t page;

enum { PAGES = 8 };

typedef struct mapping {
    int fd;
    uint8_t *bytes;
    struct stat file;
    int slot;
} mapping;

static mapping map_file(void) {
    mapping made = {.fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), .slot = -1};
    CHECK(made.fd >= 0 && ftruncate(made.fd, (off_t)(PAGES * page)) == 0 && fstat(made.fd, &made.file) == 0, "a file");
    made.bytes = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0);
    CHECK(made.bytes != MAP_FAILED, "a map");
    memset(made.bytes, 7, PAGES * page);
    return made;
}

static mapping map_guarded(enum tb_guard_kind kind) {
    mapping made = map_file();
    CHECK(tb_guard_add(made.bytes, PAGES * page, &made.file, kind, &made.slot, &err) == TB_OK, "%s", err.message);
    return made;
}

static void unmap(mapping *map) {
    tb_guard_remove(map->slot);
    munmap(map->bytes, PAGES * page);
    close(map->fd);
}

/* The signal that ends a child which does what it is given, or 0 if it lives. No handler is left from before. */
static int signal_of(void (*act)(void)) {
    pid_t child = fork();
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        act();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child, "a child");
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "a check of a child");
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static uint8_t touch(const uint8_t *at) {
    return *(volatile const uint8_t *)at;
}

static void touch_unguarded(void) {
    mapping map = map_file();
    CHECK(ftruncate(map.fd, 0) == 0, "a cut");
    touch(map.bytes);
}

static void touch_guarded(void) {
    mapping map = map_guarded(TB_GUARD_DATA);
    uint32_t before = atomic_load(tb_guard_hits());
    CHECK(ftruncate(map.fd, (off_t)(3 * page)) == 0, "a cut");
    CHECK(touch(map.bytes + 2 * page) == 7 && !tb_guard_has_hit(&map.file), "what is there is as it was");
    const tb_lmdb_page *lost = (const tb_lmdb_page *)(map.bytes + 5 * page);
    CHECK(lost->flags == 0 && lost->number == 5, "a missing page is no page of LMDB's");
    CHECK(lost->size.room.lower == 254 && lost->size.room.upper >= 254, "and has nodes");
    for (size_t i = 0; i < 127; i++) {
        uint16_t offset, bytes;
        memcpy(&offset, (const uint8_t *)(lost + 1) + 2 * i, sizeof offset);
        memcpy(&bytes, (const uint8_t *)(lost + 1) + offset, sizeof bytes);
        CHECK(offset >= lost->size.room.upper && sizeof *lost + offset + 8u + bytes <= page, "node %zu is in the page", i);
    }
    CHECK(tb_guard_has_hit(&map.file) && atomic_load(tb_guard_hits()) == before + 1, "and is told of");
    mapping other = {.file = map.file};
    other.file.st_ino++;
    CHECK(!tb_guard_has_hit(&other.file), "of this file only");
    unmap(&map);
    mapping next = map_guarded(TB_GUARD_DATA);
    CHECK(!tb_guard_has_hit(&next.file), "another map of it begins anew");
    unmap(&next);
}

static void touch_removed(void) {
    mapping map = map_guarded(TB_GUARD_DATA);
    tb_guard_remove(map.slot);
    CHECK(ftruncate(map.fd, 0) == 0, "a cut");
    touch(map.bytes);
}

static void touch_beside(void) {
    mapping guarded = map_guarded(TB_GUARD_DATA), map = map_file();
    CHECK(guarded.bytes != map.bytes && ftruncate(map.fd, 0) == 0, "a cut");
    touch(map.bytes);
}

static void send_it(void) {
    mapping map = map_guarded(TB_GUARD_DATA);
    raise(SIGBUS);
    unmap(&map);
}

static void send_ignored(void) {
    signal(SIGBUS, SIG_IGN);
    send_it();
}

static volatile sig_atomic_t told;
static void tell(int signal) {
    told += signal == SIGBUS;
}

static void earlier_handler(void) {
    signal(SIGBUS, tell);
    send_it();
    CHECK(told == 1, "who was there before hears of what is sent");
    touch_guarded();
    CHECK(told == 1, "and not of what is guarded");
}

static void tell_and_end(int signal, siginfo_t *info, void *context) {
    (void)context;
    _exit(signal == SIGBUS && info->si_code == BUS_ADRERR ? 0 : 1);
}

static void earlier_handler_of_faults(void) {
    const struct sigaction action = {.sa_sigaction = tell_and_end, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    touch_beside();
    _exit(1);
}

static void later_handler(void) {
    mapping first = map_guarded(TB_GUARD_DATA);
    signal(SIGBUS, tell);
    mapping second = map_guarded(TB_GUARD_DATA); /* the guard is in place again, before the later one */
    CHECK(ftruncate(second.fd, 0) == 0, "a cut");
    touch(second.bytes);
    touch(first.bytes);
    CHECK(told == 0, "a fault within is ours");
    raise(SIGBUS);
    CHECK(told == 1, "what is sent is theirs");
}

/* ---- LMDB's lock of writers, held while its file is cut -------------------------------------------------- */

static pthread_mutex_t *make_mutex(void *at) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    memset(at, 0, sizeof(pthread_mutex_t));
    CHECK(pthread_mutex_init(at, &kind) == 0, "a mutex");
    return at;
}

static tb_lmdb_locks *make_locks(mapping *map) {
    *map = map_guarded(TB_GUARD_LOCKS);
    tb_lmdb_locks *locks = (tb_lmdb_locks *)map->bytes;
    make_mutex(&locks->head.body.reader_table);
    make_mutex(&locks->writer);
    tb_lmdb_make_plain(locks);
    return locks;
}

/* Any length: what is left of the lock may be a part of it. */
static void cut_while_held(void) {
    for (off_t bytes = 0; bytes < (off_t)sizeof(tb_lmdb_locks); bytes++) {
        mapping map;
        tb_lmdb_locks *locks = make_locks(&map);
        CHECK(pthread_mutex_lock(&locks->writer) == 0, "it is taken");
        CHECK(ftruncate(map.fd, bytes) == 0, "a cut");
        CHECK(pthread_mutex_unlock(&locks->writer) == 0, "it is freed");
        unmap(&map);
        pthread_mutex_t another;
        make_mutex(&another);
        CHECK(pthread_mutex_lock(&another) == 0 && pthread_mutex_unlock(&another) == 0, "another mutex");
    }
}

static void cut_before_locking(void) {
    mapping map;
    tb_lmdb_locks *locks = make_locks(&map);
    CHECK(ftruncate(map.fd, 0) == 0, "a cut");
    CHECK(pthread_mutex_lock(&locks->writer) == 0 && pthread_mutex_unlock(&locks->writer) == 0, "it can be taken");
    unmap(&map);
}

int main(void) {
    page = (size_t)sysconf(_SC_PAGESIZE);
    close(mkstemp(path));
    CHECK(signal_of(touch_unguarded) == SIGBUS, "what is not guarded ends the process");
    CHECK(signal_of(touch_guarded) == 0, "what is does not");
    CHECK(signal_of(touch_removed) == SIGBUS, "nor what is guarded no more");
    CHECK(signal_of(touch_beside) == SIGBUS, "nor another map");
    CHECK(signal_of(send_it) == SIGBUS, "a signal that was sent ends the process as it would have");
    CHECK(signal_of(send_ignored) == 0, "unless it was ignored");
    CHECK(signal_of(earlier_handler) == 0, "an earlier handler");
    CHECK(signal_of(earlier_handler_of_faults) == 0, "an earlier handler of faults");
    CHECK(signal_of(later_handler) == 0, "a later handler");
#ifdef __GLIBC__ /* with another C library the lock stays a robust one, which a cut can tear */
    CHECK(signal_of(cut_while_held) == 0, "a lock file that is cut while its lock is held");
#else
    (void)cut_while_held;
#endif
    CHECK(signal_of(cut_before_locking) == 0, "a lock file that is cut before its lock is taken");
    unlink(path);
    return 0;
}
