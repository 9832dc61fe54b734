/* Which rounds of a transfer were given up, and why. The session's lock is held. */
#include "round/aborts.h"

static bool is_within(const tb_aborts *aborts, uint64_t round) {
    return round >= aborts->first && round - aborts->first < TB_ABORT_WINDOW;
}

bool tb_aborts_add(tb_aborts *aborts, uint64_t round, int32_t code, int32_t rank) {
    if (!is_within(aborts, round) || tb_aborts_find(aborts, round) != NULL) {
        return false;
    }
    aborts->known |= 1ull << (round - aborts->first);
    aborts->why[round % TB_ABORT_WINDOW] = (tb_abort){code, rank};
    return true;
}

const tb_abort *tb_aborts_find(const tb_aborts *aborts, uint64_t round) {
    if (!is_within(aborts, round) || (aborts->known & 1ull << (round - aborts->first)) == 0) {
        return NULL;
    }
    return &aborts->why[round % TB_ABORT_WINDOW];
}

void tb_aborts_move(tb_aborts *aborts, uint64_t round) {
    uint64_t first = round > TB_ABORT_WINDOW / 2 ? round - TB_ABORT_WINDOW / 2 : 0;
    if (first <= aborts->first) {
        return;
    }
    uint64_t steps = first - aborts->first;
    aborts->known = steps < TB_ABORT_WINDOW ? aborts->known >> steps : 0;
    aborts->first = first;
}
