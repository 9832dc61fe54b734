/* LMDB: what its environment must be before it is opened, and what is reserved before it writes. No lock is needed. */
#include "host/lmdb.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "host/lock_file.h"

#define DEEPEST 32         /* levels of a tree: LMDB's own limit */
#define SPARE_BYTES 65536u /* reserved beyond what is needed, so that few transactions reserve */
#define SPARE_PAGES 24     /* for one removal at a time */
#define FIRST_BYTES 8192   /* what LMDB writes into an empty file */

/* ---- the meta pages ------------------------------------------------------------------------------------ */

static bool is_page_size(uint32_t bytes) {
    return bytes >= 512 && bytes <= 65536 && (bytes & (bytes - 1)) == 0;
}

const char *tb_lmdb_check_meta(const tb_lmdb_meta *meta) {
    if ((meta->page.flags & TB_LMDB_META) == 0 || meta->magic != TB_LMDB_MAGIC) {
        return "a meta page is invalid";
    }
    if ((meta->version & 0xffff) != TB_LMDB_VERSION) {
        return "a meta page has another version";
    }
    uint64_t page_bytes = meta->trees[TB_LMDB_FREE].page_bytes;
    if (!is_page_size((uint32_t)page_bytes) || meta->last_page == 0 || meta->last_page > INT64_MAX / page_bytes - 1) {
        return "a meta page has sizes out of range";
    }
    for (int i = TB_LMDB_FREE; i <= TB_LMDB_MAIN; i++) {
        const tb_lmdb_tree *tree = &meta->trees[i];
        bool empty = tree->root == TB_LMDB_NO_PAGE;
        if (empty ? tree->depth != 0 : tree->root > meta->last_page || tree->root < TB_LMDB_METAS) {
            return "a meta page names a tree outside of the file";
        }
        if (tree->depth > DEEPEST || tree->branches > meta->last_page || tree->leaves > meta->last_page
            || tree->overflows > meta->last_page) {
            return "a meta page counts more pages than there are";
        }
    }
    return NULL;
}

const tb_lmdb_meta *tb_lmdb_newest(const tb_lmdb_meta metas[TB_LMDB_METAS], const char **problem) {
    for (int i = 0; i < TB_LMDB_METAS; i++) {
        *problem = tb_lmdb_check_meta(&metas[i]);
        if (*problem != NULL) {
            return NULL;
        }
    }
    const tb_lmdb_meta *newest = &metas[metas[1].transaction > metas[0].transaction];
    const tb_lmdb_meta *older = newest == &metas[0] ? &metas[1] : &metas[0];
    bool fresh = newest->transaction == 0 && older->transaction == 0;
    if (!fresh && (newest->transaction != older->transaction + 1 || newest != &metas[newest->transaction % 2])) {
        *problem = "its two meta pages do not follow one another";
        return NULL;
    }
    if (newest->trees[TB_LMDB_FREE].page_bytes != older->trees[TB_LMDB_FREE].page_bytes) {
        *problem = "its two meta pages differ in the size of a page";
        return NULL;
    }
    return newest;
}

/* ---- the trees ----------------------------------------------------------------------------------------- */

typedef struct walk {
    int fd;
    const tb_lmdb_meta *meta;
    uint32_t page_bytes;
    uint64_t branches;
    uint64_t leaves;
    uint64_t overflows;
    const char *problem;
} walk;

/* Bytes of a node before its key. */
enum { NODE_HEAD = 8, BIG_VALUE = 1, BIG_VALUE_BYTES = 24 };

static bool fail_walk(walk *walk, const char *problem) {
    walk->problem = problem;
    return false;
}

static bool read_page(walk *walk, uint64_t number, void *page, size_t bytes) {
    off_t at = (off_t)(number * walk->page_bytes);
    if (number < TB_LMDB_METAS || number > walk->meta->last_page) {
        return fail_walk(walk, "a page refers to one outside of the file");
    }
    if (pread(walk->fd, page, bytes, at) != (ssize_t)bytes) {
        return fail_walk(walk, "a page cannot be read");
    }
    if (((tb_lmdb_page *)page)->number != number) {
        return fail_walk(walk, "a page is not the one that is referred to");
    }
    return true;
}

