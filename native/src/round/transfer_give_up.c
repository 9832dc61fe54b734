/* A cancel or a deadline: what it ends, and whom was waited for. The session's lock is held. */
#include <stdio.h>

#include "round/transfer.h"
#include "round/round.h"

/* The first peer that a prepare still waits for; NULL where there is none. */
static const tb_exchange *missing(const tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (!transfer->exchanges[i].matched) {
            return &transfer->exchanges[i];
        }
    }
    return NULL;
}

static void give_prepare_up(tb_transfer *transfer, int32_t code, int32_t rank) {
    char message[128];
    const tb_exchange *exchange = missing(transfer);
    if (code != TB_ETIMEOUT || exchange == NULL) {
        snprintf(message, sizeof message, "rank %d gave up its prepare", rank);
    } else if (!exchange->peer->up) {
        snprintf(message, sizeof message, "rank %d waited too long for a connection with rank %d", rank,
                 exchange->peer->rank);
    } else {
        snprintf(message, sizeof message, "rank %d waited too long for rank %d to prepare", rank,
                 exchange->peer->rank);
    }
    tb_transfer_fail_prepare(transfer, code, rank, 0, message);
}

static const tb_exchange *unfinished(const tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].unfinished > 0) {
            return &transfer->exchanges[i];
        }
    }
    return NULL;
}

static void give_round_up(tb_transfer *transfer, int32_t code, int32_t rank) {
    char message[128];
    const tb_exchange *exchange = unfinished(transfer);
    unsigned long long round = transfer->round;
    if (code != TB_ETIMEOUT) {
        snprintf(message, sizeof message, "rank %d cancelled round %llu", rank, round);
    } else if (exchange != NULL) {
        snprintf(message, sizeof message, "rank %d waited too long in round %llu, for rank %d first of all",
                 rank, round, exchange->peer->rank);
    } else {
        snprintf(message, sizeof message, "rank %d took too long for round %llu", rank, round);
    }
    tb_round_fail(transfer, code, rank, 0, message);
}

void tb_transfer_give_up(tb_transfer *transfer, int32_t code) {
    int32_t rank = transfer->session->options.rank;
    if (transfer->state == TB_TRANSFER_PREPARING) {
        give_prepare_up(transfer, code, rank);
    } else if (transfer->state == TB_TRANSFER_RUNNING) {
        give_round_up(transfer, code, rank);
    }
}
