/*
 * The handler of SIGBUS, and the table that it reads. It runs wherever a page is missing: it takes no lock, and calls
 * nothing but the kernel. Rows are changed under `lock`; a row's begin is written last and cleared first.
 */
#include "host/map_guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "host/lmdb.h"
#include "host/own_maps.h"

/*
 * An environment has up to six maps: LMDB's two, the first pages and the end of its data, and of its lock file the
 * gate's and the end. An agent has two environments.
 */
enum { ROWS = 4096, EARLIER = 8 };

typedef struct row {
    _Atomic uintptr_t begin; /* 0: free */
    size_t bytes;
    dev_t device;
    ino_t inode;
    enum tb_guard_kind kind;
    uint32_t users; /* how many use a map of LMDB's; 0 for one of ours */
    _Atomic uint32_t hit;
} row;

static row rows[ROWS];
static _Atomic uint32_t row_count; /* no row beyond was ever used */
static _Atomic uint32_t hits;      /* the sum for all rows so far: 0 is usual, and quickly checked */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t page_bytes;

/* Those that were there before, whenever the handler was put in place: the last one counts. */
static struct sigaction earlier[EARLIER];
static _Atomic int earlier_count;
/* A thread's own, which costs no call to reach: for two handlers that name one another as the earlier one. */
static _Thread_local volatile sig_atomic_t passing __attribute__((tls_model("initial-exec")));

static bool is_of(const row *row, const struct stat *file) {
    return atomic_load_explicit(&row->begin, memory_order_acquire) != 0 && row->device == file->st_dev
           && row->inode == file->st_ino;
}

static row *row_at(uintptr_t address) {
    uint32_t count = atomic_load_explicit(&row_count, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        uintptr_t begin = atomic_load_explicit(&rows[i].begin, memory_order_acquire);
        if (begin != 0 && address >= begin && address - begin < rows[i].bytes) {
            return &rows[i];
        }
    }
    return NULL;
}

/* ---- the page that takes the place of a missing one ------------------------------------------------------ */

/*
 * A page of LMDB's that is neither branch nor leaf, so that whoever looks for its kind calls it corrupt; but whoever
 * has looked already, and goes on with what it knows of the lost one, meets as many nodes as any page of ours has, in
 * order and within bounds: what is done with them stays in the page. LMDB trusts a page's sizes, and ends the process,
 * or overruns its memory, for a page that is all zeros.
 */
static void fill_data(uint8_t *page, uint64_t number) {
    enum { NODES = 127 };
    if (number < TB_LMDB_METAS) {
        return; /* zeros are no meta page, as every look at it finds */
    }
    uint32_t room = (uint32_t)page_bytes - (uint32_t)sizeof(tb_lmdb_page);
    uint32_t node_bytes = (room - 2 * NODES) / NODES & ~1u;
    uint32_t upper = room - NODES * node_bytes;
    tb_lmdb_page head = {.number = number};
    head.size.room.lower = 2 * NODES;
    head.size.room.upper = (uint16_t)upper;
    memcpy(page, &head, sizeof head);
    for (uint32_t i = 0; i < NODES; i++) {
        uint16_t offset = (uint16_t)(room - (i + 1) * node_bytes);
        /* A value of that size, with an empty key. */
        uint16_t node[4] = {(uint16_t)(node_bytes - sizeof node), 0, 0, 0};
        memcpy(page + sizeof head + 2 * i, &offset, sizeof offset);
        memcpy(page + sizeof head + offset, node, sizeof node);
    }
}

/* Puts a page of our own in the place of the missing one, whole at once: other threads may touch it too. */
static bool replace_page(uintptr_t address) {
    row *found = row_at(address);
    if (found == NULL) {
        return false;
    }
    uintptr_t at = address & ~(page_bytes - 1);
    uint64_t number = (at - found->begin) / page_bytes;
    uint8_t *page = mmap(NULL, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return false;
    }
    if (found->kind == TB_GUARD_DATA) {
        fill_data(page, number);
    }
    if (mremap(page, page_bytes, page_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at) == MAP_FAILED) {
        munmap(page, page_bytes);
        return false;
    }
    atomic_store_explicit(&found->hit, 1, memory_order_release);
    atomic_fetch_add_explicit(&hits, 1, memory_order_release);
    return true;
}

/* ---- the handler ----------------------------------------------------------------------------------------- */

static void end_by_default(int signal, const siginfo_t *info) {
    const struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(signal, &action, NULL);
    if (info->si_code <= 0) {
        raise(signal); /* somebody has sent it; a fault comes again by itself */
    }
}

static void pass_on(int signal, siginfo_t *info, void *context) {
    int count = atomic_load_explicit(&earlier_count, memory_order_acquire);
    const struct sigaction *before = &earlier[count - 1];
    bool takes_info = (before->sa_flags & SA_SIGINFO) != 0;
    bool ignored = !takes_info && before->sa_handler == SIG_IGN;
    if (ignored && info->si_code <= 0) {
        return;
    }
    if (passing || ignored || (!takes_info && before->sa_handler == SIG_DFL)) {
        end_by_default(signal, info);
        return;
    }
    passing = 1;
    if (takes_info) {
        before->sa_sigaction(signal, info, context);
    } else {
        before->sa_handler(signal);
    }
    passing = 0;
}