static bool check_big_value(walk *walk, const char *reference) {
    uint64_t number, pages;
    memcpy(&number, reference, sizeof number);
    memcpy(&pages, reference + 16, sizeof pages);
    tb_lmdb_page head;
    if (!read_page(walk, number, &head, sizeof head)) {
        return false;
    }
    if (head.flags != TB_LMDB_OVERFLOW || head.size.pages != pages || pages == 0
        || pages > walk->meta->last_page - number + 1) {
        return fail_walk(walk, "a large value does not lie where it should");
    }
    walk->overflows += pages;
    return true;
}

static bool check_page(walk *walk, uint64_t number, unsigned levels);

/* One node at that offset of a page; `room` are the page's bytes behind its head. */
static bool check_node(walk *walk, const char *body, uint32_t room, uint32_t offset, unsigned levels) {
    uint16_t words[4]; /* low and high half of a size, flags, bytes of the key */
    if (offset > room || room - offset < NODE_HEAD) {
        return fail_walk(walk, "a node lies outside of its page");
    }
    memcpy(words, body + offset, sizeof words);
    uint64_t key_end = (uint64_t)offset + NODE_HEAD + words[3];
    if (levels > 1) {
        uint64_t child = words[0] | (uint64_t)words[1] << 16 | (uint64_t)words[2] << 32;
        return key_end <= room ? check_page(walk, child, levels - 1)
                               : fail_walk(walk, "a key lies outside of its page");
    }
    uint64_t bytes = words[0] | (uint64_t)words[1] << 16;
    if ((words[2] & ~BIG_VALUE) != 0) {
        return fail_walk(walk, "a value is of a kind that is not used");
    }
    bool big = words[2] == BIG_VALUE;
    if (key_end + (big ? BIG_VALUE_BYTES : bytes) > room) {
        return fail_walk(walk, "a value lies outside of its page");
    }
    return !big || check_big_value(walk, body + key_end);
}

static bool check_nodes(walk *walk, const tb_lmdb_page *page, unsigned levels) {
    const char *body = (const char *)(page + 1);
    uint32_t room = walk->page_bytes - (uint32_t)sizeof *page;
    uint32_t lower = page->size.room.lower, upper = page->size.room.upper;
    if (lower % 2 != 0 || lower == 0 || lower > upper || upper > room) {
        return fail_walk(walk, "a page has bounds out of range");
    }
    for (uint32_t at = 0; at < lower; at += 2) {
        uint16_t offset;
        memcpy(&offset, body + at, sizeof offset);
        if (offset < upper) {
            return fail_walk(walk, "a node lies outside of its page");
        }
        if (!check_node(walk, body, room, offset, levels)) {
            return false;
        }
    }
    return true;
}

static bool check_page(walk *walk, uint64_t number, unsigned levels) {
    if (walk->branches + walk->leaves > walk->meta->last_page) {
        return fail_walk(walk, "its pages refer to one another in a circle");
    }
    tb_lmdb_page *page = malloc(walk->page_bytes);
    if (page == NULL) {
        return fail_walk(walk, "there is no memory to check it");
    }
    bool fine = read_page(walk, number, page, walk->page_bytes);
    if (fine && page->flags != (levels > 1 ? TB_LMDB_BRANCH : TB_LMDB_LEAF)) {
        fine = fail_walk(walk, "a page has another kind than the one that is referred to");
    }
    *(levels > 1 ? &walk->branches : &walk->leaves) += 1;
    fine = fine && check_nodes(walk, page, levels);
    free(page);
    return fine;
}

