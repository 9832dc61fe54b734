/*
 * The operations of this carrier: transfers and rounds over NCCL. The session's lock is held unless a comment says
 * otherwise.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"
#include "base/error.h"
#include "round/transfer.h"
#include "base/handle.h"
#include "base/table.h"
#include "device/device.h"
#include "carriers/nccl/nccl.h"
#include "round/round.h"
#include "flow/staging.h"
#include "round/carrier.h"
#include "wire/peer.h"
#include "round/invariants.h"

/* ---- rounds --------------------------------------------------------------------------------------------- */

static tb_nccl_said *said_by(const tb_exchange *exchange) {
    return &tb_nccl_run_of(exchange->transfer)->said[exchange - exchange->transfer->exchanges];
}

static bool leads(const tb_transfer *transfer) {
    return transfer->leader == transfer->session->options.rank;
}

static void take_turn(tb_transfer *transfer) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    run->turned = true;
    run->next = NULL;
    *run->set->runs_end = run;
    run->set->runs_end = &run->next;
    tb_cuda_hold(tb_nccl_run_of(transfer)->plan->mixed);
    tb_nccl_wake(run->set->nccl);
}

static void say(tb_exchange *exchange, uint8_t kind) {
    const tb_nccl_run *run = tb_nccl_run_of(exchange->transfer);
    tb_wire_header header = {.kind = kind,
                             .transfer = exchange->remote,
                             .round = exchange->transfer->round,
                             .sequence = run == NULL ? 0 : run->set->epoch};
    tb_peer_say(exchange->peer, &header, NULL);
}

static void say_to_set(tb_transfer *transfer, uint8_t kind) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].joins) {
            say(&transfer->exchanges[i], kind);
        }
    }
}

static void check_turn(tb_transfer *transfer) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    if (!run->active || run->turned || transfer->failing || !leads(transfer)) {
        return;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        /* A rank that has no part in the set may be done with this round by now, and have begun the next. */
        if (transfer->exchanges[i].together && run->said[i].begun < transfer->round) {
            return;
        }
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        if (exchange->joins && run->said[i].begun_epoch != run->set->epoch) {
            tb_round_fail(transfer, TB_EINVALIDATED, exchange->peer->rank, 0,
                          "a rank is on another communicator: the transfer has to be prepared again");
            return;
        }
    }
    say_to_set(transfer, TB_NCCL_TURN);
    take_turn(transfer);
}

static void say_begin(tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].peer->rank == transfer->leader) {
            say(&transfer->exchanges[i], TB_NCCL_BEGIN);
        }
    }
}

/* The leader: all have failed, or are gone, so nobody counts what comes. */
static void check_drained(tb_transfer *transfer) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    if (!run->active || !run->turned || run->drains || !transfer->failing || !leads(transfer)) {
        return;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        const tb_exchange *exchange = &transfer->exchanges[i];
        if (!exchange->gone && run->said[i].gave_up < transfer->round) {
            return;
        }
    }
    run->drains = true;
    say_to_set(transfer, TB_NCCL_DRAIN);
}

static void start_round(tb_transfer *transfer) {
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    tb_session *session = transfer->session;
    tb_staging_add(&transfer->staging, tb_nccl_run_of(transfer)->plan->device_bytes);
    if (run->set == NULL || run->set->doomed || run->built != TB_RUN_BUILT) {
        tb_round_fail(transfer, TB_EINVALIDATED, session->options.rank, 0,
                      "the communicator was aborted, or there is none: the transfer has to be prepared again");
        return;
    }
    tb_touch_begin(transfer);
    run->active = true;
    run->turned = false;
    run->refused = leads(transfer);
    run->drains = false;
    run->first_done = false;
    run->first_launched = false;
    run->packed = 1;
    run->launched = 1;
    run->over = 1;
    run->quiet_by = 0;
    if (leads(transfer)) {
        check_turn(transfer);
    } else {
        say_begin(transfer);
    }
    tb_nccl_wake(run->set->nccl);
}

static void round_begin(tb_transfer *transfer) {
    if (tb_nccl_run_of(transfer) != NULL) {
        start_round(transfer);
    } else {
        say_begin(transfer);
    }
}

void tb_nccl_run_over(tb_nccl_run *run) {
    tb_transfer *transfer = run->transfer;
    if (run->turned) {
        tb_cuda_unhold(tb_nccl_run_of(transfer)->plan->mixed);
    }
    run->active = false;
    run->turned = false;
    tb_round_release(transfer);
}

void tb_nccl_quarantine(tb_transfer *transfer) {
    tb_session *session = transfer->session;
    transfer->quarantined = true;
    session->quarantined = true;
    for (uint32_t i = 0; i < transfer->program.header->buffer_count; i++) {
        if (transfer->regions[i] != TB_NONE) {
            session->regions[transfer->regions[i]].quarantined = true;
        }
    }
    tb_fail(&transfer->error, TB_EQUARANTINED, session->options.rank, 0,
            "the GPU may still touch memory of round %llu, %u ms after its communicator was aborted",
            (unsigned long long)transfer->round, session->options.quiesce_ms);
}

static void round_failed(tb_transfer *transfer) {
    if (tb_nccl_run_of(transfer)->active) {
        check_drained(transfer);
        tb_nccl_wake(tb_nccl_run_of(transfer)->set->nccl);
    }
}

/* ---- what others say ------------------------------------------------------------------------------------ */

static void on_begin(tb_exchange *exchange, const tb_wire_header *header) {
    said_by(exchange)->begun = header->round;
    said_by(exchange)->begun_epoch = header->sequence;
    check_turn(exchange->transfer);
}

