/*
 * The files of an LMDB environment that this process has open, as others may treat them: looked at before each
 * transaction, since LMDB touches them through a map, and grown before each commit.
 */
#ifndef TB_BUS_LMDB_FILES_H
#define TB_BUS_LMDB_FILES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "host/lmdb.h"
#include "tensorbus.h"

typedef struct tb_lmdb_files {
    int data_fd;
    int lock_fd; /* names the file only: closing another kind would free LMDB's own locks on it */
    struct stat data;
    struct stat lock;
    uint32_t page_bytes;
    const char *metas;   /* both meta pages, mapped; NULL before the files are open */
    uint64_t data_bytes; /* the file had as many, and never shrinks */
    uint64_t reserved;   /* so many have their space */
    int guard;           /* of metas */
    bool guards_lmdb;
    char *data_path;
    char *lock_path;
} tb_lmdb_files;

/* Nothing is open; a value that tb_lmdb_files_close may have. */
void tb_lmdb_files_init(tb_lmdb_files *files);

int32_t tb_lmdb_files_open(tb_lmdb_files *files, const char *data_path, const char *lock_path, tb_error *err);
void tb_lmdb_files_close(tb_lmdb_files *files);

/*
 * TB_EBUS_FORMAT if the files were overwritten. locks: LMDB's lock file, mapped; inside: nobody else writes, so that it can
 * be compared with the data.
 */
int32_t tb_lmdb_files_check(const tb_lmdb_files *files, const tb_lmdb_locks *locks, bool inside, tb_error *err);
/*
 * Before a transaction, since LMDB ends the process for a page of which only a part is there, and at its end, before what
 * came of it is believed: TB_EBUS_FORMAT if the files are gone or were cut, be it for a moment. The data is marked as damaged then, so that no other process goes on with it. lock: the length of the lock file
 * too, whose first page tells most of that by itself.
 */
int32_t tb_lmdb_files_check_whole(const tb_lmdb_files *files, bool lock, tb_error *err);

/* True if tb_lmdb_files_reserve has nothing to do for a usual transaction. Inside of the gate, once they were checked. */
bool tb_lmdb_files_have_room(const tb_lmdb_files *files);

/* As tb_gate_reserve. */
int32_t tb_lmdb_files_reserve(tb_lmdb_files *files, const tb_lmdb_change *change, tb_error *err);

#endif