static const char *check_tree(int fd, const tb_lmdb_meta *meta, const tb_lmdb_tree *tree) {
    walk walk = {.fd = fd, .meta = meta, .page_bytes = meta->trees[TB_LMDB_FREE].page_bytes};
    if (tree->root != TB_LMDB_NO_PAGE && !check_page(&walk, tree->root, tree->depth)) {
        return walk.problem;
    }
    bool counted = walk.branches == tree->branches && walk.leaves == tree->leaves
                   && walk.overflows == tree->overflows;
    return counted ? NULL : "its trees have other pages than its meta page counts";
}

/* ---- what a transaction needs -------------------------------------------------------------------------- */

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

uint64_t tb_lmdb_bytes_needed(const tb_lmdb_meta *meta, const tb_lmdb_change *change) {
    const tb_lmdb_tree *main = &meta->trees[TB_LMDB_MAIN], *free = &meta->trees[TB_LMDB_FREE];
    uint64_t page_bytes = free->page_bytes;
    uint64_t puts = change->puts;
    /* A change copies the way to its leaf and, if it merges pages, the neighbours on it. */
    uint64_t copied = smaller(main->branches + main->leaves, (puts + change->removes) * 3 * main->depth);
    /* A value splits a leaf that is full: one of those there are, or one that values fill. Fewer than half of the
     * splits reach the level above, and the root may split. */
    uint64_t splits = smaller(puts, main->leaves + 2 * change->small_bytes / page_bytes + 1);
    uint64_t split = splits + splits / 2 + main->depth + 1;
    /* The list of free pages is written anew, at 8 bytes a page. */
    uint64_t listed =
        free->branches + free->leaves + 2 * ((meta->last_page + 1) * 8 / page_bytes + 1) + free->depth + 2;
    /* What removes something finds room even if others find none: a queue that is full can be emptied. */
    uint64_t spare = change->removes == 0 ? SPARE_PAGES : 0;
    return (meta->last_page + 1 + copied + split + change->big_pages + listed + spare) * page_bytes;
}

/* Space between two offsets, by writing there if the file system cannot reserve. Returns an errno. */
static int reserve_range(int fd, uint64_t from, uint64_t to) {
    int rc;
    do {
        rc = fallocate(fd, 0, (off_t)from, (off_t)(to - from)) == 0 ? 0 : errno;
    } while (rc == EINTR);
    return rc == EOPNOTSUPP || rc == ENOSYS ? posix_fallocate(fd, (off_t)from, (off_t)(to - from)) : rc;
}

/* Extends *reserved up to `to`. Returns an errno: EFBIG if the kernel would send a signal for it. */
static int extend(int fd, uint64_t *reserved, uint64_t to) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && to > limit.rlim_cur) {
        return EFBIG;
    }
    int rc = to > *reserved ? reserve_range(fd, *reserved, to) : 0;
    *reserved = rc == 0 && to > *reserved ? to : *reserved;
    return rc;
}

static int32_t told(int rc, uint64_t to, const char *path, tb_error *err) {
    if (rc == 0) {
        return TB_OK;
    }
    bool full = rc == ENOSPC || rc == EDQUOT || rc == EFBIG;
    return tb_fail(err, full ? TB_ENO_SPACE : TB_ESYSTEM, -1, rc, "%s cannot grow to %" PRIu64 " bytes", path, to);
}

int32_t tb_lmdb_grow(int fd, uint64_t *reserved, uint64_t to, const char *path, tb_error *err) {
    int rc = extend(fd, reserved, to + to / 8 + SPARE_BYTES);
    return told(rc == 0 ? 0 : extend(fd, reserved, to), to, path, err);
}

/* ---- before LMDB opens it ------------------------------------------------------------------------------ */

static int32_t damaged(tb_error *err, const char *path, const char *problem) {
    return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", path, problem);
}

