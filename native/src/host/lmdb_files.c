/* The two files of an LMDB environment, looked at without LMDB. No lock is needed. */
#include "host/lmdb_files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "host/map_guard.h"
#include "host/own_maps.h"

#define ASK_AGAIN_NS 5000000 /* whether the files have their names */

void tb_lmdb_files_init(tb_lmdb_files *files) {
    files->data_fd = -1;
    files->lock_fd = -1;
    files->page_bytes = 0;
    files->metas = NULL;
    files->data_bytes = 0;
    files->reserved = 0;
    files->guard = -1;
    files->guards_lmdb = false;
    tb_file_end_init(&files->data_end);
    tb_file_end_init(&files->lock_end);
    files->hits = 0;
    files->asked = 0;
    files->gate_fd = -1;
    files->gate_path = NULL;
    files->data_path = NULL;
    files->lock_path = NULL;
}

void tb_lmdb_files_close(tb_lmdb_files *files) {
    if (files->guards_lmdb) {
        tb_guard_release(&files->data);
        tb_guard_release(&files->lock);
    }
    tb_file_end_close(&files->data_end);
    tb_file_end_close(&files->lock_end);
    tb_guard_remove(files->guard);
    if (files->metas != NULL) {
        munmap((void *)files->metas, (size_t)files->page_bytes * TB_LMDB_METAS);
    }
    if (files->data_fd >= 0) {
        close(files->data_fd);
    }
    if (files->lock_fd >= 0) {
        close(files->lock_fd);
    }
    free(files->data_path);
    free(files->lock_path);
    tb_lmdb_files_init(files);
}

static int32_t map_metas(tb_lmdb_files *files, tb_error *err) {
    tb_lmdb_meta meta;
    if (fstat(files->data_fd, &files->data) != 0 || fstat(files->lock_fd, &files->lock) != 0
        || pread(files->data_fd, &meta, sizeof meta, 0) != (ssize_t)sizeof meta) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be read", files->data_path);
    }
    const char *problem = tb_lmdb_check_meta(&meta);
    if (problem != NULL) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", files->data_path, problem);
    }
    files->page_bytes = meta.trees[TB_LMDB_FREE].page_bytes;
    if ((uint64_t)files->data.st_size < (uint64_t)files->page_bytes * TB_LMDB_METAS) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: it was cut", files->data_path);
    }
    files->data_bytes = (uint64_t)files->data.st_size;
    size_t bytes = (size_t)files->page_bytes * TB_LMDB_METAS;
    void *mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, files->data_fd, 0);
    if (mapping == MAP_FAILED) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be mapped", files->data_path);
    }
    files->metas = mapping;
    return tb_guard_add(mapping, bytes, &files->data, TB_GUARD_DATA, &files->guard, err);
}

static int32_t guard_lmdb(tb_lmdb_files *files, tb_error *err) {
    int32_t rc = tb_guard_lmdb(files->data_path, &files->data, TB_GUARD_DATA, err);
    if (rc != TB_OK) {
        return rc;
    }
    rc = tb_guard_lmdb(files->lock_path, &files->lock, TB_GUARD_LOCKS, err);
    files->guards_lmdb = rc == TB_OK;
    if (rc != TB_OK) {
        tb_guard_release(&files->data);
    }
    return rc;
}

/* Bytes that the transactions use which were committed: others may commit meanwhile. */
static uint64_t bytes_committed(const tb_lmdb_files *files) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < TB_LMDB_METAS; i++) {
        const tb_lmdb_meta *meta = (const tb_lmdb_meta *)(files->metas + i * files->page_bytes);
        uint64_t used = (meta->last_page + 1) * files->page_bytes;
        bytes = meta->magic == TB_LMDB_MAGIC && used > bytes ? used : bytes;
    }
    atomic_thread_fence(memory_order_acquire);
    return bytes;
}

/* The page of LMDB's with the word at the end of a file of that length. */
static uint64_t place_of_end(const tb_lmdb_files *files, uint64_t bytes) {
    return (bytes - TB_FILE_END_BYTES) / files->page_bytes * files->page_bytes;
}

/* Puts the word at the end of the data, unless a page is there that is in use, or will be after this transaction. */
static void mark_data_end(const tb_lmdb_files *files, uint64_t used) {
    struct stat data;
    if (fstat(files->data_fd, &data) == 0 && used <= place_of_end(files, (uint64_t)data.st_size)) {
        tb_file_end_write(files->data_fd, (uint64_t)data.st_size);
    }
}

