/* The TCP back end: sockets, and the handshake that goes before everything else. */
#ifndef TB_TCP_H
#define TB_TCP_H

#include <sys/socket.h>

#include "wire/conn.h"

struct tb_address {
    struct sockaddr_storage at;
    socklen_t length;
};

enum {
    HANDSHAKE_SECONDS = 5, /* then an unfinished one is dropped, */
    HELLO_SECONDS = 2,     /* or, if it has not even begun, already then */
};

/* tcp_socket.c */
int32_t tb_tcp_parse(const char *host, uint32_t port, struct tb_address *address, tb_error *err);
/* The options of a socket between peers. Returns 0 or an errno. */
int tb_tcp_configure(const tb_net *net, int fd);
tb_link tb_tcp_link(int fd);
/* Its thread hears of it. Returns 0 or an errno. */
int tb_tcp_watch(tb_conn *conn);

/* tcp_handshake.c: the connection's thread, without the lock */
tb_handshake *tb_handshake_create(tb_net *net, bool accepted, int32_t peer, uint32_t index,
                                  uint32_t count);
void tb_handshake_advance(tb_conn *conn);

/* tcp_connect.c: the lock is held */
void tb_tcp_connect(tb_net *net, tb_peer *peer);
/* A connection that was being made has ended: it is tried again, or the prepares that wait for it fail. */
void tb_tcp_ended(tb_conn *conn);
/* In the connection's thread, without the lock. */
void tb_tcp_establish(tb_conn *conn);

#endif
