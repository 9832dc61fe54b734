/* Mappings of other processes' shared memory, one of each file however many transfers read in it. */
#ifndef TB_SHM_MAP_H
#define TB_SHM_MAP_H

#include "wire/wire.h"

typedef struct tb_shm_map tb_shm_map;

/*
 * What a source says of a region in shared memory: the file, its own descriptor of it, and where the region lies in it.
 */
typedef struct tb_shm_file {
    int32_t descriptor;
    uint32_t reserved;
    uint64_t device, inode, bytes;
    uint64_t region_at, region_bytes;
} tb_shm_file;

/*
 * Maps the file that a region of rank's lies in, read-only, after it was found to be the one that was
 * exported, of this user, and sealed against shrinking. rank: for errors.
 */
int32_t tb_shm_map_open(const tb_wire_identity *identity, const tb_shm_file *file, int32_t rank,
                        tb_shm_map **map, tb_error *err);
const uint8_t *tb_shm_map_at(const tb_shm_map *map);
/* NULL: does nothing. */
void tb_shm_map_close(tb_shm_map *map);

#endif
