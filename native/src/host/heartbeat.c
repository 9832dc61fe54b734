/*
 * A heartbeat is one word in shared memory: the monotonic clock when it last beat. A thread of its own beats, so that a
 * busy event loop is not taken for a stopped process. Readers read the file instead of mapping it: nobody can take the
 * memory away under them. The word is atomic; no lock is needed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handle.h"
#include "host/bus_thread.h"
#include "host/lock_file.h"
#include "base/error.h"

#define PAGE_BYTES 4096

typedef struct tb_heartbeat {
    _Atomic uint64_t *beat;
    char *name;
    uint64_t interval_ns;
    tb_bus_thread thread;
} tb_heartbeat;

typedef struct tb_pulse {
    int fd;
} tb_pulse;

static void run_heartbeat(void *argument) {
    tb_heartbeat *heart = argument;
    while (!tb_bus_thread_stopped(&heart->thread)) {
        uint64_t now = tb_now();
        atomic_store_explicit(heart->beat, now, memory_order_relaxed);
        struct timespec until = tb_timespec(now + heart->interval_ns);
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
}

static void free_heartbeat(tb_heartbeat *heart) {
    munmap(heart->beat, PAGE_BYTES);
    shm_unlink(heart->name);
    free(heart->name);
    free(heart);
}

static void destroy_heartbeat(void *object) {
    tb_heartbeat *heart = object;
    tb_bus_thread_end(&heart->thread);
    free_heartbeat(heart);
}

/* A page of shared memory under a new name, its space taken. */
static int32_t create_page(const char *name, _Atomic uint64_t **page, tb_error *err) {
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        int code = errno == EEXIST ? TB_EEXISTS : errno == ENOSPC ? TB_ENO_SPACE : TB_ESYSTEM;
        return tb_fail(err, code, -1, errno, "shared memory %s cannot be made", name);
    }
    int32_t rc = TB_OK;
    int failed = posix_fallocate(fd, 0, PAGE_BYTES);
    if (failed != 0) {
        rc = tb_fail(err, failed == ENOSPC ? TB_ENO_SPACE : TB_ESYSTEM, -1, failed,
                     "no room for shared memory %s", name);
        goto unlink_name;
    }
    void *mapping = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED) {
        rc = tb_fail(err, TB_ESYSTEM, -1, errno, "shared memory %s cannot be mapped", name);
        goto unlink_name;
    }
    *page = mapping;
    close(fd);
    return TB_OK;

unlink_name:
    shm_unlink(name);
    close(fd);
    return rc;
}

int32_t tb_heartbeat_start(const char *name, uint32_t interval_ms, uint64_t *handle, tb_error *err) {
    if (interval_ms == 0) {
        return tb_fail(err, TB_ESYSTEM, -1, EINVAL, "a heart needs a pause between beats");
    }
    tb_heartbeat *heart = calloc(1, sizeof *heart);
    char *copy = heart == NULL ? NULL : strdup(name);
    if (copy == NULL) {
        free(heart);
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a heartbeat");
    }
    heart->name = copy;
    heart->interval_ns = (uint64_t)interval_ms * 1000000u;
    int32_t rc = create_page(name, &heart->beat, err);
    if (rc != TB_OK) {
        free(copy);
        free(heart);
        return rc;
    }
    /* The first beat is there before anybody can look. */
    atomic_store_explicit(heart->beat, tb_now(), memory_order_relaxed);
    int failed = tb_bus_thread_start(&heart->thread, run_heartbeat, heart);
    if (failed != 0) {
        rc = tb_fail(err, TB_ESYSTEM, -1, failed, "the heartbeat's thread cannot be started");
        free_heartbeat(heart);
        return rc;
    }
    rc = tb_handle_add(TB_HANDLE_HEARTBEAT, heart, destroy_heartbeat, handle, err);
    if (rc != TB_OK) {
        destroy_heartbeat(heart);
    }
    return rc;
}

int32_t tb_heartbeat_stop(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_HEARTBEAT, handle, err);
}

int32_t tb_heartbeat_unlink(const char *name, uint32_t *removed, tb_error *err) {
    *removed = shm_unlink(name) == 0;
    if (!*removed && errno != ENOENT) {
        return tb_fail(err, errno == EACCES || errno == EPERM ? TB_EFOREIGN : TB_ESYSTEM, -1, errno,
                       "shared memory %s cannot be removed", name);
    }
    return TB_OK;
}

static void destroy_pulse(void *object) {
    tb_pulse *pulse = object;
    close(pulse->fd);
    free(pulse);
}

int32_t tb_pulse_open(const char *name, uint64_t *handle, tb_error *err) {
    tb_pulse *pulse = calloc(1, sizeof *pulse);
    if (pulse == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for a pulse");
    }
    int32_t rc;
    pulse->fd = shm_open(name, O_RDONLY | O_CLOEXEC, 0);
    if (pulse->fd < 0) {
        rc = tb_fail(err, errno == EACCES ? TB_EFOREIGN : TB_ESYSTEM, -1, errno,
                     "heartbeat %s cannot be opened", name);
        free(pulse);
        return rc;
    }
    rc = tb_bus_check_owner(pulse->fd, "heartbeat", name, err);
    if (rc == TB_OK) {
        rc = tb_handle_add(TB_HANDLE_PULSE, pulse, destroy_pulse, handle, err);
    }
    if (rc != TB_OK) {
        destroy_pulse(pulse);
    }
    return rc;
}

int32_t tb_pulse_age(uint64_t handle, uint64_t *age_ns, tb_error *err) {
    tb_pulse *pulse = tb_handle_get(TB_HANDLE_PULSE, handle, err);
    if (pulse == NULL) {
        return TB_ECLOSED;
    }
    uint64_t beat = 0;
    ssize_t got = pread(pulse->fd, &beat, sizeof beat, 0);
    int failed = errno;
    tb_handle_put(handle);
    if (got != (ssize_t)sizeof beat) {
        return tb_fail(err, TB_ESYSTEM, -1, got < 0 ? failed : EIO, "a heartbeat cannot be read");
    }
    uint64_t now = tb_now();
    *age_ns = now > beat ? now - beat : 0;
    return TB_OK;
}

int32_t tb_pulse_close(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_PULSE, handle, err);
}
