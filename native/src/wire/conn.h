/* Connections: their life, what is said on them, and the bytes that go over them. */
#ifndef TB_CONN_H
#define TB_CONN_H

#include "round/engine.h"

/* ---- conn.c: the lock is held -------------------------------------------------------------------------- */

/*
 * A connection over a link, which it owns from here on, also where it fails. It belongs to one of the
 * threads.
 */
tb_conn *tb_conn_create(tb_session *session, const tb_link *link, enum tb_conn_state state);
/* Its thread looks at it soon. */
void tb_conn_kick(tb_conn *conn);
/* Its thread ends it soon. */
void tb_conn_doom(tb_conn *conn);
/* A control frame to be sent. body: header->body_bytes of it, or NULL. */
void tb_conn_say(tb_conn *conn, const tb_wire_header *header, const void *body);
/* Bytes that are no frame. */
void tb_conn_say_bytes(tb_conn *conn, const void *bytes, uint64_t count);
/* It is one of its peer's from here on. */
void tb_conn_open(tb_conn *conn, tb_peer *peer, uint32_t index);
/* Lets go of what belongs to rounds that failed. */
void tb_conn_let_go(tb_conn *conn, bool all);
/* What was said goes out, then it ends, at the latest at the deadline. */
void tb_conn_close_orderly(tb_conn *conn, uint64_t deadline);

/* ---- conn.c: in its thread, without the lock ----------------------------------------------------------- */

void tb_conn_end(tb_conn *conn);
/* It broke, or its peer broke the protocol: the peer is lost. */
void tb_conn_fail(tb_conn *conn, int32_t code, int os_errno, const char *message);
/* The link can be read or written: from any thread, without the lock. */
enum { TB_CONN_READABLE = 1, TB_CONN_WRITABLE = 2 };
void tb_conn_signal(tb_conn *conn, uint8_t signals);

/* conn_read.c, conn_write.c: in its thread, without the lock. True where there is more to do at once. */
bool tb_conn_read(tb_conn *conn);
bool tb_conn_write(tb_conn *conn);

/* ---- peer.c: the lock is held -------------------------------------------------------------------------- */

void tb_peer_say(tb_peer *peer, const tb_wire_header *header, const void *body);
void tb_peer_kick(tb_peer *peer);
/* Everything with it fails. An orderly end is no event of its own. */
void tb_peer_lost(tb_peer *peer, int32_t code, int os_errno, const char *message, bool orderly);
/* It could not be connected: prepares that wait for it fail. */
void tb_peer_unreachable(tb_peer *peer, int32_t code, int os_errno, const char *message);
/* A transfer needs it. */
void tb_peer_want(tb_peer *peer);
void tb_peer_up(tb_peer *peer);
/* Pings, silence. */
void tb_peers_tick(tb_session *session);
void tb_peer_free(tb_peer *peer);
int32_t tb_peer_on_frame(tb_conn *conn, const tb_wire_header *header, const uint8_t *body, tb_error *err);

#endif
