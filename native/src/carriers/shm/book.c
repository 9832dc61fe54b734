/*
 * A session's book. A source writes it with its session's lock held; a target reads another process's, which needs
 * none.
 */
#include "carriers/shm/book.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

/* Regions that can be noted. The file has holes where nothing was written. */
enum { MOST_REGIONS = 1 << 20 };

/* By the rank of the target. */
typedef struct answer {
    uint8_t nonce[16];
    int32_t source, target;
    uint8_t reserved[8];
} answer;

/* First an answer for each rank, then a u64 for each region. */
struct tb_book {
    int fd;
    uint64_t bytes;
    int32_t world;
    uint8_t *at;
};

static uint64_t notes_at(int32_t world) {
    return (uint64_t)world * sizeof(answer);
}

static uint64_t bytes_of(int32_t world) {
    return notes_at(world) + (uint64_t)MOST_REGIONS * sizeof(uint64_t);
}

int32_t tb_book_create(int32_t world, tb_book **made, tb_error *err) {
    tb_book *book = calloc(1, sizeof *book);
    if (book == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a book");
    }
    book->world = world;
    book->bytes = bytes_of(world);
    book->at = MAP_FAILED;
    book->fd = memfd_create("tensorbus book", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (book->fd < 0 || ftruncate(book->fd, (off_t)book->bytes) != 0
        || fcntl(book->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0
        || (book->at = mmap(NULL, book->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, book->fd, 0)) == MAP_FAILED) {
        int os_errno = errno;
        tb_book_free(book);
        return tb_fail(err, TB_ESYSTEM, -1, os_errno, "the session's book, a file in memory");
    }
    *made = book;
    return TB_OK;
}

void tb_book_free(tb_book *book) {
    if (book == NULL) {
        return;
    }
    if (book->at != MAP_FAILED) {
        munmap(book->at, book->bytes);
    }
    if (book->fd >= 0) {
        close(book->fd);
    }
    free(book);
}

int tb_book_file(const tb_book *book) {
    return book->fd;
}

void tb_book_answer(tb_book *book, int32_t source, int32_t target, const uint8_t nonce[16]) {
    answer row = {.source = source, .target = target};
    memcpy(row.nonce, nonce, sizeof row.nonce);
    memcpy(book->at + (uint64_t)target * sizeof row, &row, sizeof row);
}

bool tb_book_note(tb_book *book, uint32_t region, uint64_t address) {
    if (region >= MOST_REGIONS) {
        return false;
    }
    memcpy(book->at + notes_at(book->world) + (uint64_t)region * sizeof address, &address, sizeof address);
    return true;
}

int tb_file_of(int32_t pid, int32_t descriptor, int *fd) {
    char path[64];
    struct stat status;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, descriptor);
    int found = open(path, O_PATH | O_CLOEXEC);
    if (found < 0) {
        return errno;
    }
    int error = fstat(found, &status) != 0 ? errno : 0;
    if (error == 0 && (!S_ISREG(status.st_mode) || status.st_uid != geteuid())) {
        error = ENODEV;
    }
    if (error == 0) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", found);
        *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        error = *fd < 0 ? errno : 0;
    }
    close(found);
    return error;
}

static bool answers(int fd, int32_t rank, int32_t world, int32_t own, const uint8_t nonce[16]) {
    static const uint8_t none[16];
    answer row;
    struct stat status;
    return fstat(fd, &status) == 0 && (uint64_t)status.st_size == bytes_of(world)
           && pread(fd, &row, sizeof row, (off_t)((uint64_t)own * sizeof row)) == (ssize_t)sizeof row
           && row.source == rank && row.target == own && memcmp(nonce, none, sizeof none) != 0
           && memcmp(row.nonce, nonce, sizeof row.nonce) == 0;
}

int32_t tb_book_open(const tb_wire_identity *source, int32_t rank, int32_t world, int32_t own,
                     const uint8_t nonce[16], int *fd, tb_error *err) {
    int error = tb_file_of(source->pid, source->book, fd);
    if (error == EACCES || error == EPERM) {
        return tb_fail(err, TB_EUNSUPPORTED, rank, error,
                       "memory of rank %d cannot be opened by way of /proc/%d/fd (another user, or a process that is "
                       "not dumpable)",
                       rank, source->pid);
    }
    if (error == 0 && answers(*fd, rank, world, own, nonce)) {
        return TB_OK;
    }
    if (error == 0) {
        close(*fd);
    }
    *fd = -1;
    return tb_fail(err, TB_EAUTH, rank, error, "rank %d is not process %d, as it says it is", rank, source->pid);
}

uint64_t tb_book_look(int fd, int32_t world, uint32_t region) {
    uint64_t address;
    off_t at = (off_t)(notes_at(world) + (uint64_t)region * sizeof address);
    bool found = region < MOST_REGIONS && pread(fd, &address, sizeof address, at) == (ssize_t)sizeof address;
    return found ? address : 0;
}
