/* The two files of an LMDB environment, looked at without LMDB. No lock is needed. */
#include "host/lmdb_files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

void tb_lmdb_files_init(tb_lmdb_files *files) {
    files->data_fd = -1;
    atomic_store(&files->lock_fd, -1);
    files->page_bytes = 0;
    files->metas = NULL;
    files->data_bytes = 0;
    files->reserved = 0;
    files->data_path = NULL;
    files->lock_path = NULL;
}

void tb_lmdb_files_close(tb_lmdb_files *files) {
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
    struct stat status;
    if (fstat(files->data_fd, &status) != 0
        || pread(files->data_fd, &meta, sizeof meta, 0) != (ssize_t)sizeof meta) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be read", files->data_path);
    }
    const char *problem = tb_lmdb_check_meta(&meta);
    if (problem != NULL) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: %s", files->data_path, problem);
    }
    files->page_bytes = meta.trees[TB_LMDB_FREE].page_bytes;
    if ((uint64_t)status.st_size < (uint64_t)files->page_bytes * TB_LMDB_METAS) {
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: it was cut", files->data_path);
    }
    files->data_bytes = (uint64_t)status.st_size;
    size_t bytes = (size_t)files->page_bytes * TB_LMDB_METAS;
    void *mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, files->data_fd, 0);
    if (mapping == MAP_FAILED) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be mapped", files->data_path);
    }
    files->metas = mapping;
    return TB_OK;
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
    }
    if (rc != TB_OK) {
        tb_lmdb_files_close(files);
    }
    return rc;
}

/* ---- damage -------------------------------------------------------------------------------------------- */

/* Every process finds that the meta pages are none; what maps the files touches no page beyond their end. */
static void mend_length(const tb_lmdb_files *files) {
    const uint32_t none = 0;
    for (uint32_t i = 0; i < TB_LMDB_METAS; i++) {
        off_t at = (off_t)(i * files->page_bytes + offsetof(tb_lmdb_meta, magic));
        if (pwrite(files->data_fd, &none, sizeof none, at) != (ssize_t)sizeof none) {
            break; /* the file is full, or gone: it is found cut again */
        }
    }
    if (fallocate(files->data_fd, 0, 0, (off_t)files->data_bytes) != 0
        && ftruncate(files->data_fd, (off_t)files->data_bytes) != 0) {
        return;
    }
    struct stat locks;
    if (fstat(files->lock_fd, &locks) == 0 && locks.st_size < (off_t)TB_LMDB_LOCK_BYTES) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", files->lock_fd);
        if (truncate(path, (off_t)TB_LMDB_LOCK_BYTES) != 0) {
            return;
        }
    }
}

/* Bytes that the data file has at least: others may have made it longer. Its meta pages are there. */
static uint64_t bytes_in_use(const tb_lmdb_files *files) {
    uint64_t bytes = files->data_bytes;
    for (size_t i = 0; i < TB_LMDB_METAS; i++) {
        const tb_lmdb_meta *meta = (const tb_lmdb_meta *)(files->metas + i * files->page_bytes);
        uint64_t used = (meta->last_page + 1) * files->page_bytes;
        bytes = meta->magic == TB_LMDB_MAGIC && used > bytes ? used : bytes;
    }
    return bytes;
}

bool tb_lmdb_files_mend_locks(const tb_lmdb_files *files) {
    struct stat locks;
    if (files->lock_fd < 0 || fstat(files->lock_fd, &locks) != 0 || locks.st_size >= (off_t)TB_LMDB_LOCK_BYTES) {
        return false;
    }
    mend_length(files);
    return true;
}

int32_t tb_lmdb_files_check_sizes(const tb_lmdb_files *files, tb_error *err) {
    struct stat data, locks;
    if (files->metas == NULL) {
        return TB_OK;
    }
    if (fstat(files->data_fd, &data) != 0 || fstat(files->lock_fd, &locks) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be looked at", files->data_path);
    }
    uint64_t size = (uint64_t)data.st_size;
    bool data_cut = size < files->data_bytes || size < bytes_in_use(files);
    if (data_cut || locks.st_size < (off_t)TB_LMDB_LOCK_BYTES) {
        mend_length(files);
        return tb_fail(err, TB_EBUS_FORMAT, -1, 0, "%s is damaged: it was cut to %" PRIu64 " bytes",
                       data_cut ? files->data_path : files->lock_path,
                       (uint64_t)(data_cut ? data.st_size : locks.st_size));
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
