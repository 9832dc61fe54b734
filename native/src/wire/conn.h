/* Connections: their life, what is said on them, and the bytes that go over them. */
#ifndef TB_CONN_H
#define TB_CONN_H

#include <errno.h>

#include "flow/flow.h"
#include "wire/net.h"

/* the size of the buffer for headers and small buckets; every control frame fits */
enum { TB_READ_BYTES = 64 * 1024 };
/*
 * The most payload in a system call: what one thread has just written, the next one reads while it is in the cache,
 * and a core is not kept from the peer for longer (measured: docs/adr/0001-streaming.md).
 */
enum { TB_CALL_BYTES = 1024 * 1024 };
enum { TB_BATCH = 64 }; /* buckets under way on a connection, of which all but the last are small */

/* A bucket on its way out. void: its round failed, and it is filled up with zeros. */
struct tb_frame {
    tb_stream *stream; /* its transfer's; NULL if it is void */
    uint32_t bucket;
    bool checksum;
    uint64_t payload;
    uint64_t sent; /* bytes of header, payload and trailer so far */
    bool good; /* a part of its trailer went out before it was void */
    uint64_t offered; /* bytes in the system call under way */
    uint64_t packed;
    uint32_t crc, next_crc;
    tb_wire_header header;
    tb_flow flow, next;
};

enum tb_read_state { TB_READ_HEADER, TB_READ_CONTROL, TB_READ_PAYLOAD, TB_READ_TRAILER };

/* The bucket on its way in. */
struct tb_arrival {
    enum tb_read_state state;
    tb_wire_header header;
    tb_stream *stream; /* its transfer's; NULL if its bytes are dropped */
    uint32_t bucket;
    uint32_t slot; /* TB_NONE if it goes to its place at once */
    bool checksum;
    uint64_t left; /* payload bytes to come */
    uint32_t crc;
    tb_flow flow;
};

enum tb_conn_state {
    TB_CONN_CONNECTING, /* tcp: waits for connect */
    TB_CONN_HANDSHAKE,
    TB_CONN_OPEN,
    TB_CONN_CLOSING, /* what is to be said goes out, what comes in is dropped */
};

typedef struct tb_handshake {
    uint64_t number; /* by which the caller knows the connection */
    bool accepted;   /* this side accepted the connection, the other one connected */
    bool said_hello, got_hello, proof_sent, got_proof, proof_good, welcomed;
    bool refused;
    bool counted; /* among those that are half open */
    /* What the caller is asked, or is to be asked once it has answered others. */
    enum { TB_ASK_NOTHING, TB_ASK_PROVE, TB_ASK_CHECK } question;
    bool asked;
    uint64_t since;     /* it was accepted */
    uint8_t source[24]; /* the address that it came from, without the port */
    tb_hello ours, theirs;
    uint8_t proof[TB_PROOF_BYTES];
} tb_handshake;

struct tb_conn {
    tb_net *net;
    tb_loop *loop;
    tb_conn *next, *before; /* its neighbours in the list of the loop */
    tb_conn *next_runnable;
    tb_peer *peer; /* NULL until it is known, and after it was lost */
    uint32_t index; /* among the peer's; control goes over the first */
    _Atomic enum tb_conn_state state;
    bool runnable;
    uint8_t signals; /* that a link gave from elsewhere */
    atomic_bool doomed; /* the thread ends it as soon as it can */
    int32_t rank; /* that it is to be connected with, until it is open; or -1 */
    uint64_t deadline; /* when the handshake or an orderly end must be over; 0: none */
    tb_handshake *handshake;

    /* Owned by the loop's thread; no lock is needed. */
    tb_link link;
    bool readable, writable, hung_up;
    uint8_t *read_buffer;
    uint32_t read_begin, read_end;
    uint32_t reach; /* iovecs that the last read filled, and some more */
    tb_arrival arrival;
    tb_frame *frames;
    uint32_t first_frame, frame_count; /* the frames are a ring */
    bool read_progress;
    bool finished; /* nothing more will be written */
    bool ended;    /* the other side has closed it */
    int end_errno; /* why it could not be established */

    /* Control frames to be sent; filled by anyone, taken by the thread. */
    uint8_t *control;
    uint32_t control_bytes, control_room;
    uint8_t *sending; /* used by the thread alone */
    uint32_t sending_at, sending_bytes, sending_room;
};

/* ---- conn.c: the lock is held -------------------------------------------------------------------------- */

/*
 * A connection over a link, which it owns from here on, also if this fails. It belongs to one of the loops.
 */
tb_conn *tb_conn_create(tb_net *net, const tb_link *link, enum tb_conn_state state);
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
/*
 * True if what a link gave says that its other side has closed it, which a rank does once it has come to rest: there
 * was an end of what it writes (tb_link_kind). A connection that was reset without one says nothing: its process may be
 * gone, but something between the two may have reset it as well, and the peer may still read this rank's memory.
 */
static inline bool tb_conn_says_end(ssize_t moved) {
    return moved == 0 || moved == -EPIPE;
}
/* It broke, or its peer broke the protocol: the peer is lost. */
void tb_conn_fail(tb_conn *conn, int32_t code, int os_errno, const char *message);
/* The link can be read or written: from any thread, without the lock. */
enum { TB_CONN_READABLE = 1, TB_CONN_WRITABLE = 2 };
void tb_conn_signal(tb_conn *conn, uint8_t signals);

/* conn_read.c, conn_write.c: in its thread, without the lock. True if there is more to do at once. */
bool tb_conn_read(tb_conn *conn);
bool tb_conn_write(tb_conn *conn);

#endif
