/* Mappings of other processes' shared memory, one for each file. Their list has a lock of its own. */
#include "carriers/shm/shm_map.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "carriers/shm/book.h"
#include "base/clock.h"
#include "base/error.h"
#include "identity/identity.h"

enum { TOUCH_BYTES = 64 << 20, TOUCH_NS = 500000000 };

struct tb_shm_map {
    tb_shm_map *next;
    uint64_t device, inode, bytes;
    uint8_t *at;
    uint32_t uses;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_shm_map *maps;

const uint8_t *tb_shm_map_at(const tb_shm_map *map) {
    return map->at;
}

/* An inode stays this file's for as long as it is mapped here. The lock is held. */
static tb_shm_map *find(const tb_shm_file *file) {
    for (tb_shm_map *map = maps; map != NULL; map = map->next) {
        if (map->device == file->device && map->inode == file->inode
            && map->bytes == file->bytes) {
            return map;
        }
    }
    return NULL;
}

/* The descriptor is that of a process which we do not trust to name what it says: it could be anything. */
static int32_t open_file(const tb_wire_identity *identity, const tb_shm_file *file, int32_t rank, int *fd,
                         tb_error *err) {
    int os_errno = tb_file_of(identity->pid, file->descriptor, fd);
    if (os_errno == 0) {
        return TB_OK;
    }
    if (os_errno == EACCES || os_errno == EPERM) {
        return tb_fail(err, TB_EUNSUPPORTED, rank, os_errno,
                       "shared memory of rank %d cannot be opened by way of /proc/%d/fd", rank, identity->pid);
    }
    bool gone = os_errno == ENOENT && !tb_identity_lives(identity);
    return tb_fail(err, gone ? TB_EPEER_LOST : TB_EREGION, rank, os_errno, "shared memory of rank %d", rank);
}

static int32_t check_file(int fd, const tb_shm_file *file, int32_t rank, tb_error *err) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return tb_fail(err, TB_ESYSTEM, rank, errno, "shared memory of rank %d cannot be examined", rank);
    }
    if (!S_ISREG(status.st_mode) || status.st_dev != file->device || status.st_ino != file->inode
        || status.st_uid != geteuid()) {
        return tb_fail(err, TB_EREGION, rank, 0, "shared memory of rank %d is not the file that was exported",
                       rank);
    }
    uint64_t end;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || (uint64_t)status.st_size != file->bytes
        || __builtin_add_overflow(file->region_at, file->region_bytes, &end) || end > file->bytes) {
        return tb_fail(err, TB_ESEAL, rank, 0,
                       "shared memory of rank %d is not sealed against shrinking, or too small", rank);
    }
    return TB_OK;
}

static int32_t map_file(int fd, const tb_shm_file *file, int32_t rank, tb_shm_map **made,
                        tb_error *err) {
    tb_shm_map *map = calloc(1, sizeof *map);
    if (map == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, rank, 0, "no memory for a mapping");
    }
    void *at = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        int os_errno = errno;
        free(map);
        return tb_fail(err, os_errno == ENOMEM ? TB_ENO_MEMORY : TB_ESYSTEM, rank, os_errno,
                       "%llu bytes of rank %d cannot be mapped", (unsigned long long)file->bytes, rank);
    }
    *map =
        (tb_shm_map){.device = file->device, .inode = file->inode, .bytes = file->bytes, .at = at};
    *made = map;
    return TB_OK;
}

/*
 * The pages are there: finding them now keeps faults out of the first round. This thread serves connections
 * too, so it takes its time for the first of them only. A kernel that does not know how to leaves it to the
 * faults.
 */
static void touch(const tb_shm_map *map, const tb_shm_file *file) {
#ifdef MADV_POPULATE_READ
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = (uintptr_t)(map->at + file->region_at) & ~(page - 1);
    uintptr_t end = (uintptr_t)(map->at + file->region_at + file->region_bytes);
    uint64_t until = tb_now() + TOUCH_NS;
    while (at < end && tb_now() < until) {
        uintptr_t bytes = end - at < TOUCH_BYTES ? end - at : TOUCH_BYTES;
        if (madvise((void *)at, bytes, MADV_POPULATE_READ) != 0) {
            return;
        }
        at += bytes;
    }
#else
    (void)map;
    (void)file;
#endif
}

int32_t tb_shm_map_open(const tb_wire_identity *identity, const tb_shm_file *file, int32_t rank,
                        tb_shm_map **map, tb_error *err) {
    int fd;
    int32_t code = open_file(identity, file, rank, &fd, err);
    if (code != TB_OK) {
        return code;
    }
    code = check_file(fd, file, rank, err);
    if (code == TB_OK) {
        pthread_mutex_lock(&lock);
        *map = find(file);
        if (*map == NULL && (code = map_file(fd, file, rank, map, err)) == TB_OK) {
            (*map)->next = maps;
            maps = *map;
        }
        if (code == TB_OK) {
            (*map)->uses++;
        }
        pthread_mutex_unlock(&lock);
    }
    close(fd);
    if (code == TB_OK) {
        touch(*map, file);
    }
    return code;
}

void tb_shm_map_close(tb_shm_map *map) {
    if (map == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    bool last = --map->uses == 0;
    for (tb_shm_map **at = &maps; last && *at != NULL; at = &(*at)->next) {
        if (*at == map) {
            *at = map->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    if (last) {
        munmap(map->at, map->bytes);
        free(map);
    }
}
