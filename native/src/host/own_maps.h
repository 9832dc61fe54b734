/* The maps of files in this process, as the kernel lists them. */
#ifndef TB_OWN_MAPS_H
#define TB_OWN_MAPS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/* A map that is shared, from the beginning of its file. */
typedef struct tb_own_map {
    uintptr_t begin, end;
    bool writable;
    dev_t device; /* some file systems tell another one here than stat does */
    ino_t inode;
    const char *name; /* in `line`, without its newline */
    char line[PATH_MAX + 256];
} tb_own_map;

/* NULL if the kernel does not tell: errno says why. Closed by fclose. */
FILE *tb_own_maps_open(void);
/* The next shared map from the beginning of a file; false once there is none. */
bool tb_own_maps_next(FILE *maps, tb_own_map *map);

#endif