/* The newest meta page of the file, in *newest. */
static int32_t read_newest(int fd, const char *path, tb_lmdb_meta *newest, tb_error *err) {
    tb_lmdb_meta metas[TB_LMDB_METAS];
    if (pread(fd, &metas[0], sizeof metas[0], 0) != (ssize_t)sizeof metas[0]) {
        return damaged(err, path, "it is shorter than a page");
    }
    uint32_t page_bytes = metas[0].trees[TB_LMDB_FREE].page_bytes;
    if (!is_page_size(page_bytes)
        || pread(fd, &metas[1], sizeof metas[1], (off_t)page_bytes) != (ssize_t)sizeof metas[1]) {
        return damaged(err, path, "a meta page is missing");
    }
    const char *problem;
    const tb_lmdb_meta *meta = tb_lmdb_newest(metas, &problem);
    if (meta == NULL) {
        return damaged(err, path, problem);
    }
    *newest = *meta;
    return TB_OK;
}

int32_t tb_lmdb_free_writer(tb_lmdb_locks *locks, const char *data_path, tb_error *err) {
    int fd = open(data_path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be opened", data_path);
    }
    tb_lmdb_meta meta;
    int32_t rc = read_newest(fd, data_path, &meta, err);
    close(fd);
    if (rc == TB_OK) {
        tb_lmdb_free_lock(locks, meta.transaction);
    }
    return rc;
}

static int32_t check_data(int fd, const char *path, uint64_t *transaction, tb_error *err) {
    tb_lmdb_meta newest, *meta = &newest;
    struct stat status;
    int32_t rc = read_newest(fd, path, meta, err);
    if (rc != TB_OK) {
        return rc;
    }
    if (fstat(fd, &status) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be looked at", path);
    }
    uint64_t used = (meta->last_page + 1) * meta->trees[TB_LMDB_FREE].page_bytes;
    if ((uint64_t)status.st_size < used) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: it has %" PRIu64 " bytes, of %" PRIu64 " in use",
                       path, (uint64_t)status.st_size, used);
    }
    for (int i = TB_LMDB_FREE; i <= TB_LMDB_MAIN; i++) {
        const char *problem = check_tree(fd, meta, &meta->trees[i]);
        if (problem != NULL) {
            return damaged(err, path, problem);
        }
    }
    *transaction = meta->transaction;
    return TB_OK;
}

/* Looks if another process has LMDB open: LMDB makes its lock file anew if nobody has. */
static int32_t look_for_use(int lock_fd, bool *in_use, tb_error *err) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    if (fcntl(lock_fd, F_GETLK, &lock) != 0) {
        return tb_bus_lock_refused(lock_fd, errno, err);
    }
    *in_use = lock.l_type != F_UNLCK;
    return TB_OK;
}

/* LMDB's binding does not survive it if LMDB gets no lock: so that is tried before. Frees the lock again. */
static int32_t try_use(int lock_fd, bool *refused, tb_error *err) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    *refused = false;
    if (fcntl(lock_fd, F_SETLK, &lock) != 0) {
        *refused = errno == EAGAIN || errno == EACCES;
        return *refused ? TB_OK : tb_bus_lock_refused(lock_fd, errno, err);
    }
    lock.l_type = F_UNLCK;
    fcntl(lock_fd, F_SETLK, &lock);
    return TB_OK;
}

/*
 * Looks whether others have LMDB open, as its lock file says and, if users_fd is one, the gate's file. One that has
 * just ended lets go of both one after the other: until then they say different things.
 */
static int32_t find_others(int lock_fd, int users_fd, bool *others, enum tb_gate_users *found, tb_error *err) {
    bool refused;
    int32_t rc = look_for_use(lock_fd, others, err);
    rc = rc == TB_OK ? try_use(lock_fd, &refused, err) : rc;
    if (rc != TB_OK) {
        return rc;
    }
    int failed = *others ? EAGAIN : 0;
    if (users_fd >= 0) {
        failed = tb_bus_byte_lock(users_fd, F_OFD_GETLK, F_WRLCK, TB_GATE_USERS);
    }
    if (failed != 0 && failed != EAGAIN) {
        return tb_bus_lock_refused(users_fd, failed, err);
    }
    bool users = failed != 0;
    *found = users && !*others              ? TB_GATE_USERS_ELSEWHERE
             : refused || users != *others ? TB_GATE_USERS_UNKNOWN
                                           : TB_GATE_USERS_KNOWN;
    return TB_OK;
}

