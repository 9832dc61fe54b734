/* Files that only this user may hold, and locks of single bytes in them. No lock is needed. */
#include "host/lock_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

int32_t tb_bus_check_owner(int fd, const char *what, const char *name, tb_error *err) {
    struct stat status;
    if (fstat(fd, &status) != 0) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "%s %s cannot be examined", what, name);
    }
    if (!S_ISREG(status.st_mode)) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s is not a plain file", what, name);
    }
    if (status.st_uid != geteuid()) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s belongs to user %u", what, name,
                       (unsigned)status.st_uid);
    }
    if ((status.st_mode & 077) != 0) {
        return tb_fail(err, TB_EFOREIGN, -1, 0, "%s %s is open to others: mode %03o", what, name,
                       (unsigned)status.st_mode & 0777);
    }
    return TB_OK;
}

int32_t tb_bus_open_lock_file(const char *path, int *fd, tb_error *err) {
    int file = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (file < 0) {
        return tb_fail(err, errno == ENOSPC ? TB_ENO_SPACE : TB_ESYSTEM, -1, errno,
                       "lock file %s cannot be opened", path);
    }
    int32_t rc = tb_bus_check_owner(file, "lock file", path, err);
    if (rc != TB_OK) {
        close(file);
        return rc;
    }
    *fd = file;
    return TB_OK;
}

int tb_bus_byte_lock(int fd, int command, short type, uint64_t offset) {
    if (offset > (uint64_t)INT64_MAX - 1) {
        return EINVAL;
    }
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
    for (;;) {
        if (fcntl(fd, command, &lock) == 0) {
            return command == F_OFD_GETLK && lock.l_type != F_UNLCK ? EAGAIN : 0;
        }
        if (errno != EINTR || command == F_OFD_SETLKW) {
            return errno == EACCES ? EAGAIN : errno;
        }
    }
}

int32_t tb_bus_lock_refused(int fd, int failed, tb_error *err) {
    char link[32], path[320];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = '\0';
    return tb_fail(err, TB_ESYSTEM, -1, failed,
                   "the locks of %s cannot be had (if its file system has none, name a folder on a local one)", path);
}
