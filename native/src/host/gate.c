/*
 * The door before LMDB's write lock. That lock has no timed form, and a process that is stopped while it
 * holds it would stop every other writer with it. Whoever enters the gate first finds it free; who does not
 * get in waits elsewhere. The gate also looks at LMDB's own lock word, so that a writer which did not pass
 * the gate is waited for outside as well. Each gate has its own lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handle.h"
#include "host/bus_thread.h"
#include "host/lock_file.h"
#include "host/port.h"
#include "base/error.h"
#include "host/lmdb.h"
#include "host/lmdb_files.h"
#include "host/map_guard.h"
#include "host/own_maps.h"

#define GATE_OFFSET 0
#define MAPPED_BYTES 4096
#define LOOK_AGAIN_NS 1000000  /* at the word of one who did not pass the gate: nobody tells of a change */

_Static_assert(sizeof(tb_lmdb_locks) <= MAPPED_BYTES, "the lock words lie in the first page");

typedef struct tb_gate {
    tb_source source;
    int fd;      /* used by whoever enters */
    char *path;
    uint32_t opener; /* the thread whose gate it is */
    int wait_fd; /* used by the thread, whose lock must be another one */
    bool started;
    bool wanted; /* under mutex: somebody waits for the gate to be seen free */
    tb_bus_thread thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    const tb_lmdb_locks *_Atomic locks;
    bool writable;   /* locks are */
    int guard;       /* the number of the guard of `locks` */
    char *data_path; /* once there are locks */
    tb_lmdb_files files; /* LMDB's files, once it has them open; used by the event loop alone */
} tb_gate;

/*
 * The thread that holds a lock of LMDB's, or 0; *dead as tb_lmdb_writer. Noise names no thread that ends: who enters
 * finds the damage. From any thread.
 */
static uint32_t holder_of(tb_gate *gate, bool *dead) {
    const tb_lmdb_locks *locks = atomic_load_explicit(&gate->locks, memory_order_acquire);
    *dead = false;
    if (locks == NULL || tb_lmdb_check_lock_head(locks) != NULL) {
        return 0;
    }
    uint32_t writer = tb_lmdb_writer(locks, dead);
    return writer != 0 ? writer : tb_lmdb_adder(locks);
}

/* One who did not pass the gate is waited for. */
static bool is_held_past(tb_gate *gate) {
    bool dead;
    return holder_of(gate, &dead) != 0 && !dead;
}

static bool wait_until_wanted(tb_gate *gate) {
    pthread_mutex_lock(&gate->mutex);
    while (!gate->wanted && !tb_bus_thread_stopped(&gate->thread)) {
        pthread_cond_wait(&gate->changed, &gate->mutex);
    }
    bool wanted = gate->wanted;
    gate->wanted = false;
    pthread_mutex_unlock(&gate->mutex);
    return wanted;
}

static void run_gate(void *argument) {
    tb_gate *gate = argument;
    while (wait_until_wanted(gate)) {
        int failed;
        do {
            failed = tb_bus_byte_lock(gate->wait_fd, F_OFD_SETLKW, F_RDLCK, GATE_OFFSET);
        } while (failed == EINTR && !tb_bus_thread_stopped(&gate->thread));
        if (failed == 0) {
            tb_bus_byte_lock(gate->wait_fd, F_OFD_SETLK, F_UNLCK, GATE_OFFSET);
        }
        const struct timespec pause = {.tv_nsec = LOOK_AGAIN_NS};
        while (is_held_past(gate) && !tb_bus_thread_stopped(&gate->thread)) {
            nanosleep(&pause, NULL);
        }
        if (tb_bus_thread_stopped(&gate->thread)) {
            return;
        }
        tb_source_raise(&gate->source);
    }
}

