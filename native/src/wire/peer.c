/* Another rank: whether it is there. The session's lock is held in all of this. */
#include <stdio.h>
#include <stdlib.h>

#include "wire/conn.h"
#include "base/error.h"
#include "wire/peer.h"

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
        peer->net->backend->connect(peer->net, peer);
    }
}

void tb_peer_up(tb_peer *peer) {
    peer->up = true;
    peer->left = false;
    peer->connecting = false;
    peer->retry_at = 0;
    peer->silent_ticks = 0;
    peer->net->handler->up(peer);
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
    /* If a set was being made, its connections are still to end: then it is tried again. */
    peer->connecting = peer->connecting && !was_up;
    peer->open = 0;
    peer->net->handler->forget(peer);
    if (!was_up) {
        return;
    }
    snprintf(message, sizeof message, "rank %d is gone: %s", peer->rank, why);
    peer->net->handler->lost(peer, code, os_errno, message);
    tb_event event = {.kind = orderly ? TB_EVENT_PEER_LEFT : TB_EVENT_PEER_LOST};
    tb_fail(&event.error, code, peer->rank, os_errno, "%s", message);
    tb_net_event(peer->net, &event);
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
        snprintf(message, sizeof message, "it was silent for %u ms", peer->net->options.peer_timeout_ms);
        tb_peer_lost(peer, TB_EPEER_LOST, 0, message, false);
        return;
    }
    tb_wire_header ping = {.kind = TB_FRAME_PING};
    tb_peer_say(peer, &ping, NULL);
}

/* Ticks, not clocks: a process that was stopped for a while does not take its peers for dead. */
void tb_peers_tick(tb_net *net) {
    uint64_t now = tb_now();
    if (now < net->next_tick) {
        return;
    }
    net->next_tick = now + (uint64_t)net->options.peer_timeout_ms * 1000000 / TICKS;
    for (int32_t rank = 0; rank < net->options.world; rank++) {
        if (net->peers[rank] != NULL) {
            tick(net->peers[rank]);
        }
    }
}

void tb_peer_free(tb_peer *peer) {
    peer->net->handler->forget(peer);
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
        /* Whatever waits to go out says as much. A peer that does not read is sent nothing more. */
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
        return peer->net->handler->frame(peer, header, body, err);
    }
}
