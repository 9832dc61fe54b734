/* Another rank: whether it is there, and what ends with it. The session's lock is held in all of this. */
#include <stdio.h>
#include <stdlib.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"

/* A silent peer is pinged from the second tick on, and lost after the last one. */
enum { TICKS = 4 };

void tb_peer_say(tb_peer *peer, const tb_wire_header *header, const void *body) {
    if (peer->up) {
        tb_conn_say(peer->conns[0], header, body);
    }
}

void tb_peer_kick(tb_peer *peer) {
    for (uint32_t i = 0; peer->up && i < peer->connections; i++) {
        tb_conn_kick(peer->conns[i]);
    }
}

void tb_peer_want(tb_peer *peer) {
    if (!peer->up) {
        peer->first_try = tb_now();
        peer->tries = 0;
        peer->session->backend->connect(peer->session, peer);
    }
}

void tb_peer_up(tb_peer *peer) {
    peer->up = true;
    peer->left = false;
    peer->connecting = false;
    peer->retry_at = 0;
    peer->silent_ticks = 0;
    peer->has_nonce = false; /* what was placed for an earlier connection proves nothing */
    tb_exchange *next;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = next) {
        next = exchange->next; /* a mismatch takes this side out of the list */
        if (exchange->transfer->state == TB_TRANSFER_PREPARING && !exchange->told && !exchange->gone) {
            tb_transfer_say_prepare(exchange);
            tb_transfer_meet_early(exchange); /* its first connection may have been open for a while */
        }
    }
}

static void forget_early(tb_peer *peer) {
    while (peer->early != NULL) {
        tb_early *early = peer->early;
        peer->early = early->next;
        free(early);
    }
    peer->early_count = 0;
}

/* The transfers that still wanted something of it fail; the others keep what they have. */
static void fail_sides(tb_peer *peer, int32_t code, int os_errno, const char *message) {
    tb_exchange *next;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = next) {
        next = exchange->next; /* a prepare that fails takes its sides out of the list */
        tb_transfer *transfer = exchange->transfer;
        if (!exchange->told) {
            continue; /* it waits for the next connection */
        }
        exchange->gone = true;
        if (transfer->nccl_steps != NULL) {
            tb_nccl_peer_gone(exchange, message);
        }
        if (peer->left) {
            tb_pulls_are_quiet(exchange);
        } else if (exchange->awaits_quiet) {
            tb_session_timer(peer->session, tb_now());
        }
        if (transfer->state == TB_TRANSFER_PREPARING) {
            tb_transfer_fail_prepare(transfer, code, peer->rank, os_errno, message);
            /* several sides of one peer do not belong to one transfer, but others may have gone */
            next = peer->exchanges;
        } else if (transfer->state == TB_TRANSFER_RUNNING && exchange->unfinished > 0) {
            tb_round_fail(transfer, code, peer->rank, os_errno, message);
        }
    }
}

void tb_peer_lost(tb_peer *peer, int32_t code, int os_errno, const char *why, bool orderly) {
    char message[256];
    bool was_up = peer->up;
    for (uint32_t i = 0; i < TB_CONNECTIONS; i++) {
        if (peer->conns[i] != NULL) {
            peer->conns[i]->peer = NULL;
            tb_conn_doom(peer->conns[i]);
            peer->conns[i] = NULL;
        }
    }
    peer->up = false;
    /* Of a set that was being made, the end of its connections is to come: then it is tried again. */
    peer->connecting = peer->connecting && !was_up;
    peer->open = 0;
    forget_early(peer);
    if (!was_up) {
        return;
    }
    snprintf(message, sizeof message, "rank %d is gone: %s", peer->rank, why);
    fail_sides(peer, code, os_errno, message);
    tb_event event = {.kind = orderly ? TB_EVENT_PEER_LEFT : TB_EVENT_PEER_LOST};
    tb_fail(&event.error, code, peer->rank, os_errno, "%s", message);
    tb_session_event(peer->session, &event);
}

void tb_peer_unreachable(tb_peer *peer, int32_t code, int os_errno, const char *message) {
    tb_exchange *exchange = peer->exchanges;
    while (exchange != NULL) {
        tb_transfer *transfer = exchange->transfer;
        exchange = exchange->next;
        if (transfer->state == TB_TRANSFER_PREPARING) {
            tb_transfer_fail_prepare(transfer, code, peer->rank, os_errno, message);
            exchange = peer->exchanges;
        }
    }
}

static void tick(tb_peer *peer) {
    if (!peer->up) {
        return;
    }
    if (atomic_exchange(&peer->heard, false)) {
        peer->silent_ticks = 0;
        return;
    }
    if (++peer->silent_ticks > TICKS) {
        char message[96];
        snprintf(message, sizeof message, "it was silent for %u ms", peer->session->options.peer_timeout_ms);
        tb_peer_lost(peer, TB_EPEER_LOST, 0, message, false);
        return;
    }
    tb_wire_header ping = {.kind = TB_FRAME_PING};
    tb_peer_say(peer, &ping, NULL);
}

/* Ticks, not clocks: a process that was stopped for a while does not take its peers for dead. */
void tb_peers_tick(tb_session *session) {
    uint64_t now = tb_now();
    if (now < session->next_tick) {
        return;
    }
    session->next_tick = now + (uint64_t)session->options.peer_timeout_ms * 1000000 / TICKS;
    for (int32_t rank = 0; rank < session->options.world; rank++) {
        if (session->peers[rank] != NULL) {
            tick(session->peers[rank]);
        }
    }
}

void tb_peer_free(tb_peer *peer) {
    forget_early(peer);
    free(peer->address);
    free(peer);
}

int32_t tb_peer_on_frame(tb_conn *conn, const tb_wire_header *header, const uint8_t *body, tb_error *err) {
    tb_peer *peer = conn->peer;
    if (peer == NULL || conn->state == TB_CONN_CLOSING) {
        return TB_OK;
    }
    switch (header->kind) {
    case TB_FRAME_PING:
        /* Whatever waits to go out says as much, and who does not read gets no more to read. */
        if (peer->up && peer->conns[0]->control_bytes == 0) {
            tb_peer_say(peer, &(tb_wire_header){.kind = TB_FRAME_PONG}, NULL);
        }
        return TB_OK;
    case TB_FRAME_PONG:
        return TB_OK;
    case TB_FRAME_BYE:
        peer->left = true;
        tb_peer_lost(peer, TB_EPEER_LOST, 0, "it closed its session", true);
        return TB_OK;
    default:
        return tb_transfer_on_frame(peer, header, body, err);
    }
}
