/*
 * What comes in: headers and small buckets by way of a buffer, large payloads straight to their places. In the
 * connection's thread, which takes the session's lock to decide, and not while bytes move.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "wire/conn.h"
#include "base/error.h"
#include "flow/staging.h"
#include "wire/peer.h"

/* Bytes after which other connections have their turn: one large call. */
enum { READ_TURN = TB_CALL_BYTES };
/* After a large payload, only the next header is read ahead: the payload behind it has a place of its own. */
enum { LARGE_PAYLOAD = 256 * 1024, SHORT_AHEAD = 512 };

static uint32_t buffered(const tb_conn *conn) {
    return conn->read_end - conn->read_begin;
}

static bool broken(tb_conn *conn, const tb_error *error) {
    tb_net *net = conn->net;
    pthread_mutex_lock(&net->lock);
    tb_error fault = *error;
    fault.rank = conn->peer != NULL ? conn->peer->rank : -1;
    tb_net_fault(net, &fault);
    pthread_mutex_unlock(&net->lock);
    tb_conn_fail(conn, error->code, 0, error->message);
    return false;
}

/* ---- a bucket ------------------------------------------------------------------------------------------ */

static bool may_touch(const tb_arrival *arrival) {
    return arrival->stream != NULL && !atomic_load(&arrival->stream->stop);
}

static bool start_bucket(tb_conn *conn) {
    tb_arrival *arrival = &conn->arrival;
    tb_net *net = conn->net;
    tb_error error;
    int32_t code = TB_OK;
    pthread_mutex_lock(&net->lock);
    arrival->stream = NULL;
    if (conn->peer != NULL) {
        code = net->handler->arrive(conn->peer, arrival, &error);
    }
    arrival->crc = may_touch(arrival) && arrival->checksum ? tb_wire_header_crc(&arrival->header) : 0;
    pthread_mutex_unlock(&net->lock);
    arrival->left = arrival->header.body_bytes;
    arrival->state = arrival->left > 0 ? TB_READ_PAYLOAD : TB_READ_TRAILER;
    return code == TB_OK || broken(conn, &error);
}

static void count_received(tb_arrival *arrival, uint64_t bytes) {
    arrival->left -= bytes;
    if (arrival->left == 0) {
        arrival->state = TB_READ_TRAILER;
    }
    if (arrival->stream != NULL) {
        atomic_fetch_add_explicit(&arrival->stream->bytes_received, bytes, memory_order_relaxed);
    }
}

static void put(tb_arrival *arrival, const uint8_t *bytes, uint64_t count) {
    if (count > 0 && may_touch(arrival)) {
        if (arrival->checksum) {
            arrival->crc = tb_crc32c(arrival->crc, bytes, count);
        }
        tb_flow_put(&arrival->flow, bytes, count);
    }
    count_received(arrival, count);
}

static void finish_bucket(tb_conn *conn, const tb_wire_trailer *trailer) {
    tb_arrival *arrival = &conn->arrival;
    tb_net *net = conn->net;
    arrival->state = TB_READ_HEADER;
    if (arrival->stream == NULL) {
        return;
    }
    pthread_mutex_lock(&net->lock);
    tb_stream *stream = arrival->stream;
    arrival->stream = NULL;
    net->handler->arrived(stream, arrival, trailer, conn->peer != NULL ? conn->peer->rank : -1);
    pthread_mutex_unlock(&net->lock);
}

/* ---- frames out of the buffer -------------------------------------------------------------------------- */

/* Bytes changed on their way: what comes behind them cannot be told apart any more. */
static bool changed(tb_conn *conn, const char *what) {
    tb_error error;
    tb_fail(&error, TB_ECHECKSUM, -1, 0, "the %s of a frame of kind %u changed on its way", what,
            conn->arrival.header.kind);
    return broken(conn, &error);
}

static bool check_control(tb_conn *conn, const tb_wire_header *header) {
    tb_error error;
    if (header->kind <= TB_FRAME_VERDICT || header->body_bytes > tb_frame_limit(header->kind)
        || tb_frame_limit(header->kind) == UINT64_MAX || conn->index != 0) {
        tb_fail(&error, TB_EPROTOCOL, -1, 0, "a frame of kind %u with %llu bytes is not expected",
                header->kind, (unsigned long long)header->body_bytes);
        return broken(conn, &error);
    }
    return true;
}

static bool take_control(tb_conn *conn) {
    tb_net *net = conn->net;
    tb_error error;
    const tb_wire_header *header = &conn->arrival.header;
    const uint8_t *body = conn->read_buffer + conn->read_begin;
    if (!tb_wire_body_intact(header, body)) {
        return changed(conn, "body");
    }
    pthread_mutex_lock(&net->lock);
    int32_t code = tb_peer_on_frame(conn, header, body, &error);
    pthread_mutex_unlock(&net->lock);
    conn->read_begin += (uint32_t)tb_wire_control_bytes(header);
    conn->arrival.state = TB_READ_HEADER;
    return code == TB_OK ? !conn->doomed : broken(conn, &error);
}

