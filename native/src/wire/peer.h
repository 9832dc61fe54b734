/* Other ranks: whether they are there. The session's lock is held in all of these. */
#ifndef TB_PEER_H
#define TB_PEER_H

#include "wire/net.h"

void tb_peer_say(tb_peer *peer, const tb_wire_header *header, const void *body);
/* There may be something to send to it. */
void tb_peer_kick(tb_peer *peer);
/* Everything with it fails. An orderly end is no event of its own. */
void tb_peer_lost(tb_peer *peer, int32_t code, int os_errno, const char *message, bool orderly);
/* Somebody waits for a connection with it. */
void tb_peer_want(tb_peer *peer);
void tb_peer_up(tb_peer *peer);
/* Pings, silence. */
void tb_peers_tick(tb_net *net);
void tb_peer_free(tb_peer *peer);
int32_t tb_peer_on_frame(tb_conn *conn, const tb_wire_header *header, const uint8_t *body, tb_error *err);

#endif
