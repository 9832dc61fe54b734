/* Stage 0: contributions, in the order of their folds. The session's lock is held in all of these. */
#ifndef TB_ROUND_FOLD_H
#define TB_ROUND_FOLD_H

#include "round/transfer.h"

void tb_folds_reset(tb_transfer *transfer);
/* Fixes where each piece will lie in every round, for a device that must know it beforehand. Without the lock. */
void tb_folds_fix_places(tb_transfer *transfer);
/* Allows contributions to come in, in the order of the folds, as far as slots and the pool reach. */
void tb_folds_allow(tb_transfer *transfer);
bool tb_folds_turn(const tb_transfer *transfer, uint32_t bucket);
void tb_folds_done(tb_transfer *transfer, uint32_t bucket);
/* A bucket that was sent or copied has read its pieces. */
void tb_folds_read(tb_transfer *transfer, uint32_t bucket);

#endif
