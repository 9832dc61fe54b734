/* Which rounds of a transfer were given up, around the one under way. The session's lock is held in all of this. */
#ifndef TB_ABORTS_H
#define TB_ABORTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Ranks are never further apart than this in rounds that they still hear of from each other. What lies beyond is
 * nobody's round yet: it is not remembered, so that a peer can spoil the rounds that it names and no others.
 */
enum { TB_ABORT_WINDOW = 64 };

typedef struct tb_abort {
    int32_t code, rank; /* `rank` is the one on which it began */
} tb_abort;

typedef struct tb_aborts {
    uint64_t first; /* the round of bit 0 */
    uint64_t known; /* a bit for each round of the window */
    tb_abort why[TB_ABORT_WINDOW]; /* by round modulo the window */
} tb_aborts;

/* True if it is news of a round in the window: to be passed on. */
bool tb_aborts_add(tb_aborts *aborts, uint64_t round, int32_t code, int32_t rank);
/* NULL if that round was not given up, as far as is known. */
const tb_abort *tb_aborts_find(const tb_aborts *aborts, uint64_t round);
/* A round begins: the window is that many rounds on both sides of it. */
void tb_aborts_move(tb_aborts *aborts, uint64_t round);

#endif
