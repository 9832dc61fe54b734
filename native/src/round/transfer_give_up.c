/*
 * A cancel or a deadline: what it ends, and who was waited for. The session's lock is held in all but
 * tb_transfer_waits.
 */
#include <stdio.h>

#include "round/transfer.h"
#include "base/handle.h"
#include "round/round.h"
#include "round/transfer_meet.h"

/* The first peer that a prepare still waits for; NULL if there is none. */
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
    tb_transfer_fail_prepare(transfer, code, code == TB_ETIMEOUT && exchange != NULL ? exchange->peer->rank : rank, 0,
                          message);
}

static bool is_absent(const tb_exchange *exchange) {
    return exchange->here < exchange->transfer->round;
}

/* Something between the two is to come, or nothing begins here before that rank has begun the round. */
static bool is_waited_for(const tb_exchange *exchange) {
    return exchange->unfinished > 0 || (exchange->together && is_absent(exchange));
}

const tb_exchange *tb_transfer_absent(const tb_transfer *transfer) {
    const tb_exchange *absent = NULL;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        bool counts = is_waited_for(exchange) && is_absent(exchange);
        if (counts && (absent == NULL || exchange->peer->rank < absent->peer->rank)) {
            absent = exchange;
        }
    }
    return absent;
}

/* Whom to name: of those who have not begun the round the lowest, else the first that has not finished. */
static const tb_exchange *blamed(const tb_transfer *transfer) {
    const tb_exchange *named = tb_transfer_absent(transfer);
    for (uint32_t i = 0; i < transfer->exchange_count && named == NULL; i++) {
        named = is_waited_for(&transfer->exchanges[i]) ? &transfer->exchanges[i] : NULL;
    }
    return named;
}

static void give_round_up(tb_transfer *transfer, int32_t code, int32_t rank) {
    char message[128];
    const tb_exchange *exchange = blamed(transfer);
    unsigned long long round = transfer->round;
    if (code != TB_ETIMEOUT) {
        snprintf(message, sizeof message, "rank %d cancelled round %llu", rank, round);
    } else if (exchange != NULL && is_absent(exchange)) {
        snprintf(message, sizeof message, "rank %d waited too long in round %llu, which rank %d has not begun",
                 rank, round, exchange->peer->rank);
    } else if (exchange != NULL) {
        snprintf(message, sizeof message, "rank %d waited too long in round %llu, for rank %d first of all",
                 rank, round, exchange->peer->rank);
    } else {
        snprintf(message, sizeof message, "rank %d took too long for round %llu", rank, round);
    }
    tb_round_fail(transfer, code, code == TB_ETIMEOUT && exchange != NULL ? exchange->peer->rank : rank, 0, message);
}

void tb_transfer_give_up(tb_transfer *transfer, int32_t code) {
    int32_t rank = transfer->session->options.rank;
    if (transfer->state == TB_TRANSFER_PREPARING) {
        give_prepare_up(transfer, code, rank);
    } else if (transfer->state == TB_TRANSFER_RUNNING) {
        give_round_up(transfer, code, rank);
    }
}

static void list_waits(const tb_transfer *transfer, int32_t *ranks, uint32_t *states, uint32_t capacity,
                       uint32_t *count) {
    *count = 0;
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        if (!is_waited_for(exchange)) {
            continue;
        }
        if (*count < capacity) {
            ranks[*count] = exchange->peer->rank;
            states[*count] = is_absent(exchange) ? TB_WAITS_ABSENT : TB_WAITS_UNFINISHED;
        }
        (*count)++;
    }
}

int32_t tb_transfer_waits(uint64_t session_handle, uint64_t transfer_handle, int32_t *ranks, uint32_t *states,
                       uint32_t capacity, uint32_t *count, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, session_handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    const tb_transfer *transfer = tb_transfer_find(session, transfer_handle, err);
    if (transfer != NULL) {
        list_waits(transfer, ranks, states, capacity, count);
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(session_handle);
    return transfer == NULL ? TB_ECLOSED : TB_OK;
}
