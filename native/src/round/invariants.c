/* Which state follows which, and what a transfer is in each. The session's lock is held. */
#include "round/invariants.h"

static bool may_become(enum tb_transfer_state from, enum tb_transfer_state to) {
    switch (from) {
    case TB_TRANSFER_PREPARING:
        return to == TB_TRANSFER_READY || to == TB_TRANSFER_ENDING;
    case TB_TRANSFER_READY:
        return to == TB_TRANSFER_RUNNING;
    case TB_TRANSFER_RUNNING:
        return to == TB_TRANSFER_READY;
    case TB_TRANSFER_ENDING:
        return to == TB_TRANSFER_DEAD;
    case TB_TRANSFER_DEAD:
        return false;
    }
    return false;
}

/* Nobody touches memory for it: neither a thread, a socket or a kernel of this rank, nor a peer. */
static void check_quiet(const tb_transfer *transfer) {
    TB_INVARIANT(transfer->active == 0 && transfer->pulling == 0);
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        TB_INVARIANT(exchange->pulling == 0);
        TB_INVARIANT(!exchange->awaits_quiet);
        TB_INVARIANT(exchange->exposed == 0 || transfer->quarantined);
    }
}

void tb_transfer_become(tb_transfer *transfer, enum tb_transfer_state state) {
    TB_INVARIANT(may_become(transfer->state, state));
    if (state != TB_TRANSFER_ENDING) {
        check_quiet(transfer);
    }
    transfer->state = state;
}

const uint8_t tb_bucket_next[] = {
    /* One that is moved jointly goes from its beginning to its end in one step of its carrier. */
    [TB_BUCKET_IDLE] = 1 << TB_BUCKET_ALLOWED | 1 << TB_BUCKET_QUEUED | 1 << TB_BUCKET_MOVING | 1 << TB_BUCKET_READY
                       | 1 << TB_BUCKET_DONE,
    [TB_BUCKET_ALLOWED] = 1 << TB_BUCKET_QUEUED | 1 << TB_BUCKET_MOVING | 1 << TB_BUCKET_STAGED,
    [TB_BUCKET_QUEUED] = 1 << TB_BUCKET_MOVING,
    [TB_BUCKET_MOVING] = 1 << TB_BUCKET_STAGED | 1 << TB_BUCKET_DONE,
    [TB_BUCKET_READY] = 1 << TB_BUCKET_STAGED,
    [TB_BUCKET_STAGED] = 1 << TB_BUCKET_QUEUED,
    [TB_BUCKET_DONE] = 0,
};
