/* What is checked of LMDB's files before it opens them: a whole file passes, and damage is refused without a read beyond it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "host/lmdb.h"
#include "host/lmdb_files.h"

enum { PAGE = 4096, PAGES = 6, MAP_BYTES = 1 << 20 };

static tb_error err;
static char folder[] = "/tmp/tensorbus-lmdb-test-XXXXXX";
static char data_path[64], lock_path[64], gate_path[64];

static void put_meta(uint8_t *page, uint64_t number, uint64_t transaction) {
    tb_lmdb_meta meta = {
        .page = {.number = number, .flags = TB_LMDB_META},
        .magic = TB_LMDB_MAGIC,
        .version = TB_LMDB_VERSION,
        .map_bytes = MAP_BYTES,
        .last_page = PAGES - 1,
        .transaction = transaction,
    };
    meta.trees[TB_LMDB_FREE] = (tb_lmdb_tree){.page_bytes = PAGE, .flags = 8, .root = TB_LMDB_NO_PAGE};
    meta.trees[TB_LMDB_MAIN] = (tb_lmdb_tree){.depth = 2, .branches = 1, .leaves = 1, .overflows = 2, .entries = 2, .root = 2};
    memcpy(page, &meta, sizeof meta);
}

static void put_page(uint8_t *page, uint64_t number, uint16_t flags, uint32_t nodes, uint32_t upper) {
    tb_lmdb_page head = {.number = number, .flags = flags};
    head.size.room.lower = (uint16_t)(nodes * 2);
    head.size.room.upper = (uint16_t)upper;
    memcpy(page, &head, sizeof head);
}

static void put_words(uint8_t *at, uint16_t a, uint16_t b, uint16_t c, uint16_t d) {
    const uint16_t words[] = {a, b, c, d};
    memcpy(at, words, sizeof words);
}

/* A branch over one leaf, which holds a small value and one of two pages. */
static void build(uint8_t *file) {
    memset(file, 0, PAGE * PAGES);
    put_meta(file, 0, 4);
    put_meta(file + PAGE, 1, 5);
    uint8_t *branch = file + 2 * PAGE, *leaf = file + 3 * PAGE;
    const uint32_t room = PAGE - sizeof(tb_lmdb_page);
    put_page(branch, 2, TB_LMDB_BRANCH, 1, room - 8);
    const uint16_t at_end = (uint16_t)(room - 8);
    memcpy(branch + 24, &at_end, 2);
    put_words(branch + 24 + at_end, 3, 0, 0, 0);
    put_page(leaf, 3, TB_LMDB_LEAF, 2, room - 80);
    const uint16_t offsets[] = {(uint16_t)(room - 40), (uint16_t)(room - 80)};
    memcpy(leaf + 24, offsets, sizeof offsets);
    put_words(leaf + 24 + offsets[0], 20, 0, 0, 4);
    put_words(leaf + 24 + offsets[1], 5000, 0, 1, 4);
    const uint64_t big[] = {4, 5, 2};
    memcpy(leaf + 24 + offsets[1] + 12, big, sizeof big);
    tb_lmdb_page head = {.number = 4, .flags = TB_LMDB_OVERFLOW};
    head.size.pages = 2;
    memcpy(file + 4 * PAGE, &head, sizeof head);
}

static int32_t prepare(const uint8_t *file, size_t bytes) {
    int fd = open(data_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, file, bytes) == (ssize_t)bytes, "a data file");
    close(fd);
    unlink(lock_path);
    enum tb_gate_users users;
    return tb_lmdb_prepare(data_path, lock_path, MAP_BYTES, -1, &users, &err);
}

static uint32_t state = 20261;
static uint32_t below(uint32_t limit) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)state * limit >> 32);
}

/* What a page says of itself is most of what noise can harm. */
static void test_noise(void) {
    static uint8_t file[PAGE * PAGES];
    int refused = 0;
    for (int i = 0; i < 1500; i++) {
        build(file);
        for (uint32_t n = 1 + below(3); n > 0; n--) {
            uint32_t page = below(5);
            uint32_t at = below(2) == 0 ? below(180) : below(2) == 0 ? PAGE - 1 - below(90) : below(PAGE);
            file[page * PAGE + at] = (uint8_t)below(256);
        }
        refused += prepare(file, below(20) == 0 ? below(sizeof file) + 1 : sizeof file) != TB_OK;
    }
    CHECK(refused > 350, "%d of 1500 were refused", refused);
}

static void refuse(uint32_t at, uint8_t value, const char *what) {
    static uint8_t file[PAGE * PAGES];
    build(file);
    file[at] = value;
    CHECK(prepare(file, sizeof file) == TB_EBUS_FORMAT, "%s: %s", what, err.message);
}

