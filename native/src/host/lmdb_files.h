/*
 * The files of an LMDB environment that this process has open, as others may treat them: looked at before each
 * transaction, since LMDB touches them through a map, and grown before each commit.
 */
#ifndef TB_BUS_LMDB_FILES_H
#define TB_BUS_LMDB_FILES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "host/file_end.h"
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
    int guard;           /* the number of the guard of `metas` */
    bool guards_lmdb;
    tb_file_end data_end, lock_end; /* the files end there, as far as is known */
    uint32_t hits;                  /* what tb_guard_hits was when the kernel was asked last */
    uint64_t asked;                 /* when: a moment of tb_now */
    int gate_fd;                    /* the file of the gate: its owner's */
    const char *gate_path;          /* its owner's */
    char *data_path;
    char *lock_path;
} tb_lmdb_files;

/* Nothing is open; a value that tb_lmdb_files_close may have. */
void tb_lmdb_files_init(tb_lmdb_files *files);

/*
 * Inside of the gate, which is a lock on the file gate_fd: that, and gate_path, must stay until tb_lmdb_files_close.
 */
int32_t tb_lmdb_files_open(tb_lmdb_files *files, const char *data_path, const char *lock_path, int gate_fd,
                           const char *gate_path, tb_error *err);
void tb_lmdb_files_close(tb_lmdb_files *files);

/*
 * TB_EBUS_FORMAT if the files were overwritten. locks: LMDB's lock file, mapped; inside: nobody else writes, so that it
 * can be compared with the data.
 */
int32_t tb_lmdb_files_check(const tb_lmdb_files *files, const tb_lmdb_locks *locks, bool inside, tb_error *err);
/*
 * Before a transaction, since LMDB ends the process for a page of which only a part is there, and at its end, before
 * what came of it is believed: TB_EBUS_FORMAT if the files were cut. One that was cut and has grown again since
 * passes, unless a page of it was touched while it was missing. The data is marked as damaged then, so that no other
 * process goes on with it. The same if they are gone, or the gate's file, which is looked for every few milliseconds.
 * As long as the words at the ends of both files stand, and no page was missing, the kernel is not asked.
 */
int32_t tb_lmdb_files_check_whole(tb_lmdb_files *files, tb_error *err);
/* The same, and asks the kernel. */
int32_t tb_lmdb_files_ask_whole(tb_lmdb_files *files, tb_error *err);

/*
 * True if tb_lmdb_files_reserve has nothing to do for a usual transaction. Inside of the gate, once they were checked.
 */
bool tb_lmdb_files_have_room(const tb_lmdb_files *files);

/* As tb_gate_reserve. */
int32_t tb_lmdb_files_reserve(tb_lmdb_files *files, const tb_lmdb_change *change, tb_error *err);

#endif