/*
 * Takes the next part of a frame out of the buffer. *more: there was one. False if the connection broke.
 */
static bool take(tb_conn *conn, bool *more) {
    tb_arrival *arrival = &conn->arrival;
    const uint8_t *at = conn->read_buffer + conn->read_begin;
    uint32_t have = buffered(conn);
    *more = true;
    switch (arrival->state) {
    case TB_READ_HEADER:
        if (have < TB_HEADER_BYTES) {
            break;
        }
        memcpy(&arrival->header, at, TB_HEADER_BYTES);
        conn->read_begin += TB_HEADER_BYTES;
        if (!tb_wire_header_intact(&arrival->header)) {
            return changed(conn, "header");
        }
        if (arrival->header.kind == TB_FRAME_DATA) {
            return start_bucket(conn);
        }
        arrival->state = TB_READ_CONTROL;
        return check_control(conn, &arrival->header);
    case TB_READ_CONTROL:
        if (have < tb_wire_control_bytes(&arrival->header)) {
            break;
        }
        return take_control(conn);
    case TB_READ_PAYLOAD:
        if (have == 0) {
            break;
        }
        have = arrival->left < have ? (uint32_t)arrival->left : have;
        put(arrival, at, have);
        conn->read_begin += have;
        return true;
    case TB_READ_TRAILER:
        if (have < TB_TRAILER_BYTES) {
            break;
        }
        tb_wire_trailer trailer;
        memcpy(&trailer, at, sizeof trailer);
        conn->read_begin += TB_TRAILER_BYTES;
        if (trailer.verdict != TB_TRAILER_GOOD && trailer.verdict != TB_TRAILER_VOID) {
            return changed(conn, "trailer");
        }
        finish_bucket(conn, &trailer);
        return true;
    }
    *more = false;
    return true;
}

/* ---- reading ------------------------------------------------------------------------------------------- */

/* One system call: payload bytes to their places, then to the bounce, then what follows to the buffer. */
typedef struct read_plan {
    int count;
    int direct_count;
    uint64_t direct;
    uint64_t bounced;
    uint64_t ahead;
    uint64_t staged; /* what the bounce was counted as */
    uint64_t reserved;
    tb_flow after; /* the flow once all direct bytes have come */
} read_plan;

static void plan_bounce(tb_conn *conn, read_plan *plan) {
    tb_arrival *arrival = &conn->arrival;
    uint64_t rest = arrival->left - plan->direct;
    plan->bounced = rest < TB_BOUNCE_BYTES ? rest : TB_BOUNCE_BYTES;
    if (!may_touch(arrival)) {
        return;
    }
    /* A bucket of stage 0 has a slot that it has not taken; others share what was announced. */
    if (arrival->header.stage > 0) {
        plan->bounced = tb_staging_reserve(&arrival->stream->staging, 1, plan->bounced, true);
        plan->reserved = plan->bounced;
    }
    plan->staged = plan->bounced;
    tb_staging_add(&arrival->stream->staging, plan->staged);
}

static void give_bounce(tb_stream *stream, const read_plan *plan) {
    if (plan->staged > 0) {
        tb_staging_remove(&stream->staging, plan->staged);
        tb_staging_unreserve(&stream->staging, 1, plan->reserved);
    }
}

static void plan_read(tb_conn *conn, read_plan *plan) {
    tb_arrival *arrival = &conn->arrival;
    struct iovec *iov = conn->loop->iov;
    memset(plan, 0, offsetof(read_plan, after));
    if (arrival->state == TB_READ_PAYLOAD) {
        bool bounce = true;
        if (may_touch(arrival)) {
            plan->after = arrival->flow;
            int max = (int)conn->reach < TB_IOVECS - 3 ? (int)conn->reach : TB_IOVECS - 3;
            plan->count =
                tb_flow_scatter(&plan->after, iov, max, conn->loop->sink, TB_CALL_BYTES, &plan->direct);
            bounce = plan->after.left > 0 && plan->after.mode != TB_FLOW_RUNS;
        }
        plan->direct_count = plan->count;
        if (bounce) {
            plan_bounce(conn, plan);
            iov[plan->count++] = (struct iovec){conn->loop->bounce, plan->bounced};
        }
    }
    if (arrival->state != TB_READ_PAYLOAD || plan->direct + plan->bounced == arrival->left) {
        bool large = arrival->state == TB_READ_PAYLOAD && arrival->header.body_bytes >= LARGE_PAYLOAD;
        uint64_t room = TB_READ_BYTES - conn->read_end;
        plan->ahead = large && room > SHORT_AHEAD ? SHORT_AHEAD : room;
        iov[plan->count++] = (struct iovec){conn->read_buffer + conn->read_end, plan->ahead};
    }
}

