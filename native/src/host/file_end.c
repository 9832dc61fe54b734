/* Words at the ends of files. Of the thread that has the files open; no lock is needed. */
#include "host/file_end.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "host/map_guard.h"

/* No byte of it is zero: what is left of one that was cut, and was made longer again, is another. */
static const uint8_t word[TB_FILE_END_BYTES] = {0xe5, 0x7b, 0x9d, 0xc3, 0x41, 0xf8, 0x2f, 0xa7};

static uint64_t page_bytes(void) {
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool is_there(const tb_file_end *end) {
    uint64_t wanted;
    memcpy(&wanted, word, sizeof wanted);
    return atomic_load_explicit((const _Atomic uint64_t *)(end->page + end->at), memory_order_acquire) == wanted;
}

void tb_file_end_init(tb_file_end *end) {
    *end = (tb_file_end){.guard = -1};
}

void tb_file_end_close(tb_file_end *end) {
    tb_guard_remove(end->guard);
    if (end->page != NULL) {
        munmap(end->page, (size_t)page_bytes());
    }
    tb_file_end_init(end);
}

void tb_file_end_write(int fd, uint64_t bytes) {
    ssize_t written = pwrite(fd, word, sizeof word, (off_t)(bytes - sizeof word));
    (void)written;
}

/* Takes over a map of the page of the word, and looks whether that is there; `put`: it is put there first. */
static void look(tb_file_end *end, uint8_t *page, const struct stat *file, uint64_t bytes, bool put) {
    tb_error unguarded;
    size_t length = (size_t)page_bytes();
    end->bytes = bytes;
    end->has_word = false;
    if (page == MAP_FAILED) {
        return;
    }
    if (end->page == NULL && tb_guard_add(page, length, file, TB_GUARD_END, &end->guard, &unguarded) != TB_OK) {
        munmap(page, length);
        return;
    }
    end->page = page;
    end->at = (size_t)((bytes - sizeof word) % length);
    if (put) {
        memcpy(page + end->at, word, sizeof word);
        mprotect(page, length, PROT_READ);
    }
    end->has_word = is_there(end);
}

void tb_file_end_find(tb_file_end *end, int fd, const struct stat *file) {
    uint64_t bytes = (uint64_t)file->st_size, length = page_bytes();
    /* It lies in one page, and is read at once. */
    bool has_place = bytes >= sizeof word && bytes % sizeof word == 0;
    off_t from = has_place ? (off_t)((bytes - sizeof word) / length * length) : 0;
    /* The same place as before is guarded already. */
    int flags = MAP_SHARED | (end->page == NULL ? 0 : MAP_FIXED);
    void *page = has_place ? mmap(end->page, (size_t)length, PROT_READ, flags, fd, from) : MAP_FAILED;
    look(end, page, file, bytes, false);
}

void tb_file_end_find_mapped(tb_file_end *end, const tb_own_map *map, const struct stat *file, uint64_t bytes) {
    size_t length = (size_t)page_bytes();
    uintptr_t from = map->begin + (bytes - sizeof word) / length * length;
    /* An old size of 0 doubles a shared mapping. */
    void *page = from + length <= map->end ? mremap((void *)from, 0, length, MREMAP_MAYMOVE) : MAP_FAILED;
    look(end, page, file, bytes, true);
}

bool tb_file_end_stands(const tb_file_end *end) {
    return end->has_word && is_there(end);
}
