/* POSIX named semaphores that belong to this user alone. No lock is needed. */
#include "host/semaphore.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/handle.h"
#include "host/lock_file.h"
#include "base/error.h"

#define FILE_PREFIX "/dev/shm/sem."
#define LONGEST_WAIT_NS (1ull << 62)
/* How long it waits by a clock that can be set before it looks at the other one again. */
#define SLICE_NS (100ull * 1000 * 1000)

static void destroy_semaphore(void *object) {
    sem_close(object);
}

/* A name begins with a slash, has no other, and fits the file that stands for it. */
static int32_t check_name(const char *name, tb_error *err) {
    if (name == NULL || name[0] != '/' || name[1] == '\0' || strchr(name + 1, '/') != NULL) {
        return tb_fail(err, TB_ESYSTEM, -1, EINVAL, "the name of a semaphore is malformed");
    }
    if (strlen(name + 1) > NAME_MAX - strlen("sem.")) {
        return tb_fail(err, TB_ESYSTEM, -1, ENAMETOOLONG, "the name of a semaphore is too long");
    }
    return TB_OK;
}

int32_t tb_semaphore_create(const char *name, uint64_t *handle, tb_error *err) {
    int32_t rc = check_name(name, err);
    if (rc != TB_OK) {
        return rc;
    }
    sem_t *semaphore = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    if (semaphore == SEM_FAILED) {
        int code = errno == EEXIST ? TB_EEXISTS : errno == ENOSPC ? TB_ENO_SPACE : TB_ESYSTEM;
        return tb_fail(err, code, -1, errno, "semaphore %s cannot be made", name);
    }
    rc = tb_handle_add(TB_HANDLE_SEMAPHORE, semaphore, destroy_semaphore, handle, err);
    if (rc != TB_OK) {
        sem_close(semaphore);
        sem_unlink(name);
    }
    return rc;
}

/*
 * The check comes after sem_open: the name is in a sticky folder, so that a file of ours which stands there
 * now cannot have been another's when it was opened, unless we made it in between under a name of 128 random
 * bits.
 */
static int32_t check_file(const char *name, tb_error *err) {
    char path[sizeof FILE_PREFIX + NAME_MAX];
    snprintf(path, sizeof path, "%s%s", FILE_PREFIX, name + 1);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return tb_fail(err, errno == EACCES ? TB_EFOREIGN : TB_ESYSTEM, -1, errno,
                       "semaphore %s cannot be examined", name);
    }
    int32_t rc = tb_bus_check_owner(fd, "semaphore", name, err);
    close(fd);
    return rc;
}

int32_t tb_semaphore_open(const char *name, uint64_t *handle, tb_error *err) {
    int32_t rc = check_name(name, err);
    if (rc != TB_OK) {
        return rc;
    }
    sem_t *semaphore = sem_open(name, 0);
    if (semaphore == SEM_FAILED) {
        return tb_fail(err, errno == EACCES ? TB_EFOREIGN : TB_ESYSTEM, -1, errno,
                       "semaphore %s cannot be opened", name);
    }
    rc = check_file(name, err);
    if (rc == TB_OK) {
        rc = tb_handle_add(TB_HANDLE_SEMAPHORE, semaphore, destroy_semaphore, handle, err);
    }
    if (rc != TB_OK) {
        sem_close(semaphore);
    }
    return rc;
}

int32_t tb_semaphore_post(uint64_t handle, tb_error *err) {
    sem_t *semaphore = tb_handle_get(TB_HANDLE_SEMAPHORE, handle, err);
    if (semaphore == NULL) {
        return TB_ECLOSED;
    }
    /* At the highest value it is long awake. */
    int32_t rc = sem_post(semaphore) == 0 || errno == EOVERFLOW
                     ? TB_OK
                     : tb_fail(err, TB_ESYSTEM, -1, errno, "a semaphore cannot be posted");
    tb_handle_put(handle);
    return rc;
}

int32_t tb_semaphore_try(uint64_t handle, uint32_t *taken, tb_error *err) {
    sem_t *semaphore = tb_handle_get(TB_HANDLE_SEMAPHORE, handle, err);
    if (semaphore == NULL) {
        return TB_ECLOSED;
    }
    *taken = sem_trywait(semaphore) == 0;
    tb_handle_put(handle);
    return TB_OK;
}

/* glibc has it from 2.30 on, musl not at all: it is looked for when this library is loaded. */
int sem_clockwait(sem_t *restrict, clockid_t, const struct timespec *restrict) __attribute__((weak));

/* In slices, since somebody may set the clock of the system while it waits. */
int tb_semaphore_await_by_wall_clock(sem_t *semaphore, uint64_t end) {
    for (;;) {
        uint64_t now = tb_now();
        uint64_t left = now < end ? end - now : 0;
        uint64_t slice = left < SLICE_NS ? left : SLICE_NS;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until = tb_timespec((uint64_t)until.tv_sec * 1000000000u + (uint64_t)until.tv_nsec + slice);
        int rc = sem_timedwait(semaphore, &until) == 0 ? 0 : errno;
        if (rc != EINTR && (rc != ETIMEDOUT || left == 0)) {
            return rc;
        }
    }
}

static int await(sem_t *semaphore, uint64_t timeout_ns) {
    uint64_t wait_ns = timeout_ns < LONGEST_WAIT_NS ? timeout_ns : LONGEST_WAIT_NS;
    uint64_t end = tb_now() + wait_ns;
    if (sem_clockwait == NULL) {
        return tb_semaphore_await_by_wall_clock(semaphore, end);
    }
    struct timespec until = tb_timespec(end);
    int rc;
    do {
        rc = sem_clockwait(semaphore, CLOCK_MONOTONIC, &until) == 0 ? 0 : errno;
    } while (rc == EINTR);
    return rc;
}

int32_t tb_semaphore_wait(uint64_t handle, uint64_t timeout_ns, tb_error *err) {
    sem_t *semaphore = tb_handle_get(TB_HANDLE_SEMAPHORE, handle, err);
    if (semaphore == NULL) {
        return TB_ECLOSED;
    }
    int waited = await(semaphore, timeout_ns);
    tb_handle_put(handle);
    if (waited == 0) {
        return TB_OK;
    }
    return waited == ETIMEDOUT ? tb_fail(err, TB_ETIMEOUT, -1, 0, "the semaphore was not posted in time")
                               : tb_fail(err, TB_ESYSTEM, -1, waited, "a semaphore cannot be waited for");
}

int32_t tb_semaphore_close(uint64_t handle, tb_error *err) {
    return tb_handle_close(TB_HANDLE_SEMAPHORE, handle, err);
}

int32_t tb_semaphore_unlink(const char *name, uint32_t *removed, tb_error *err) {
    int32_t rc = check_name(name, err);
    if (rc != TB_OK) {
        return rc;
    }
    *removed = sem_unlink(name) == 0;
    if (!*removed && errno != ENOENT) {
        return tb_fail(err, errno == EACCES || errno == EPERM ? TB_EFOREIGN : TB_ESYSTEM, -1, errno,
                       "semaphore %s cannot be removed", name);
    }
    return TB_OK;
}