static void destroy_gate(void *object) {
    tb_gate *gate = object;
    if (gate->started) {
        pthread_mutex_lock(&gate->mutex);
        atomic_store_explicit(&gate->thread.stop, true, memory_order_release);
        pthread_cond_signal(&gate->changed);
        pthread_mutex_unlock(&gate->mutex);
        tb_bus_thread_end(&gate->thread);
    }
    const tb_lmdb_locks *locks = atomic_load(&gate->locks);
    tb_guard_remove(gate->guard);
    if (locks != NULL) {
        munmap((void *)locks, MAPPED_BYTES);
    }
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->mutex);
    tb_lmdb_files_close(&gate->files);
    free(gate->data_path);
    close(gate->wait_fd);
    close(gate->fd);
    free(gate->path);
    tb_source_detach(&gate->source);
    free(gate);
}

int32_t tb_gate_open(uint64_t port, const char *path, uint64_t token, uint64_t *handle, tb_error *err) {
    tb_gate *gate = calloc(1, sizeof *gate);
    if (gate == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a gate");
    }
    tb_lmdb_files_init(&gate->files);
    gate->guard = -1;
    gate->opener = (uint32_t)syscall(SYS_gettid);
    gate->path = strdup(path);
    int32_t rc = gate->path != NULL ? tb_bus_open_lock_file(path, &gate->fd, err)
                                    : tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for the name of a file");
    if (rc != TB_OK) {
        goto free_gate;
    }
    rc = tb_bus_open_lock_file(path, &gate->wait_fd, err);
    if (rc != TB_OK) {
        goto close_file;
    }
    rc = tb_source_attach(&gate->source, port, token, err);
    if (rc != TB_OK) {
        goto close_wait_file;
    }
    pthread_mutex_init(&gate->mutex, NULL);
    pthread_cond_init(&gate->changed, NULL);
    rc = tb_handle_add(TB_HANDLE_GATE, gate, destroy_gate, handle, err);
    if (rc != TB_OK) {
        destroy_gate(gate);
    }
    return rc;

close_wait_file:
    close(gate->wait_fd);
close_file:
    close(gate->fd);
free_gate:
    free(gate->path);
    free(gate);
    return rc;
}

/*
 * A second mapping of a file that this process has mapped to write, as LMDB does, or NULL. The file must not be opened
 * a second time then: closing it again would free the locks on it by which LMDB knows that this process lives.
 */
static void *find_mapping(const struct stat *file) {
    FILE *maps = tb_own_maps_open();
    if (maps == NULL) {
        return NULL;
    }
    void *found = NULL;
    tb_own_map map;
    while (found == NULL && tb_own_maps_next(maps, &map)) {
        if (!map.writable || map.inode != file->st_ino || map.device != file->st_dev) {
            continue;
        }
        /* An old size of 0 doubles a shared mapping: the copy stays when LMDB's own goes. */
        void *copy = mremap((void *)map.begin, 0, MAPPED_BYTES, MREMAP_MAYMOVE);
        found = copy == MAP_FAILED ? NULL : copy;
    }
    fclose(maps);
    return found;
}

static void *map_file(const char *path) {
    int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        return NULL;
    }
    /* Not to write yet: by that the maps of one who has LMDB open are known. */
    void *mapping = mmap(NULL, MAPPED_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    int failed = errno;
    close(fd);
    errno = failed;
    return mapping == MAP_FAILED ? NULL : mapping;
}