static void check_direct(tb_arrival *arrival, const struct iovec *iov, int count, uint64_t bytes) {
    for (int i = 0; i < count && bytes > 0; i++) {
        uint64_t length = iov[i].iov_len < bytes ? iov[i].iov_len : bytes;
        arrival->crc = tb_crc32c(arrival->crc, iov[i].iov_base, length);
        bytes -= length;
    }
}

/* Padding is zero, on the wire and in its checksum; the sink of a scatter is one for all of it. */
static void accept_direct(tb_conn *conn, read_plan *plan, uint64_t bytes) {
    tb_arrival *arrival = &conn->arrival;
    uint64_t direct = bytes < plan->direct ? bytes : plan->direct;
    if (direct == 0) {
        return;
    }
    if (arrival->checksum) {
        check_direct(arrival, conn->loop->iov, plan->direct_count, direct);
    }
    if (direct == plan->direct) {
        arrival->flow = plan->after;
    } else {
        tb_flow_skip(&arrival->flow, direct);
    }
    count_received(arrival, direct);
}

/* As many iovecs as the last call filled, and half again: building more of them is work for nothing. */
static void adapt_reach(tb_conn *conn, const read_plan *plan, uint64_t got) {
    if (got >= plan->direct) {
        conn->reach = TB_IOVECS;
        return;
    }
    uint64_t filled = (uint64_t)plan->direct_count * got / plan->direct;
    conn->reach = (uint32_t)(filled + filled / 2 + 16);
}

static void accept_bytes(tb_conn *conn, read_plan *plan, uint64_t got) {
    tb_arrival *arrival = &conn->arrival;
    if (plan->direct > 0) {
        adapt_reach(conn, plan, got);
    }
    accept_direct(conn, plan, got);
    got -= got < plan->direct ? got : plan->direct;
    uint64_t bounced = got < plan->bounced ? got : plan->bounced;
    if (bounced > 0) {
        put(arrival, conn->loop->bounce, bounced);
    }
    conn->read_end += (uint32_t)(got - bounced);
}

static void link_ended(tb_conn *conn, ssize_t got) {
    conn->readable = got == -EINTR;
    if (got == -EAGAIN || got == -EINTR) {
        return;
    }
    bool orderly = got == 0;
    if (orderly && conn->index > 0 && conn->state == TB_CONN_OPEN && conn->arrival.state == TB_READ_HEADER
        && buffered(conn) == 0) {
        return; /* between buckets: what the peer said last may wait in its first connection, which decides */
    }
    conn->ended = tb_conn_says_end(got);
    tb_conn_fail(conn, TB_EPEER_LOST, orderly ? 0 : (int)-got,
                 orderly ? "the peer closed the connection" : "the connection broke");
}

/* Reads once. Gives the bytes; 0 if there is nothing now, or if the connection ended. */
static uint64_t read_once(tb_conn *conn) {
    read_plan plan;
    if (conn->read_begin == conn->read_end) {
        conn->read_begin = 0;
        conn->read_end = 0;
    } else if (conn->read_begin > 0) {
        memmove(conn->read_buffer, conn->read_buffer + conn->read_begin, buffered(conn));
        conn->read_end -= conn->read_begin;
        conn->read_begin = 0;
    }
    plan_read(conn, &plan);
    tb_stream *stream = conn->arrival.stream;
    ssize_t got = conn->link.kind->readv(&conn->link, conn->loop->iov, plan.count);
    if (got > 0) {
        conn->readable = (uint64_t)got == plan.direct + plan.bounced + plan.ahead || conn->hung_up;
        accept_bytes(conn, &plan, (uint64_t)got);
    }
    give_bounce(stream, &plan);
    if (got <= 0) {
        link_ended(conn, got);
        return 0;
    }
    return (uint64_t)got;
}

/* Only the end of a connection that ends in order is still of interest. */
static void drain(tb_conn *conn) {
    while (conn->readable && !conn->doomed) {
        struct iovec iov = {conn->loop->bounce, TB_BOUNCE_BYTES};
        ssize_t got = conn->link.kind->readv(&conn->link, &iov, 1);
        if (got <= 0) {
            link_ended(conn, got);
        }
    }
}

bool tb_conn_read(tb_conn *conn) {
    uint64_t bytes = 0;
    if (conn->state == TB_CONN_CLOSING) {
        drain(conn);
        return false;
    }
    while (!conn->doomed) {
        bool more = true;
        while (more) {
            if (!take(conn, &more)) {
                return false;
            }
        }
        if (!conn->readable || bytes >= READ_TURN) {
            break;
        }
        bytes += read_once(conn);
    }
    conn->read_progress |= bytes > 0;
    return conn->readable && !conn->doomed;
}
