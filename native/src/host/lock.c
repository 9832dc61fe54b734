/*
 * Locks that the kernel frees at a process's death, and threads that wait for that. Open-file-description
 * locks belong to the open file, not to the process: closing another descriptor of the file does not lose
 * them, and two holders in one process exclude each other. No lock of this process is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/handle.h"
#include "host/bus_thread.h"
#include "host/lock_file.h"
#include "host/port.h"
#include "base/error.h"

typedef struct tb_lock {
    int fd;
} tb_lock;

static void destroy_lock(void *object) {
    tb_lock *lock = object;
    close(lock->fd);
    free(lock);
}

int32_t tb_lock_open(const char *path, uint64_t *handle, tb_error *err) {
    tb_lock *lock = calloc(1, sizeof *lock);
    if (lock == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a lock");
    }
    int32_t rc = tb_bus_open_lock_file(path, &lock->fd, err);
    if (rc != TB_OK) {
        free(lock);
        return rc;
    }
    rc = tb_handle_add(TB_HANDLE_LOCK, lock, destroy_lock, handle, err);
    if (rc != TB_OK) {
        destroy_lock(lock);
    }
    return rc;
}

/* 0, EAGAIN if another holds it, or -1 with *rc set. */
static int operate(uint64_t handle, int command, short type, uint64_t offset, int32_t *rc, tb_error *err) {
    tb_lock *lock = tb_handle_get(TB_HANDLE_LOCK, handle, err);
    if (lock == NULL) {
        *rc = TB_ECLOSED;
        return -1;
    }
    int failed = tb_bus_byte_lock(lock->fd, command, type, offset);
    if (failed != 0 && failed != EAGAIN) {
        *rc = tb_bus_lock_refused(lock->fd, failed, err);
        failed = -1;
    }
    tb_handle_put(handle);
    return failed;
}

int32_t tb_lock_try(uint64_t handle, uint64_t offset, uint32_t *taken, tb_error *err) {
    int32_t rc = TB_OK;
    *taken = operate(handle, F_OFD_SETLK, F_WRLCK, offset, &rc, err) == 0;
    return rc;
}

int32_t tb_lock_share(uint64_t handle, uint64_t offset, uint32_t *taken, tb_error *err) {
    int32_t rc = TB_OK;
    *taken = operate(handle, F_OFD_SETLK, F_RDLCK, offset, &rc, err) == 0;
    return rc;
}

int32_t tb_lock_release(uint64_t handle, uint64_t offset, tb_error *err) {
    int32_t rc = TB_OK;
    operate(handle, F_OFD_SETLK, F_UNLCK, offset, &rc, err);
    return rc;
}

int32_t tb_lock_held(uint64_t handle, uint64_t offset, uint32_t *held, tb_error *err) {
    int32_t rc = TB_OK;
    *held = operate(handle, F_OFD_GETLK, F_WRLCK, offset, &rc, err) == EAGAIN;
    return rc;
}

int32_t tb_lock_close(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_LOCK, handle, err);
}

typedef struct tb_watch {
    tb_source source;
    uint64_t offset;
    tb_bus_thread thread;
    int fd;
} tb_watch;

static void run_watch(void *argument) {
    tb_watch *watch = argument;
    int failed;
    do {
        failed = tb_bus_byte_lock(watch->fd, F_OFD_SETLKW, F_RDLCK, watch->offset);
        if (tb_bus_thread_stopped(&watch->thread)) {
            return;
        }
    } while (failed == EINTR);
    if (failed == 0) {
        tb_bus_byte_lock(watch->fd, F_OFD_SETLK, F_UNLCK, watch->offset);
    }
    /* If the kernel refuses to wait (it is out of locks), the caller looks for itself. */
    tb_source_raise(&watch->source);
}

static void destroy_watch(void *object) {
    tb_watch *watch = object;
    tb_bus_thread_end(&watch->thread);
    close(watch->fd);
    tb_source_detach(&watch->source);
    free(watch);
}

int32_t tb_watch_start(uint64_t port, const char *path, uint64_t offset, uint64_t token, uint64_t *handle,
                       tb_error *err) {
    tb_watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a watch");
    }
    watch->offset = offset;
    int32_t rc = tb_bus_open_lock_file(path, &watch->fd, err);
    if (rc != TB_OK) {
        goto free_watch;
    }
    rc = tb_source_attach(&watch->source, port, token, err);
    if (rc != TB_OK) {
        goto close_file;
    }
    int failed = tb_bus_thread_start(&watch->thread, run_watch, watch);
    if (failed != 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, failed, "the thread of a watch cannot be started");
        goto detach;
    }
    rc = tb_handle_add(TB_HANDLE_WATCH, watch, destroy_watch, handle, err);
    if (rc != TB_OK) {
        destroy_watch(watch);
    }
    return rc;

detach:
    tb_source_detach(&watch->source);
close_file:
    close(watch->fd);
free_watch:
    free(watch);
    return rc;
}

int32_t tb_watch_stop(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_WATCH, handle, err);
}
