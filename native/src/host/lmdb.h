/*
 * The two files of an LMDB environment as another program's: what is checked before LMDB opens them, since it
 * trusts what stands there, and what is reserved before it writes, since a write of its that fails ends the
 * process (docs/adr/0016-lmdb-files.md). Little-endian, 64 bits, the package lmdb 3.5.
 */
#ifndef TB_BUS_LMDB_H
#define TB_BUS_LMDB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tensorbus.h"
#include "tensorbus_bus.h"

#define TB_LMDB_MAGIC 0xbeefc0deu
#define TB_LMDB_VERSION 2
#define TB_LMDB_METAS 2
#define TB_LMDB_NO_PAGE UINT64_MAX /* the root of an empty tree */

enum tb_lmdb_page_flag {
    TB_LMDB_BRANCH = 1,
    TB_LMDB_LEAF = 2,
    TB_LMDB_OVERFLOW = 4,
    TB_LMDB_META = 8,
};

/* A page's head. Offsets within a page count from behind it. */
typedef struct tb_lmdb_page {
    uint64_t number;
    uint64_t transaction;
    uint16_t padding;
    uint16_t flags;
    union {
        struct {
            uint16_t lower; /* the end of the nodes' offsets, which are 2 bytes each */
            uint16_t upper; /* the beginning of the nodes */
        } room;
        uint32_t pages; /* in an overflow page: how many follow one another */
    } size;
} tb_lmdb_page;

typedef struct tb_lmdb_tree {
    uint32_t page_bytes; /* set in the tree of free pages alone; 0 in the other */
    uint16_t flags;
    uint16_t depth;
    uint64_t branches;
    uint64_t leaves;
    uint64_t overflows;
    uint64_t entries;
    uint64_t root;
} tb_lmdb_tree;

enum tb_lmdb_tree_index { TB_LMDB_FREE = 0, TB_LMDB_MAIN = 1 };

/* What the first two pages hold: transaction n writes the one of n % 2. */
typedef struct tb_lmdb_meta {
    tb_lmdb_page page;
    uint32_t magic;
    uint32_t version;
    uint64_t address;
    uint64_t map_bytes;
    tb_lmdb_tree trees[2];
    uint64_t last_page;
    uint64_t transaction;
    int64_t boot;
} tb_lmdb_meta;

_Static_assert(sizeof(tb_lmdb_page) == 24, "LMDB's page header");
_Static_assert(sizeof(tb_lmdb_tree) == 48, "LMDB's record of a tree");
_Static_assert(offsetof(tb_lmdb_meta, last_page) == 144, "LMDB's meta page");

#define TB_LMDB_READER_TABLE_OFFSET 24 /* behind magic, format, transaction and count, aligned as a mutex is */
#define TB_LMDB_CACHE_LINE 64

/* The head of the lock file, with the padding of its format. */
typedef struct tb_lmdb_locks {
    union {
        struct {
            uint32_t magic;
            uint32_t format;
            _Atomic uint64_t transaction; /* the last one that was committed */
            uint32_t readers;
            uint32_t padding;
            pthread_mutex_t reader_table;
        } body;
        char pad[(TB_LMDB_READER_TABLE_OFFSET + sizeof(pthread_mutex_t) + 63) & ~(size_t)63];
    } head;
    pthread_mutex_t writer;
    pthread_mutex_t sync;
    union {
        /* Ours, where LMDB has nothing: the thread that is inside of the gate or has died there, or 0. */
        _Atomic uint32_t inside;
        char pad[TB_LMDB_CACHE_LINE];
    };
} tb_lmdb_locks;

_Static_assert(offsetof(tb_lmdb_locks, head.body.reader_table) == TB_LMDB_READER_TABLE_OFFSET,
               "LMDB's alignment");