static void make_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
    CHECK(pthread_mutex_init(mutex, &kind) == 0, "a mutex");
}

/* LMDB's locks as it makes them, whatever the C library: who holds one is known, and one who has died is LMDB's to see to. */
static void test_robust_locks(void) {
    tb_lmdb_locks *locks = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(locks != MAP_FAILED, "a page that processes share");
    locks->head.body.magic = TB_LMDB_MAGIC;
    CHECK(tb_lmdb_check_locks(locks, 0) != NULL, "these are no locks yet");
    make_mutex(&locks->head.body.reader_table);
    make_mutex(&locks->writer);
    make_mutex(&locks->sync);
    bool dead;
    CHECK(tb_lmdb_check_locks(locks, 0) == NULL, "they are LMDB's");
    CHECK(tb_lmdb_writer(locks, &dead) == 0 && !dead && tb_lmdb_adder(locks) == 0, "free");
    CHECK(pthread_mutex_lock(&locks->writer) == 0 && pthread_mutex_lock(&locks->head.body.reader_table) == 0, "taken");
    CHECK(tb_lmdb_writer(locks, &dead) == (uint32_t)getpid() && !dead, "the writer");
    CHECK(tb_lmdb_adder(locks) == (uint32_t)getpid(), "who adds a reader");
    CHECK(pthread_mutex_unlock(&locks->head.body.reader_table) == 0 && pthread_mutex_unlock(&locks->writer) == 0, "freed");
    CHECK(tb_lmdb_writer(locks, &dead) == 0 && !dead && tb_lmdb_adder(locks) == 0, "free again");
    void *list;
    size_t bytes;
    if (syscall(SYS_get_robust_list, 0, &list, &bytes) == 0) {
        pid_t child = fork();
        if (child == 0) {
            pthread_mutex_lock(&locks->writer);
            _exit(0);
        }
        CHECK(waitpid(child, NULL, 0) == child, "a child that has ended");
        CHECK(tb_lmdb_writer(locks, &dead) == 0 && !dead, "nobody has to be waited for");
        CHECK(pthread_mutex_lock(&locks->writer) == EOWNERDEAD, "LMDB hears of it");
        CHECK(pthread_mutex_consistent(&locks->writer) == 0 && pthread_mutex_unlock(&locks->writer) == 0, "and mends it");
        CHECK(tb_lmdb_writer(locks, &dead) == 0 && tb_lmdb_check_locks(locks, 0) == NULL, "as it was");
    } else {
        puts("not checked here: the kernel frees no locks of the dead"); /* qemu's does not */
    }
    munmap(locks, PAGE);
}

/* The holder of the lock of writers is known, and that it may be freed by whoever is inside of the gate. */
static void test_writer(void) {
#ifdef __GLIBC__
    uint8_t file[PAGE * PAGES];
    build(file);
    CHECK(prepare(file, sizeof file) == TB_OK, "a data file");
    tb_lmdb_locks locks = {.head.body = {.magic = TB_LMDB_MAGIC, .transaction = 4}};
    make_mutex(&locks.head.body.reader_table);
    make_mutex(&locks.writer);
    make_mutex(&locks.sync);
    tb_lmdb_make_plain(&locks);
    CHECK(tb_lmdb_check_locks(&locks, 5) == NULL, "plain or robust, it is LMDB's");
    bool dead;
    CHECK(tb_lmdb_writer(&locks, &dead) == 0 && !dead, "free");
    CHECK(pthread_mutex_lock(&locks.writer) == 0, "taken");
    CHECK(tb_lmdb_writer(&locks, &dead) == (uint32_t)getpid() && !dead, "one past the gate lives");
    locks.inside = (uint32_t)getpid();
    CHECK(tb_lmdb_writer(&locks, &dead) == (uint32_t)getpid() && dead, "one by the gate is not inside any more");
    CHECK(pthread_mutex_unlock(&locks.writer) == 0 && tb_lmdb_writer(&locks, &dead) == 0 && !dead, "and frees it as ever");
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    siginfo_t ended;
    CHECK(waitid(P_PID, (id_t)child, &ended, WEXITED | WNOWAIT) == 0, "a child that nobody has asked how it ended");
    CHECK(pthread_mutex_lock(&locks.writer) == 0, "taken");
    locks.writer.__data.__owner = child;
    CHECK(tb_lmdb_writer(&locks, &dead) == (uint32_t)child && !dead, "past the gate it may live");
    locks.inside = (uint32_t)child;
    CHECK(tb_lmdb_writer(&locks, &dead) == (uint32_t)child && dead, "by the gate it has died, though it is there");
    CHECK(tb_lmdb_free_writer(&locks, data_path, &err) == TB_OK, "%s", err.message);
    locks.inside = 0;
    CHECK(waitpid(child, NULL, 0) == child, "a child that has ended");
    const int owners[] = {child, 0};
    for (int i = 0; i < 2; i++) {
        CHECK(pthread_mutex_lock(&locks.writer) == 0, "taken");
        locks.writer.__data.__owner = owners[i];
        locks.head.body.transaction = 4;
        CHECK(tb_lmdb_writer(&locks, &dead) == (uint32_t)owners[i] && dead, "one who has ended, named or not");
        CHECK(tb_lmdb_free_writer(&locks, data_path, &err) == TB_OK, "%s", err.message);
        CHECK(locks.head.body.transaction == 5, "what was committed is told");
        CHECK(tb_lmdb_writer(&locks, &dead) == 0 && !dead, "and the lock is free");
    }
    locks.writer.__data.__owner = child;
    CHECK(tb_lmdb_check_locks(&locks, 5) != NULL, "glibc would end who takes this one");
#endif
}

