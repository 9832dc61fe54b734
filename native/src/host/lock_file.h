#ifndef TB_LOCK_FILE_H
#define TB_LOCK_FILE_H

#include <stdint.h>

#include "tensorbus.h"

/* TB_EFOREIGN unless fd is a plain file of this user that nobody else may open; what, name: the message. */
int32_t tb_bus_check_owner(int fd, const char *what, const char *name, tb_error *err);

/* Opens a lock file, made if it is missing, and checks its owner. */
int32_t tb_bus_open_lock_file(const char *path, int *fd, tb_error *err);

/* fcntl with an open-file-description lock of one byte. Returns 0 or an errno; EINTR only if it waits. */
int tb_bus_byte_lock(int fd, int command, short type, uint64_t offset);

/* TB_ESYSTEM: the kernel refuses the locks of a file, for the reason `failed`. Says which file, and what to do. */
int32_t tb_bus_lock_refused(int fd, int failed, tb_error *err);

#endif
