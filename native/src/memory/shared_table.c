/* Which addresses of this process are shared memory, and of which file. The table has its own lock. */
#include "memory/shared_table.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_shared *table;
static uint32_t count;
static uint32_t room;

/* The lock is held. */
static bool make_room(void) {
    if (count < room) {
        return true;
    }
    uint32_t more = room == 0 ? 16 : 2 * room;
    tb_shared *larger = realloc(table, more * sizeof *larger);
    if (larger == NULL) {
        return false;
    }
    table = larger;
    room = more;
    return true;
}

int32_t tb_shared_note(int fd, uint64_t address, uint64_t bytes, tb_error *err) {
    struct stat status;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0 || fstat(own, &status) != 0) {
        int os_errno = errno;
        if (own >= 0) {
            close(own);
        }
        return tb_fail(err, TB_ESYSTEM, -1, os_errno, "a descriptor of shared memory");
    }
    pthread_mutex_lock(&lock);
    bool kept = make_room();
    if (kept) {
        table[count++] =
            (tb_shared){address, bytes, own, status.st_dev, status.st_ino, (uint64_t)status.st_size};
    }
    pthread_mutex_unlock(&lock);
    if (!kept) {
        close(own);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of shared memory");
    }
    return TB_OK;
}

void tb_shared_forget(uint64_t address) {
    int fd = -1;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count && fd < 0; i++) {
        if (table[i].address == address) {
            fd = table[i].fd;
            table[i] = table[--count];
        }
    }
    if (count == 0) {
        free(table);
        table = NULL;
        room = 0;
    }
    pthread_mutex_unlock(&lock);
    if (fd >= 0) {
        close(fd);
    }
}

bool tb_shared_find(uint64_t address, uint64_t bytes, tb_shared *found) {
    bool any = false;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count && !any; i++) {
        const tb_shared *one = &table[i];
        any = address >= one->address && address - one->address <= one->bytes
              && bytes <= one->bytes - (address - one->address);
        if (any) {
            *found = *one;
        }
    }
    pthread_mutex_unlock(&lock);
    return any;
}