/* ---- a reader's look, while a writer makes the file longer -------------------------------------------------- */

static _Atomic bool looked_enough;

static void set_last_page(int fd, uint64_t pages) {
    for (off_t i = 0; i < TB_LMDB_METAS; i++) {
        const uint64_t last = pages - 1;
        off_t at = i * PAGE + (off_t)offsetof(tb_lmdb_meta, last_page);
        CHECK(pwrite(fd, &last, sizeof last, at) == (ssize_t)sizeof last, "a meta page");
    }
}

static void *make_longer(void *argument) {
    int fd = *(int *)argument;
    for (uint64_t pages = PAGES + 1; !atomic_load(&looked_enough); pages++) {
        CHECK(ftruncate(fd, (off_t)(pages * PAGE)) == 0, "a longer file");
        set_last_page(fd, pages);
    }
    return NULL;
}

static void test_growing(void) {
    enum { LOOKS = 200000 };
    uint8_t file[PAGE * PAGES];
    build(file);
    CHECK(prepare(file, sizeof file) == TB_OK, "a data file");
    CHECK(truncate(lock_path, (off_t)TB_LMDB_LOCK_BYTES) == 0, "a lock file");
    tb_lmdb_files files;
    int gate_fd = open(data_path, O_RDONLY);
    CHECK(gate_fd >= 0, "a file for the gate");
    CHECK(tb_lmdb_files_open(&files, data_path, lock_path, gate_fd, gate_path, &err) == TB_OK, "%s", err.message);
    int fd = open(data_path, O_RDWR);
    pthread_t writer;
    CHECK(fd >= 0 && pthread_create(&writer, NULL, make_longer, &fd) == 0, "a writer");
    for (int i = 0; i < LOOKS; i++) {
        CHECK(tb_lmdb_files_check_whole(&files, &err) == TB_OK, "look %d: %s", i, err.message);
    }
    atomic_store(&looked_enough, true);
    pthread_join(writer, NULL);
    CHECK(ftruncate(fd, PAGES * PAGE) == 0, "a cut");
    CHECK(tb_lmdb_files_check_whole(&files, &err) == TB_EBUS_FORMAT, "which is found");
    close(fd);
    tb_lmdb_files_close(&files);
    close(gate_fd);
}