#define TB_LMDB_READERS 1024u /* src/bus/queue/environment.ts: maxReaders */
/* One cache line a reader. */
#define TB_LMDB_LOCK_BYTES (sizeof(tb_lmdb_locks) + TB_LMDB_READERS * TB_LMDB_CACHE_LINE)
/* The file ends with a word of ours (host/file_end.h), which is too short for another reader. */
#define TB_LMDB_LOCK_FILE_BYTES (TB_LMDB_LOCK_BYTES + 8)

/* What is wrong with a meta page, or NULL. */
const char *tb_lmdb_check_meta(const tb_lmdb_meta *meta);

/* The meta page of the last transaction, or NULL and what is wrong with them in *problem. metas: both, copied. */
const tb_lmdb_meta *tb_lmdb_newest(const tb_lmdb_meta metas[TB_LMDB_METAS], const char **problem);

/*
 * The thread that holds the lock of writers in a lock file that is in use, or 0. *dead: the lock is held, and by one
 * who is or was inside of the gate, or is no thread any more: whoever is inside now knows that nobody will free it. A
 * thread that was killed may be there for long, until its parent asks how it ended.
 */
uint32_t tb_lmdb_writer(const tb_lmdb_locks *locks, bool *dead);
/* The thread that holds the lock of the reader table, or 0. */
uint32_t tb_lmdb_adder(const tb_lmdb_locks *locks);
/*
 * Inside of the gate, once LMDB has its lock file open. LMDB's lock of writers is robust: it stands in a list of the
 * thread that holds it, whose links lie in the file, and a thread that frees it after somebody has cut the file writes
 * to wherever they seem to point. The gate is freed by the kernel, and tells of the dead as well: the lock becomes a
 * plain one.
 */
void tb_lmdb_make_plain(tb_lmdb_locks *locks);
/* Frees the lock of writers, and says what was committed last. */
void tb_lmdb_free_lock(tb_lmdb_locks *locks, uint64_t transaction);
/*
 * Inside of the gate: frees the lock of a writer that has died, and says what it has committed, as LMDB does.
 * TB_EBUS_FORMAT.
 */
int32_t tb_lmdb_free_writer(tb_lmdb_locks *locks, const char *data_path, tb_error *err);

/* What is wrong with what never changes in a lock file that is in use, or NULL. */
const char *tb_lmdb_check_lock_head(const tb_lmdb_locks *locks);
/* Why a lock file that is in use cannot be trusted, or NULL. transaction: that of the newest meta page. */
const char *tb_lmdb_check_locks(const tb_lmdb_locks *locks, uint64_t transaction);

/* What a transaction has done. */
typedef struct tb_lmdb_change {
    uint64_t puts;
    uint64_t removes;
    uint64_t small_bytes; /* bytes of the values put, without those that fill more than half a page */
    uint64_t big_pages;   /* that those take */
} tb_lmdb_change;

/* Bytes that the data file must have for the transaction to be committed, at most. */
uint64_t tb_lmdb_bytes_needed(const tb_lmdb_meta *meta, const tb_lmdb_change *change);

/*
 * Takes the space of a file from *reserved up to `to`, and some more if there is some, and says in *reserved how far it
 * goes now. TB_ENO_SPACE.
 */
int32_t tb_lmdb_grow(int fd, uint64_t *reserved, uint64_t to, const char *path, tb_error *err);

/*
 * To be called before LMDB opens the files in this process, while nobody writes: checks all that LMDB would trust, and
 * takes the space of what it touches first. Makes both files if they are missing. map_bytes: of the map that LMDB will
 * make; users_fd: the gate's file, in which whoever passes the gate and has the environment open holds TB_GATE_USERS,
 * or -1. If *users is not TB_GATE_USERS_KNOWN, nothing was checked. TB_EBUS_FORMAT, TB_ENO_SPACE, TB_EFOREIGN, and
 * TB_ESYSTEM or TB_ENO_MEMORY if descriptors or address space do not suffice.
 */
int32_t tb_lmdb_prepare(const char *data_path, const char *lock_path, uint64_t map_bytes, int users_fd,
                        enum tb_gate_users *users, tb_error *err);

#endif