static int32_t prepare_locks(int fd, const char *path, uint64_t transaction, bool others, tb_error *err) {
    struct stat status;
    tb_lmdb_locks locks;
    if (!others) {
        uint64_t reserved = 0;
        /* A page of it that has no space yet ends the process that touches it. */
        return told(extend(fd, &reserved, TB_LMDB_LOCK_FILE_BYTES), TB_LMDB_LOCK_FILE_BYTES, path, err);
    }
    if (fstat(fd, &status) != 0 || status.st_size < (off_t)TB_LMDB_LOCK_BYTES
        || pread(fd, &locks, sizeof locks, 0) != (ssize_t)sizeof locks) {
        return damaged(err, path, "it is shorter than its table of readers");
    }
    const char *problem = tb_lmdb_check_locks(&locks, transaction);
    return problem == NULL ? TB_OK : damaged(err, path, problem);
}

static int32_t open_file(const char *path, int *fd, tb_error *err) {
    *fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (*fd < 0) {
        int code = errno == ENOSPC || errno == EDQUOT ? TB_ENO_SPACE : TB_ESYSTEM;
        return tb_fail(err, code, -1, errno, "%s cannot be opened", path);
    }
    int32_t rc = tb_bus_check_owner(*fd, "file", path, err);
    if (rc != TB_OK) {
        close(*fd);
    }
    return rc;
}

/* LMDB's binding does not survive an opening that fails: what it may lack is looked for before. */
static int32_t check_limits(int fd, const char *path, uint64_t map_bytes, tb_error *err) {
    enum { DESCRIPTORS = 8 };
    int spare[DESCRIPTORS];
    int count = 0, rc = 0;
    while (count < DESCRIPTORS && (spare[count] = fcntl(fd, F_DUPFD_CLOEXEC, 0)) >= 0) {
        count++;
    }
    rc = count < DESCRIPTORS ? errno : 0;
    while (count > 0) {
        close(spare[--count]);
    }
    if (rc != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, rc, "%s cannot be opened", path);
    }
    void *map = mmap(NULL, map_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED) {
        return tb_fail(err, TB_ENO_MEMORY, -1, errno,
                       "%s cannot be mapped: it takes %" PRIu64 " bytes of address space, see `ulimit -v`", path,
                       map_bytes);
    }
    munmap(map, map_bytes);
    return TB_OK;
}

static int32_t prepare_data(int fd, const char *path, uint64_t map_bytes, bool others, uint64_t *transaction,
                            tb_error *err) {
    int32_t rc = TB_OK;
    struct stat status;
    *transaction = 0;
    if (fstat(fd, &status) == 0 && status.st_size > 0) {
        rc = check_data(fd, path, transaction, err);
    } else if (others) {
        rc = damaged(err, path, "it is empty");
    } else if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, FIRST_BYTES) != 0 && errno == ENOSPC) {
        rc = tb_fail(err, TB_ENO_SPACE, -1, ENOSPC, "%s has no room for its first pages", path);
    }
    return rc == TB_OK ? check_limits(fd, path, map_bytes, err) : rc;
}

int32_t tb_lmdb_prepare(const char *data_path, const char *lock_path, uint64_t map_bytes, int users_fd,
                        enum tb_gate_users *users, tb_error *err) {
    int data, locks;
    *users = TB_GATE_USERS_KNOWN;
    int32_t rc = open_file(lock_path, &locks, err);
    if (rc != TB_OK) {
        return rc;
    }
    rc = open_file(data_path, &data, err);
    if (rc == TB_OK) {
        bool others = false;
        uint64_t transaction;
        rc = find_others(locks, users_fd, &others, users, err);
        if (rc == TB_OK && *users == TB_GATE_USERS_KNOWN) {
            rc = prepare_data(data, data_path, map_bytes, others, &transaction, err);
            rc = rc == TB_OK ? prepare_locks(locks, lock_path, transaction, others, err) : rc;
        }
        close(data);
    }
    close(locks);
    return rc;
}