/* LMDB's own map of the lock file, as it makes one. */
static void *map_locks(void) {
    int fd = open(lock_path, O_RDWR);
    void *map = mmap(NULL, TB_LMDB_LOCK_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(fd >= 0 && map != MAP_FAILED, "a map");
    close(fd);
    return map;
}

/* Whole files of LMDB's, the data longer than what is in use, of which the ends are known. */
static void *open_ended(tb_lmdb_files *files, int gate_fd) {
    uint8_t file[PAGE * PAGES];
    build(file);
    CHECK(prepare(file, sizeof file) == TB_OK, "a data file");
    CHECK(truncate(data_path, (PAGES + 2) * PAGE) == 0, "a longer data file");
    CHECK(truncate(lock_path, 0) == 0 && truncate(lock_path, (off_t)TB_LMDB_LOCK_FILE_BYTES) == 0, "a lock file");
    void *map = map_locks();
    CHECK(tb_lmdb_files_open(files, data_path, lock_path, gate_fd, gate_path, &err) == TB_OK, "%s", err.message);
    CHECK(tb_lmdb_files_check_whole(files, &err) == TB_OK, "whole: %s", err.message);
    return map;
}

static void close_ended(tb_lmdb_files *files, void *map) {
    tb_lmdb_files_close(files);
    munmap(map, TB_LMDB_LOCK_FILE_BYTES);
}

/* Among so many looks one comes right behind another, however busy the machine is. */
enum { LOOKS_IN_TURN = 100000 };

static bool asks_each_time(tb_lmdb_files *files) {
    for (int i = 0; i < LOOKS_IN_TURN; i++) {
        uint64_t asked = files->asked;
        CHECK(tb_lmdb_files_check_whole(files, &err) == TB_OK, "whole: %s", err.message);
        if (files->asked == asked) {
            return false;
        }
    }
    return true;
}

/* The word of the lock file is reached by a double of LMDB's map. Without one (qemu makes none) each look asks the kernel. */
static bool maps_are_doubled(void *map) {
    void *twice = mremap(map, 0, PAGE, MREMAP_MAYMOVE);
    if (twice == MAP_FAILED) {
        puts("not checked here: the kernel doubles no maps, so that each look asks it");
        return false;
    }
    munmap(twice, PAGE);
    return true;
}

static void test_ends(void) {
    int gate_fd = open(gate_path, O_RDWR | O_CREAT, 0600);
    CHECK(gate_fd >= 0, "a file for the gate");
    tb_lmdb_files files;
    void *map = open_ended(&files, gate_fd);
    bool doubled = maps_are_doubled(map);
    CHECK(asks_each_time(&files) != doubled, "the words at both ends tell by themselves");
    /* Somebody else makes the data longer and uses what was the end. */
    CHECK(truncate(data_path, (PAGES + 9) * PAGE) == 0, "longer");
    set_last_page(files.data_fd, PAGES + 2);
    CHECK(asks_each_time(&files), "a page that is in use has no word that counts");
    tb_file_end_write(files.data_fd, (PAGES + 11) * PAGE);
    CHECK(asks_each_time(&files) != doubled, "the new end is found by asking");
    close_ended(&files, map);

    for (off_t from_end = 1; from_end <= (PAGES + 2) * PAGE; from_end += from_end < 20 ? 1 : 1021) {
        map = open_ended(&files, gate_fd);
        CHECK(truncate(data_path, (PAGES + 2) * PAGE - from_end) == 0, "a cut");
        CHECK(tb_lmdb_files_check_whole(&files, &err) == TB_EBUS_FORMAT, "%d bytes less are found", (int)from_end);
        close_ended(&files, map);
    }
    map = open_ended(&files, gate_fd);
    CHECK(truncate(data_path, PAGES * PAGE - 1000) == 0, "a cut within a page, and within a transaction");
    const tb_lmdb_change change = {.puts = 9, .big_pages = 20};
    CHECK(tb_lmdb_files_reserve(&files, &change, &err) == TB_EBUS_FORMAT, "is found before the file is longer again");
    close_ended(&files, map);
    for (off_t bytes = 0; bytes < (off_t)TB_LMDB_LOCK_BYTES; bytes += 1021) {
        map = open_ended(&files, gate_fd);
        CHECK(truncate(lock_path, bytes) == 0, "a cut");
        CHECK(tb_lmdb_files_check_whole(&files, &err) == TB_EBUS_FORMAT, "a lock file of %d bytes is found", (int)bytes);
        close_ended(&files, map);
    }
    map = open_ended(&files, gate_fd);
    CHECK(unlink(gate_path) == 0 && tb_lmdb_files_ask_whole(&files, &err) == TB_EBUS_FORMAT, "the gate's file is missed");
    close_ended(&files, map);
    close(gate_fd);
}

int main(void) {
    static uint8_t file[PAGE * PAGES];
    CHECK(mkdtemp(folder) != NULL, "a folder");
    snprintf(data_path, sizeof data_path, "%s/data.mdb", folder);
    snprintf(lock_path, sizeof lock_path, "%s/lock.mdb", folder);
    snprintf(gate_path, sizeof gate_path, "%s/locks", folder);
    build(file);
    CHECK(prepare(file, sizeof file) == TB_OK, "a whole file: %s", err.message);
    CHECK(prepare(file, sizeof file - 1) == TB_EBUS_FORMAT, "a file that was cut");
    refuse(24, 0, "no magic");
    refuse(PAGE + 152, 9, "meta pages of transactions that do not follow");
    refuse(PAGE + 144, 200, "a last page beyond the file");
    refuse(2 * PAGE, 7, "a page of another number");
    refuse(2 * PAGE + 18, TB_LMDB_LEAF, "a page of another kind");
    refuse(2 * PAGE + PAGE - 8, 2, "a page that refers to itself");
    refuse(3 * PAGE + 25, 0xff, "a node outside of its page");
    refuse(4 * PAGE + 20, 9, "a large value of other pages");
    test_robust_locks();
    test_writer();
    test_growing();
    test_ends();
    test_noise();
    unlink(data_path);
    unlink(lock_path);
    rmdir(folder);
    return 0;
}
