/* Which shared memory of other processes, or for them, is mapped here, with a descriptor of its file for each
 * mapping. */
#ifndef TB_SHARED_TABLE_H
#define TB_SHARED_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "tensorbus.h"

typedef struct tb_shared {
    uint64_t address, bytes; /* the whole mapping, which begins where the file does */
    int fd;
    uint64_t device, inode, file_bytes;
} tb_shared;

/* Keeps a descriptor of its own for as long as the memory is mapped. */
int32_t tb_shared_note(int fd, uint64_t address, uint64_t bytes, tb_error *err);
void tb_shared_forget(uint64_t address);
/* The mapping in which all of these bytes lie. */
bool tb_shared_find(uint64_t address, uint64_t bytes, tb_shared *found);

#endif
