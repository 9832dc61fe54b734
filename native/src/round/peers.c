/*
 * What connections ask and tell the rounds of a session (tb_peer_handler). The session's lock is held in all of this.
 */
#include <stdlib.h>

#include "round/carrier.h"
#include "round/round.h"
#include "round/peers.h"
#include "round/round_receive.h"
#include "round/round_send.h"
#include "round/transfer_meet.h"
#include "round/transfer_peer.h"

static bool wanted(const tb_peer *peer) {
    for (const tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = exchange->next) {
        if (exchange->transfer->state == TB_TRANSFER_PREPARING && !exchange->told) {
            return true;
        }
    }
    return false;
}

static void up(tb_peer *peer) {
    peer->has_nonce = false; /* what was placed for an earlier connection proves nothing */
    tb_exchange *next;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = next) {
        next = exchange->next; /* a mismatch takes this exchange out of the list */
        if (exchange->transfer->state == TB_TRANSFER_PREPARING && !exchange->told && !exchange->gone) {
            tb_transfer_say_prepare(exchange);
            tb_transfer_meet_early(exchange); /* its first connection may have been open for a while */
        }
    }
}

static void forget(tb_peer *peer) {
    while (peer->early != NULL) {
        tb_early *early = peer->early;
        peer->early = early->next;
        free(early);
    }
    peer->early_count = 0;
}

/* The transfers that still wanted something of it fail; the others keep what they have. */
static void lost(tb_peer *peer, int32_t code, int os_errno, const char *message) {
    tb_exchange *next;
    for (tb_exchange *exchange = peer->exchanges; exchange != NULL; exchange = next) {
        next = exchange->next; /* a prepare that fails takes its exchanges out of the list */
        tb_transfer *transfer = exchange->transfer;
        if (!exchange->told) {
            continue; /* it waits for the next connection */
        }
        exchange->gone = true;
        if (transfer->joint.own != NULL) {
            transfer->joint.carrier->peer_gone(exchange, message);
        }
        if (peer->left) {
            tb_pulls_are_quiet(exchange);
        } else if (exchange->awaits_quiet) {
            tb_net_timer(peer->net, tb_now());
        }
        if (transfer->state == TB_TRANSFER_PREPARING) {
            tb_transfer_fail_prepare(transfer, code, peer->rank, os_errno, message);
            /* several exchanges with one peer do not belong to one transfer, but others may have gone */
            next = peer->exchanges;
        } else if (transfer->state == TB_TRANSFER_RUNNING && exchange->unfinished > 0) {
            tb_round_fail(transfer, code, peer->rank, os_errno, message);
        }
    }
}

static void unreachable(tb_peer *peer, int32_t code, int os_errno, const char *message) {
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

static void let_go(tb_stream *stream) {
    tb_round_release(tb_transfer_of(stream));
}

const tb_peer_handler tb_round_peers = {
    .wanted = wanted,
    .up = up,
    .forget = forget,
    .lost = lost,
    .unreachable = unreachable,
    .frame = tb_transfer_on_frame,
    .claim = tb_round_claim,
    .sent = tb_round_sent,
    .arrive = tb_round_arrive,
    .arrived = tb_round_arrived,
    .let_go = let_go,
};