static int32_t on_turn(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    tb_transfer *transfer = exchange->transfer;
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    bool expected = exchange->peer->rank == transfer->leader && run->active && !run->turned && !run->refused
                    && header->round == transfer->round;
    if (!expected) {
        /* It runs on the leader, and has ended here: only an abort brings the two together again. */
        if (run->set != NULL) {
            tb_nccl_doom(run->set, TB_EPROTOCOL, exchange->peer->rank, "a turn came that nobody asked for");
        }
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a turn came that nobody asked for");
    }
    take_turn(transfer);
    return TB_OK;
}

static void on_drain(tb_exchange *exchange, const tb_wire_header *header) {
    const tb_transfer *transfer = exchange->transfer;
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    if (exchange->peer->rank == transfer->leader && run->active && header->round == transfer->round
        && transfer->failing) {
        run->drains = true;
        tb_nccl_wake(run->set->nccl);
    }
}

static int32_t on_frame(tb_exchange *exchange, const tb_wire_header *header, tb_error *err) {
    switch (header->kind) {
    case TB_NCCL_BEGIN:
        on_begin(exchange, header);
        return TB_OK;
    case TB_NCCL_TURN:
        return on_turn(exchange, header, err);
    default:
        on_drain(exchange, header);
        return TB_OK;
    }
}

static bool joins(const tb_transfer *transfer, int32_t rank) {
    bool found = false;
    for (uint32_t i = 0; i < transfer->member_count; i++) {
        found |= transfer->members[i].rank == rank && (transfer->members[i].roles & TB_MEMBER_JOINS) != 0;
    }
    return found;
}

static void peer_aborted(tb_exchange *exchange, uint64_t round, int32_t code) {
    tb_transfer *transfer = exchange->transfer;
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    tb_nccl_said *said = said_by(exchange);
    said->gave_up = round > said->gave_up ? round : said->gave_up;
    if (!run->active || round < transfer->round) {
        return;
    }
    check_drained(transfer);
    if (exchange->peer->rank == transfer->leader && !run->turned) {
        run->refused = true; /* what it says comes in order: there will be no turn */
    }
    /* That rank goes no further on the communicator, or knows of one that does not. */
    bool lost = code == TB_EPEER_LOST && joins(transfer, transfer->aborted.rank);
    bool stops = code == TB_ENCCL || code == TB_ECUDA || lost || code == TB_EQUARANTINED;
    if (run->turned && stops && exchange->joins) {
        tb_nccl_doom(run->set, code, exchange->peer->rank, transfer->aborted.message);
    }
    tb_nccl_wake(run->set->nccl);
}

static void peer_released(tb_exchange *exchange, const tb_error *why) {
    tb_transfer *transfer = exchange->transfer;
    tb_nccl_run *run = tb_nccl_run_of(transfer);
    if (!run->active) {
        return;
    }
    if (exchange->peer->rank == transfer->leader && !run->turned) {
        run->refused = true;
        tb_round_fail(transfer, why->code, why->rank, 0, why->message);
    }
    check_drained(transfer);
    tb_nccl_wake(run->set->nccl);
}

static void peer_gone(tb_exchange *exchange, const char *why) {
    tb_nccl_run *run = tb_nccl_run_of(exchange->transfer);
    if (run->set != NULL && exchange->joins) {
        tb_nccl_doom(run->set, TB_EPEER_LOST, exchange->peer->rank, why);
    }
    check_drained(exchange->transfer);
}

/* A contribution that this carrier brought lies in memory that its own moves know. */
static void submit(tb_pull *pull) {
    const tb_nccl_steps *steps = tb_nccl_run_of(pull->transfer)->plan;
    tb_device_submit(pull->transfer->device, pull, &steps->moves, steps->fold_of[pull->bucket]);
}

/* ---- selection ------------------------------------------------------------------------------------------ */

static const char *lacks(const tb_wire_identity *a, const tb_wire_identity *b, char *words, size_t size,
                         int32_t *code) {
    uint32_t mine = a->facts[TB_FACT_NCCL], other = b->facts[TB_FACT_NCCL];
    if (mine == 0 || other == 0) {
        return "one of the two has not loaded the library";
    }
    if (mine != other) {
        snprintf(words, size, "one has version %u.%u.%u and the other %u.%u.%u", mine / 10000, mine / 100 % 100,
                 mine % 100, other / 10000, other / 100 % 100, other % 100);
        return words;
    }
    bool may_share = (a->carriers & b->carriers & TB_CARRY_SHARED_GPU) != 0;
    if (may_share || memcmp(a->device, b->device, sizeof a->device) != 0) {
        return NULL;
    }
    *code = TB_EDEVICE_SHARED;
    return "the two share a GPU";
}

const tb_carrier tb_carrier_nccl = {
    .number = TB_CARRIER_NCCL,
    .name = "nccl",
    .way = TB_WAY_JOINT,
    .memory = TB_MEMORY_CUDA,
    .lacks = lacks,
    .session_stop = tb_nccl_stop,
    .session_rest = tb_nccl_rest,
    .session_free = tb_nccl_free,
    .submit = submit,
    .plan = tb_nccl_plan,
    .transfer_free = tb_nccl_transfer_free,
    .busy = tb_nccl_busy,
    .round_begin = round_begin,
    .round_failed = round_failed,
    .frame = on_frame,
    .peer_aborted = peer_aborted,
    .peer_released = peer_released,
    .peer_gone = peer_gone,
};
