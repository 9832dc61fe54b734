/*
 * Maps of files that somebody else may cut. The kernel ends a process that touches a page of a map whose file has
 * become shorter (SIGBUS), and the process is the one that trains. Within the ranges that stand here the page is
 * replaced by one of our own, and the file is marked: whoever has the map open looks at the mark before it believes
 * what came of it (docs/adr/0033-cut-files.md). Every other fault goes to whoever was there before.
 */
#ifndef TB_HOST_MAP_GUARD_H
#define TB_HOST_MAP_GUARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "tensorbus.h"

/* What stands in the place of a missing page: a page of LMDB's that is of no kind, or zeros. */
enum tb_guard_kind { TB_GUARD_DATA, TB_GUARD_LOCKS, TB_GUARD_END };

/*
 * Guards a map of this process's own of that file, from its first byte (of TB_GUARD_END from any); *slot is for
 * tb_guard_remove, before the map goes. TB_ENO_MEMORY if more maps are guarded than there is room for.
 */
int32_t tb_guard_add(const void *begin, size_t bytes, const struct stat *file, enum tb_guard_kind kind, int *slot,
                     tb_error *err);
/* Nothing for a slot below 0. */
void tb_guard_remove(int slot);

/* Guards the maps that LMDB has made of that file in this process; as often as this is called, tb_guard_release is. */
int32_t tb_guard_lmdb(const char *path, const struct stat *file, enum tb_guard_kind kind, tb_error *err);
/* LMDB has unmapped the file. */
void tb_guard_release(const struct stat *file);

/* True once a guarded page of that file was found missing. */
bool tb_guard_has_hit(const struct stat *file);

/* How many guarded pages were found missing in this process, for good. */
const _Atomic uint32_t *tb_guard_hits(void);

#endif
