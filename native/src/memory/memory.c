/* Shared memory: files in memory that are sealed, mapped and handed over. The table of mappings has its own lock. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/available.h"
#include "base/error.h"
#include "memory/shared_table.h"
#include "tensorbus.h"

static int32_t check_size(uint64_t bytes, tb_error *err) {
    if (bytes == 0 || bytes > INT64_MAX) {
        return tb_fail(err, TB_EREGION, -1, 0, "memory of %llu bytes", (unsigned long long)bytes);
    }
    return TB_OK;
}

static int32_t map(uint64_t bytes, int flags, int fd, uint64_t *address, tb_error *err) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) {
        int os_errno = errno;
        return tb_fail(err, os_errno == ENOMEM ? TB_ENO_MEMORY : TB_ESYSTEM, -1, os_errno,
                       "mmap of %llu bytes", (unsigned long long)bytes);
    }
    *address = (uint64_t)(uintptr_t)at;
    return TB_OK;
}

static int32_t unmap(uint64_t address, uint64_t bytes, tb_error *err) {
    if (munmap((void *)(uintptr_t)address, bytes) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "munmap");
    }
    return TB_OK;
}

int32_t tb_host_allocate(uint64_t bytes, uint64_t *address, tb_error *err) {
    int32_t code = check_size(bytes, err);
    return code != TB_OK ? code : map(bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1, address, err);
}

int32_t tb_host_free(uint64_t address, uint64_t bytes, tb_error *err) {
    return unmap(address, bytes, err);
}

/*
 * Space that is only promised would be a SIGBUS at the first write, so it is taken now. A memfd has no file
 * system that could be full: if the machine has less, the kernel would not refuse but end processes, hence
 * the question first.
 */
static int32_t reserve(int fd, uint64_t bytes, tb_error *err) {
    uint64_t available = tb_memory_available();
    if (bytes > available) {
        return tb_fail(err, TB_ENO_SPACE, -1, ENOSPC,
                       "%llu bytes of shared memory were asked for, but only %llu are available",
                       (unsigned long long)bytes, (unsigned long long)available);
    }
    int result;
    do {
        result = fallocate(fd, 0, 0, (off_t)bytes);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
        int os_errno = errno;
        bool full = os_errno == ENOSPC || os_errno == ENOMEM || os_errno == EDQUOT || os_errno == EFBIG;
        return tb_fail(err, full ? TB_ENO_SPACE : TB_ESYSTEM, -1, os_errno, "%llu bytes of shared memory",
                       (unsigned long long)bytes);
    }
    return TB_OK;
}

static int32_t map_shared(int fd, uint64_t bytes, uint64_t *address, tb_error *err) {
    int32_t code = map(bytes, MAP_SHARED, fd, address, err);
    if (code == TB_OK) {
        code = tb_shared_note(fd, *address, bytes, err);
        if (code != TB_OK) {
            unmap(*address, bytes, NULL);
        }
    }
    return code;
}

int32_t tb_shared_create(const char *name, uint64_t bytes, int32_t *fd, uint64_t *address, tb_error *err) {
    int32_t code = check_size(bytes, err);
    if (code != TB_OK) {
        return code;
    }
    int file = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "memfd_create");
    }
    if (ftruncate(file, (off_t)bytes) != 0) {
        int os_errno = errno;
        code = tb_fail(err, os_errno == EFBIG ? TB_ENO_SPACE : TB_ESYSTEM, -1, os_errno,
                       "%llu bytes of shared memory", (unsigned long long)bytes);
        goto close_file;
    }
    code = reserve(file, bytes, err);
    if (code != TB_OK) {
        goto close_file;
    }
    if (fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        code = tb_fail(err, TB_ESYSTEM, -1, errno, "sealing shared memory");
        goto close_file;
    }
    code = map_shared(file, bytes, address, err);
    if (code != TB_OK) {
        goto close_file;
    }
    *fd = file;
    return TB_OK;

close_file:
    close(file);
    return code;
}

int32_t tb_shared_map(int32_t fd, uint64_t bytes, uint64_t *address, tb_error *err) {
    int32_t code = check_size(bytes, err);
    if (code != TB_OK) {
        return code;
    }
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "fstat of shared memory");
    }
    if (!S_ISREG(status.st_mode) || status.st_size < 0 || (uint64_t)status.st_size < bytes) {
        return tb_fail(err, TB_ESEAL, -1, 0, "the shared memory has %lld bytes, but %llu were asked for",
                       (long long)status.st_size, (unsigned long long)bytes);
    }
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return tb_fail(err, TB_ESEAL, -1, 0, "the shared memory is not sealed against shrinking");
    }
    return map_shared(fd, bytes, address, err);
}

int32_t tb_shared_unmap(uint64_t address, uint64_t bytes, tb_error *err) {
    tb_shared_forget(address);
    return unmap(address, bytes, err);
}
