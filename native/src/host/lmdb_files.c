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

#include "base/error.h"
#include "host/map_guard.h"

void tb_lmdb_files_init(tb_lmdb_files *files) {
    files->data_fd = -1;
    files->lock_fd = -1;
    files->page_bytes = 0;
    files->metas = NULL;
    files->data_bytes = 0;
    files->reserved = 0;
    files->guard = -1;
    files->guards_lmdb = false;
    files->data_path = NULL;
    files->lock_path = NULL;
}

void tb_lmdb_files_close(tb_lmdb_files *files) {
    if (files->guards_lmdb) {
        tb_guard_release(&files->data);
        tb_guard_release(&files->lock);
    }
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

int32_t tb_lmdb_files_open(tb_lmdb_files *files, const char *data_path, const char *lock_path, tb_error *err) {
    tb_lmdb_files_init(files);
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

/* Bytes that the data file has at least, from now on: others may make it longer. */
static uint64_t bytes_in_use(const tb_lmdb_files *files) {
    uint64_t bytes = files->data_bytes;
    for (size_t i = 0; i < TB_LMDB_METAS; i++) {
        const tb_lmdb_meta *meta = (const tb_lmdb_meta *)(files->metas + i * files->page_bytes);
        uint64_t used = (meta->last_page + 1) * files->page_bytes;
        bytes = meta->magic == TB_LMDB_MAGIC && used > bytes ? used : bytes;
    }
    atomic_thread_fence(memory_order_acquire);
    return bytes;
}

static int32_t damaged(const tb_lmdb_files *files, const char *path, off_t bytes, tb_error *err) {
    mark(files);
    return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: it was cut, and had %" PRIu64 " bytes when this was found",
                   path, (uint64_t)bytes);
}

int32_t tb_lmdb_files_check_whole(const tb_lmdb_files *files, bool lock, tb_error *err) {
    struct stat data, locks = files->lock;
    if (files->metas == NULL) {
        return TB_OK;
    }
    /* Before its length: a reader is not inside, and a writer may make it longer and commit between two looks. */
    uint64_t in_use = bytes_in_use(files);
    if (fstat(files->data_fd, &data) != 0 || (lock && fstat(files->lock_fd, &locks) != 0)) {
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
    return TB_OK;
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
        if (meta->magic != TB_LMDB_MAGIC || (meta->page.flags & TB_LMDB_META) == 0) {
            return "a meta page is none";
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
    tb_lmdb_meta metas[TB_LMDB_METAS];
    const char *problem;
    const tb_lmdb_meta *meta = read_metas(files, metas, &problem);
    if (meta == NULL) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", files->data_path, problem);
    }
    uint64_t needed = bytes_wanted(meta, change);
    int32_t rc = TB_OK;
    if (needed > files->reserved) {
        rc = tb_lmdb_grow(files->data_fd, &files->reserved, needed, files->data_path, err);
    }
    uint64_t more = bytes_wanted(meta, &usual);
    if (rc == TB_OK && more > files->reserved) {
        /* So that those to come find theirs on entering. If there is no space for that, they ask for what they need. */
        tb_error full;
        tb_lmdb_grow(files->data_fd, &files->reserved, more, files->data_path, &full);
    }
    if (files->reserved > files->data_bytes) {
        files->data_bytes = files->reserved;
    }
    return rc;
}