static void mark_lock_end(tb_lmdb_files *files) {
    FILE *maps = files->lock.st_size >= (off_t)TB_LMDB_LOCK_FILE_BYTES ? tb_own_maps_open() : NULL;
    if (maps == NULL) {
        return;
    }
    tb_own_map map;
    while (files->lock_end.page == NULL && tb_own_maps_next(maps, &map)) {
        bool same = (map.inode == files->lock.st_ino && map.device == files->lock.st_dev)
                    || strcmp(map.name, files->lock_path) == 0;
        if (map.writable && same) {
            tb_file_end_find_mapped(&files->lock_end, &map, &files->lock, TB_LMDB_LOCK_FILE_BYTES);
        }
    }
    fclose(maps);
}

int32_t tb_lmdb_files_open(tb_lmdb_files *files, const char *data_path, const char *lock_path, int gate_fd,
                           const char *gate_path, tb_error *err) {
    tb_lmdb_files_init(files);
    files->gate_fd = gate_fd;
    files->gate_path = gate_path;
    files->data_path = strdup(data_path);
    files->lock_path = strdup(lock_path);
    files->data_fd = open(data_path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    files->lock_fd = open(lock_path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int32_t rc;
    if (files->data_path == NULL || files->lock_path == NULL) {
        rc = tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for the names of files");
    } else if (files->data_fd < 0 || files->lock_fd < 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be opened",
                     files->data_fd < 0 ? data_path : lock_path);
    } else {
        rc = map_metas(files, err);
        rc = rc == TB_OK ? guard_lmdb(files, err) : rc;
    }
    if (rc != TB_OK) {
        tb_lmdb_files_close(files);
    } else {
        mark_data_end(files, bytes_committed(files));
        tb_file_end_find(&files->data_end, files->data_fd, &files->data);
        mark_lock_end(files);
    }
    return rc;
}

/* ---- damage -------------------------------------------------------------------------------------------- */

/* Every process finds that the meta pages are none, also once the file is as long again as it was. */
static void mark(const tb_lmdb_files *files) {
    const uint32_t none = 0;
    for (uint32_t i = 0; i < TB_LMDB_METAS; i++) {
        off_t at = (off_t)(i * files->page_bytes + offsetof(tb_lmdb_meta, magic));
        if (pwrite(files->data_fd, &none, sizeof none, at) != (ssize_t)sizeof none) {
            return; /* the file system is full: its length tells them */
        }
    }
}

static int32_t damaged(const tb_lmdb_files *files, const char *path, off_t bytes, tb_error *err) {
    mark(files);
    return tb_fail(err, TB_EBUS_FORMAT, -1, 0,
                   "%s is damaged: it was cut, and had %" PRIu64 " bytes when this was found", path, (uint64_t)bytes);
}

int32_t tb_lmdb_files_ask_whole(tb_lmdb_files *files, tb_error *err) {
    struct stat data, locks, gate;
    if (files->metas == NULL) {
        return TB_OK;
    }
    files->asked = tb_now();
    files->hits = atomic_load_explicit(tb_guard_hits(), memory_order_acquire);
    /* Before its length: a reader is not inside, and a writer may make it longer and commit between two looks. */
    uint64_t committed = bytes_committed(files);
    uint64_t in_use = committed > files->data_bytes ? committed : files->data_bytes;
    if (fstat(files->data_fd, &data) != 0 || fstat(files->lock_fd, &locks) != 0 || fstat(files->gate_fd, &gate) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be looked at", files->data_path);
    }
    if ((uint64_t)data.st_size < in_use || tb_guard_has_hit(&files->data)) {
        return damaged(files, files->data_path, data.st_size, err);
    }
    if (locks.st_size < (off_t)TB_LMDB_LOCK_BYTES || tb_guard_has_hit(&files->lock)) {
        return damaged(files, files->lock_path, locks.st_size, err);
    }
    if (data.st_nlink == 0 || locks.st_nlink == 0) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s was removed",
                       data.st_nlink == 0 ? files->data_path : files->lock_path);
    }
    if (gate.st_nlink == 0) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0,
                       "%s was removed while it was in use: a process that opens the folder now would not wait for "
                       "those that have it open",
                       files->gate_path);
    }
    if ((uint64_t)data.st_size != files->data_end.bytes) {
        tb_file_end_find(&files->data_end, files->data_fd, &data);
        files->data_bytes = (uint64_t)data.st_size;
    }
    return TB_OK;
}

/*
 * The word at the end of the data is LMDB's to overwrite, once it needs the page: it counts as long as no transaction
 * that was committed does, and says that the file has all that was in use before it.
 */
static bool ends_stand(const tb_lmdb_files *files) {
    uint64_t committed = bytes_committed(files);
    return tb_file_end_stands(&files->data_end) && tb_file_end_stands(&files->lock_end)
           && committed <= place_of_end(files, files->data_end.bytes);
}