static void on_signal(int signal, siginfo_t *info, void *context) {
    int failed = errno;
    if (info->si_code != BUS_ADRERR || !replace_page((uintptr_t)info->si_addr)) {
        errno = failed;
        pass_on(signal, info, context);
    }
    errno = failed;
}

/* Under `lock`. Again whenever a map is added: somebody else may have put a handler of theirs there, which is kept. */
static int32_t install(tb_error *err) {
    struct sigaction there;
    page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, NULL, &there) == 0 && (there.sa_flags & SA_SIGINFO) != 0 && there.sa_sigaction == on_signal) {
        return TB_OK;
    }
    int count = atomic_load(&earlier_count);
    count = count == EARLIER ? EARLIER - 1 : count;
    earlier[count] = there;
    atomic_store_explicit(&earlier_count, count + 1, memory_order_release);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, &action, NULL) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "no handler of SIGBUS can be installed");
    }
    return TB_OK;
}

/* ---- the table ------------------------------------------------------------------------------------------- */

/* Under `lock`. */
static int32_t add_row(uintptr_t begin, size_t bytes, const struct stat *file, enum tb_guard_kind kind, uint32_t users,
                       int *slot, tb_error *err) {
    uint32_t i = 0, count = atomic_load(&row_count);
    while (i < count && atomic_load(&rows[i].begin) != 0) {
        i++;
    }
    if (i == ROWS) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "more than %d maps of files cannot be guarded", ROWS);
    }
    rows[i].bytes = bytes;
    rows[i].device = file->st_dev;
    rows[i].inode = file->st_ino;
    rows[i].kind = kind;
    rows[i].users = users;
    atomic_store(&rows[i].hit, 0);
    atomic_store_explicit(&rows[i].begin, begin, memory_order_release);
    if (i == count) {
        atomic_store_explicit(&row_count, count + 1, memory_order_release);
    }
    *slot = (int)i;
    return TB_OK;
}

int32_t tb_guard_add(const void *begin, size_t bytes, const struct stat *file, enum tb_guard_kind kind, int *slot,
                     tb_error *err) {
    *slot = -1;
    pthread_mutex_lock(&lock);
    int32_t rc = install(err);
    rc = rc == TB_OK ? add_row((uintptr_t)begin, bytes, file, kind, 0, slot, err) : rc;
    pthread_mutex_unlock(&lock);
    return rc;
}

void tb_guard_remove(int slot) {
    if (slot >= 0) {
        pthread_mutex_lock(&lock);
        atomic_store(&rows[slot].begin, 0);
        pthread_mutex_unlock(&lock);
    }
}

/* Under `lock`: one map of the file's, which is known already, lies within one that is, or is new. */
static int32_t add_map(uintptr_t begin, size_t bytes, const struct stat *file, enum tb_guard_kind kind,
                       tb_error *err) {
    row *known = row_at(begin);
    if (known != NULL) {
        known->users += known->users != 0 && known->begin == begin;
        return TB_OK;
    }
    int slot;
    return add_row(begin, bytes, file, kind, 1, &slot, err);
}

int32_t tb_guard_lmdb(const char *path, const struct stat *file, enum tb_guard_kind kind, tb_error *err) {
    FILE *maps = tb_own_maps_open();
    if (maps == NULL) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "/proc/self/maps cannot be read");
    }
    pthread_mutex_lock(&lock);
    int32_t rc = install(err);
    tb_own_map map;
    while (rc == TB_OK && tb_own_maps_next(maps, &map)) {
        bool same = (map.inode == file->st_ino && map.device == file->st_dev) || strcmp(map.name, path) == 0;
        if (same) {
            rc = add_map(map.begin, map.end - map.begin, file, kind, err);
        }
    }
    pthread_mutex_unlock(&lock);
    fclose(maps);
    return rc;
}

void tb_guard_release(const struct stat *file) {
    pthread_mutex_lock(&lock);
    uint32_t count = atomic_load(&row_count);
    for (uint32_t i = 0; i < count; i++) {
        if (is_of(&rows[i], file) && rows[i].users != 0 && --rows[i].users == 0) {
            atomic_store(&rows[i].begin, 0);
        }
    }
    pthread_mutex_unlock(&lock);
}

const _Atomic uint32_t *tb_guard_hits(void) {
    return &hits;
}

bool tb_guard_has_hit(const struct stat *file) {
    if (atomic_load_explicit(&hits, memory_order_acquire) == 0) {
        return false;
    }
    bool hit = false;
    pthread_mutex_lock(&lock);
    uint32_t count = atomic_load(&row_count);
    for (uint32_t i = 0; i < count && !hit; i++) {
        hit = is_of(&rows[i], file) && atomic_load(&rows[i].hit) != 0;
    }
    pthread_mutex_unlock(&lock);
    return hit;
}