int32_t tb_gate_attach(uint64_t handle, const char *data_path, const char *lock_path, uint32_t *attached,
                       tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    int32_t rc = TB_OK;
    struct stat file;
    const tb_lmdb_locks *locks = atomic_load(&gate->locks);
    if (locks == NULL && stat(lock_path, &file) == 0 && file.st_size >= (off_t)sizeof(tb_lmdb_locks)) {
        void *mapping = find_mapping(&file);
        mapping = mapping == NULL ? map_file(lock_path) : mapping;
        if (mapping == NULL) {
            rc = tb_fail(err, TB_ESYSTEM, -1, errno, "lock file %s cannot be mapped", lock_path);
        } else if ((gate->data_path = strdup(data_path)) == NULL) {
            rc = tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for the name of a file");
            munmap(mapping, MAPPED_BYTES);
            mapping = NULL;
        }
        rc = rc == TB_OK ? tb_guard_add(mapping, MAPPED_BYTES, &file, TB_GUARD_LOCKS, &gate->guard, err) : rc;
        locks = mapping;
        atomic_store_explicit(&gate->locks, locks, memory_order_release);
    }
    *attached = locks != NULL;
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_prepare(uint64_t handle, const char *data_path, const char *lock_path, uint64_t map_bytes,
                        uint32_t *users, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    struct stat file;
    void *mapping = stat(lock_path, &file) == 0 ? find_mapping(&file) : NULL;
    int32_t rc = TB_OK;
    enum tb_gate_users found = TB_GATE_USERS_KNOWN;
    if (mapping == NULL) {
        rc = tb_lmdb_prepare(data_path, lock_path, map_bytes, gate->fd, &found, err);
    } else {
        /* Another thread of this process has LMDB open. */
        munmap(mapping, MAPPED_BYTES);
        bool passes = tb_bus_byte_lock(gate->fd, F_OFD_GETLK, F_WRLCK, TB_GATE_USERS) != 0;
        rc = passes ? TB_OK
                    : tb_fail(err, TB_EBUS_FORMAT, -1, 0,
                              "%s is open in this process, and the file `locks` beside it was removed", lock_path);
    }
    *users = found;
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_guard(uint64_t handle, const char *data_path, const char *lock_path, uint64_t *lost, uint64_t *metas,
                      uint32_t *page_bytes, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    tb_lmdb_files_close(&gate->files);
    int32_t rc = tb_lmdb_files_open(&gate->files, data_path, lock_path, gate->fd, gate->path, err);
    *lost = (uint64_t)(uintptr_t)tb_guard_hits();
    tb_lmdb_locks *locks = (tb_lmdb_locks *)atomic_load(&gate->locks);
    if (rc == TB_OK && locks != NULL && mprotect(locks, MAPPED_BYTES, PROT_READ | PROT_WRITE) != 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, errno, "%s cannot be written", lock_path);
    } else if (rc == TB_OK && locks != NULL) {
        gate->writable = true;
        tb_lmdb_make_plain(locks);
    }
    *metas = (uint64_t)(uintptr_t)gate->files.metas;
    *page_bytes = gate->files.page_bytes;
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_check(uint64_t handle, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    int32_t rc = tb_lmdb_files_check_whole(&gate->files, err);
    rc = rc == TB_OK ? tb_lmdb_files_check(&gate->files, atomic_load(&gate->locks), false, err) : rc;
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_reserve(uint64_t handle, uint32_t puts, uint32_t removes, uint32_t small_bytes, uint32_t big_pages,
                        tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    const tb_lmdb_change change = {puts, removes, small_bytes, big_pages};
    int32_t rc = tb_lmdb_files_reserve(&gate->files, &change, err);
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_verify(uint64_t handle, uint32_t *owned, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    bool dead;
    *owned = holder_of(gate, &dead) == gate->opener;
    tb_handle_put(handle);
    return TB_OK;
}

/* The lock words, to write. Before LMDB has its files open they are so for a moment only: see map_file. */
static tb_lmdb_locks *begin_writing(tb_gate *gate, tb_error *err) {
    tb_lmdb_locks *locks = (tb_lmdb_locks *)atomic_load(&gate->locks);
    if (!gate->writable && mprotect(locks, MAPPED_BYTES, PROT_READ | PROT_WRITE) != 0) {
        tb_fail(err, TB_ESYSTEM, -1, errno, "LMDB's lock file cannot be written");
        return NULL;
    }
    return locks;
}

static void end_writing(tb_gate *gate, tb_lmdb_locks *locks) {
    if (!gate->writable) {
        mprotect(locks, MAPPED_BYTES, PROT_READ);
    }
}

/* Inside, and before LMDB's lock is taken: says who is, for those who come after a death. */
static int32_t name_inside(tb_gate *gate, uint32_t thread, tb_error *err) {
    tb_lmdb_locks *locks = (tb_lmdb_locks *)atomic_load(&gate->locks);
    if (locks == NULL || tb_lmdb_check_lock_head(locks) != NULL) {
        return TB_OK; /* LMDB will make its lock file anew, or refuse it */
    }
    locks = begin_writing(gate, err);
    if (locks == NULL) {
        return TB_ESYSTEM;
    }
    atomic_store_explicit(&locks->inside, thread, memory_order_release);
    end_writing(gate, locks);
    return TB_OK;
}

static int unlock(tb_gate *gate) {
    return tb_bus_byte_lock(gate->fd, F_OFD_SETLK, F_UNLCK, GATE_OFFSET);
}

/* LMDB's lock is held by one who has died. */
static int32_t free_writer(tb_gate *gate, tb_error *err) {
    tb_lmdb_locks *locks = begin_writing(gate, err);
    if (locks == NULL) {
        return TB_ESYSTEM;
    }
    int32_t rc = tb_lmdb_free_writer(locks, gate->data_path, err);
    end_writing(gate, locks);
    return rc;
}

/* TB_OK, and *inside unless another is: then *holder, if it is known. Once inside, LMDB's lock can be taken. */
static int32_t try_to_enter(tb_gate *gate, bool *inside, int32_t *holder, tb_error *err) {
    int failed = tb_bus_byte_lock(gate->fd, F_OFD_SETLK, F_WRLCK, GATE_OFFSET);
    bool dead;
    *holder = (int32_t)holder_of(gate, &dead);
    *inside = false;
    if (failed != 0) {
        return failed == EAGAIN ? TB_OK : tb_bus_lock_refused(gate->fd, failed, err);
    }
    int32_t rc = TB_OK;
    if (dead || *holder == 0) {
        tb_lmdb_locks *locks = (tb_lmdb_locks *)atomic_load(&gate->locks);
        rc = tb_lmdb_files_check_whole(&gate->files, err);
        rc = rc == TB_OK && dead ? free_writer(gate, err) : rc;
        rc = rc == TB_OK ? tb_lmdb_files_check(&gate->files, locks, true, err) : rc;
        rc = rc == TB_OK ? name_inside(gate, gate->opener, err) : rc;
        *inside = rc == TB_OK;
    }
    if (!*inside) {
        unlock(gate);
    }
    return rc;
}

int32_t tb_gate_enter(uint64_t handle, uint64_t spin_ns, uint32_t *entered, int32_t *holder, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    bool inside;
    int32_t rc = try_to_enter(gate, &inside, holder, err);
    uint64_t end = rc == TB_OK && !inside ? tb_now() + spin_ns : 0;
    while (rc == TB_OK && !inside && tb_now() < end) {
        /* The one inside may wait for this very core. */
        sched_yield();
        rc = try_to_enter(gate, &inside, holder, err);
    }
    *entered = !inside ? 0 : tb_lmdb_files_have_room(&gate->files) ? 2 : 1;
    tb_handle_put(handle);
    return rc;
}

int32_t tb_gate_leave(uint64_t handle, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    int32_t rc = tb_lmdb_files_check_whole(&gate->files, err);
    tb_error unnamed;
    name_inside(gate, 0, &unnamed);
    int failed = unlock(gate);
    tb_handle_put(handle);
    return rc != TB_OK || failed == 0 ? rc : tb_fail(err, TB_ESYSTEM, -1, failed, "a file lock cannot be freed");
}

int32_t tb_gate_await(uint64_t handle, tb_error *err) {
    tb_gate *gate = tb_handle_get(TB_HANDLE_GATE, handle, err);
    if (gate == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&gate->mutex);
    int failed = gate->started ? 0 : tb_bus_thread_start(&gate->thread, run_gate, gate);
    gate->started = failed == 0;
    gate->wanted = true;
    pthread_cond_signal(&gate->changed);
    pthread_mutex_unlock(&gate->mutex);
    tb_handle_put(handle);
    return failed == 0 ? TB_OK : tb_fail(err, TB_ESYSTEM, -1, failed, "the gate's thread cannot be started");
}

int32_t tb_gate_close(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_GATE, handle, err);
}