int32_t tb_lmdb_files_check_whole(tb_lmdb_files *files, tb_error *err) {
    if (files->metas == NULL) {
        return TB_OK;
    }
    bool whole = ends_stand(files) && atomic_load_explicit(tb_guard_hits(), memory_order_acquire) == files->hits
                 && tb_now() - files->asked < ASK_AGAIN_NS;
    return whole ? TB_OK : tb_lmdb_files_ask_whole(files, err);
}

static const tb_lmdb_meta *read_metas(const tb_lmdb_files *files, tb_lmdb_meta metas[TB_LMDB_METAS],
                                      const char **problem) {
    for (size_t i = 0; i < TB_LMDB_METAS; i++) {
        memcpy(&metas[i], files->metas + i * files->page_bytes, sizeof metas[i]);
    }
    return tb_lmdb_newest(metas, problem);
}

/* What holds while others write. */
static const char *check_marks(const tb_lmdb_files *files) {
    for (size_t i = 0; i < TB_LMDB_METAS; i++) {
        const tb_lmdb_meta *meta = (const tb_lmdb_meta *)(files->metas + i * files->page_bytes);
        /* LMDB goes to where its trees begin without a look. */
        bool has_trees = meta->trees[TB_LMDB_FREE].root != 0 && meta->trees[TB_LMDB_MAIN].root != 0;
        if (meta->magic != TB_LMDB_MAGIC || (meta->page.flags & TB_LMDB_META) == 0 || !has_trees) {
            return "a meta page is invalid";
        }
    }
    return NULL;
}

int32_t tb_lmdb_files_check(const tb_lmdb_files *files, const tb_lmdb_locks *locks, bool inside, tb_error *err) {
    if (files->metas == NULL || locks == NULL) {
        return TB_OK;
    }
    const char *path = files->data_path;
    const char *problem = NULL;
    if (!inside) {
        problem = check_marks(files);
        if (problem == NULL) {
            problem = tb_lmdb_check_lock_head(locks);
            path = files->lock_path;
        }
    } else {
        tb_lmdb_meta metas[TB_LMDB_METAS];
        const tb_lmdb_meta *meta = read_metas(files, metas, &problem);
        if (meta != NULL) {
            problem = tb_lmdb_check_locks(locks, meta->transaction);
            path = files->lock_path;
        }
    }
    return problem == NULL ? TB_OK : tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", path, problem);
}

/* ---- space --------------------------------------------------------------------------------------------- */

/* What is beyond the map LMDB refuses by itself. */
static uint64_t bytes_wanted(const tb_lmdb_meta *meta, const tb_lmdb_change *change) {
    uint64_t needed = tb_lmdb_bytes_needed(meta, change);
    return needed < meta->map_bytes ? needed : meta->map_bytes;
}

/* It needs the most, for as many removes and puts in all, if all are puts. */
static const tb_lmdb_change usual = {.puts = TB_GATE_USUAL_CHANGES, .small_bytes = TB_GATE_USUAL_BYTES};

bool tb_lmdb_files_have_room(const tb_lmdb_files *files) {
    tb_lmdb_meta metas[TB_LMDB_METAS];
    const char *problem;
    const tb_lmdb_meta *meta = files->metas == NULL ? NULL : read_metas(files, metas, &problem);
    return meta != NULL && bytes_wanted(meta, &usual) <= files->reserved;
}

int32_t tb_lmdb_files_reserve(tb_lmdb_files *files, const tb_lmdb_change *change, tb_error *err) {
    /* What was cut within this transaction has its length again once it has grown. */
    int32_t rc = tb_lmdb_files_check_whole(files, err);
    if (rc != TB_OK) {
        return rc;
    }
    tb_lmdb_meta metas[TB_LMDB_METAS];
    const char *problem;
    const tb_lmdb_meta *meta = read_metas(files, metas, &problem);
    if (meta == NULL) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", files->data_path, problem);
    }
    uint64_t needed = bytes_wanted(meta, change);
    uint64_t before = files->reserved;
    if (needed > files->reserved) {
        rc = tb_lmdb_grow(files->data_fd, &files->reserved, needed, files->data_path, err);
    }
    uint64_t more = bytes_wanted(meta, &usual);
    if (rc == TB_OK && more > files->reserved) {
        /* So that those to come find theirs on entering. If there is no space for that, they ask for what they need. */
        tb_error full;
        tb_lmdb_grow(files->data_fd, &files->reserved, more, files->data_path, &full);
    }
    if (files->reserved > before) {
        mark_data_end(files, needed);
    }
    if (files->reserved > files->data_bytes) {
        files->data_bytes = files->reserved;
    }
    return rc;
}
