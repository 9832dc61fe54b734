/*
 * A word at the very end of a file, which this process has mapped: as long as it stands there, nobody has cut the file,
 * and no call to the kernel is needed to know that.
 */
#ifndef TB_FILE_END_H
#define TB_FILE_END_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "host/own_maps.h"
#include "tensorbus.h"

#define TB_FILE_END_BYTES 8

typedef struct tb_file_end {
    uint8_t *page;  /* our map of the page that would have it; NULL before the first look */
    size_t at;      /* its place there */
    uint64_t bytes; /* the length of the file that was looked at; 0: none was */
    bool has_word;  /* it was there then */
    int guard;      /* the number of the guard of `page` */
} tb_file_end;

void tb_file_end_init(tb_file_end *end);
void tb_file_end_close(tb_file_end *end);

/* Writes the word to the end of a file of that length. Unless that succeeds there is none. */
void tb_file_end_write(int fd, uint64_t bytes);

/*
 * Looks for the word in a file that is open to be read, and has that length; again in the same file once it is longer.
 * Without memory for a map there is none.
 */
void tb_file_end_find(tb_file_end *end, int fd, const struct stat *file);

/*
 * Writes and finds the word, once, in a file that this process has mapped to write, and which must not be opened again.
 * It has `bytes`, at least up to the end of the word.
 */
void tb_file_end_find_mapped(tb_file_end *end, const tb_own_map *map, const struct stat *file, uint64_t bytes);

bool tb_file_end_stands(const tb_file_end *end);

#endif
