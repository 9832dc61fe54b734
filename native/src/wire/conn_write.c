/*
 * What goes out: control frames and buckets, many small ones or one large one in a system call. In the connection's
 * thread, which takes the session's lock to decide, and not while bytes move.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"
#include "flow/staging.h"

/* Bytes after which other connections have their turn: one large call. */
enum { WRITE_TURN = TB_CALL_BYTES };
/*
 * Buckets are taken until this many bytes wait to be sent: small ones then share a call, and the next header
 * goes out with the end of a large one.
 */
enum { BATCH_BYTES = 64 * 1024 };
/* Bytes that are packed at a time: what the link does not take is packed again. */
enum { PACK_BYTES = 64 * 1024 };
/* A bucket that is given up is filled up from here. */
enum { ZERO_BYTES = 64 * 1024 };
static const uint8_t zero_page[ZERO_BYTES];

typedef struct write_plan {
    tb_gather gather;
    uint64_t control; /* offered bytes of control frames, which go out before frame number control_before */
    uint32_t control_before;
    uint32_t frames; /* offered, at least in part */
} write_plan;

static tb_frame *frame_at(tb_conn *conn, uint32_t index) {
    return &conn->frames[(conn->first_frame + index) % TB_BATCH];
}

static uint64_t frame_bytes(const tb_frame *frame) {
    return TB_HEADER_BYTES + frame->payload + TB_TRAILER_BYTES;
}

/* Takes what is to be sent from those who decide it. The lock is held. */
static void take_work(tb_conn *conn) {
    if (conn->sending_at == conn->sending_bytes && conn->control_bytes > 0) {
        uint8_t *was = conn->sending;
        uint32_t room = conn->sending_room;
        conn->sending = conn->control;
        conn->sending_room = conn->control_room;
        conn->sending_bytes = conn->control_bytes;
        conn->sending_at = 0;
        conn->control = was;
        conn->control_room = room;
        conn->control_bytes = 0;
    }
    uint64_t waiting = 0;
    for (uint32_t i = 0; i < conn->frame_count; i++) {
        waiting += frame_bytes(frame_at(conn, i)) - frame_at(conn, i)->sent;
    }
    while (conn->state == TB_CONN_OPEN && conn->peer != NULL && conn->frame_count < TB_BATCH
           && waiting < BATCH_BYTES && conn->net->handler->claim(conn->peer, frame_at(conn, conn->frame_count))) {
        waiting += frame_bytes(frame_at(conn, conn->frame_count++));
    }
}

/* ---- offering ------------------------------------------------------------------------------------------ */

static bool offer_header(tb_frame *frame, tb_gather *gather) {
    if (frame->sent >= TB_HEADER_BYTES) {
        return true;
    }
    if (!tb_gather_has_room(gather, TB_HEADER_BYTES)) {
        return false;
    }
    const uint8_t *bytes = (const uint8_t *)&frame->header + frame->sent;
    tb_gather_copy(gather, bytes, TB_HEADER_BYTES - frame->sent);
    return true;
}

static uint64_t offer_zeros(tb_gather *gather, uint64_t bytes) {
    uint64_t offered = 0;
    while (offered < bytes && gather->count < gather->max) {
        uint64_t part = bytes - offered < ZERO_BYTES ? bytes - offered : ZERO_BYTES;
        gather->iov[gather->count++] = (struct iovec){(void *)(uintptr_t)zero_page, part};
        gather->bytes += part;
        offered += part;
    }
    return offered;
}

/* Checksums the iovecs that were added since `first`; the first one may begin before, by `before` bytes. */
static uint32_t check_offered(const tb_gather *gather, int first, uint64_t before, uint64_t bytes,
                              uint32_t crc) {
    for (int i = first; i < gather->count && bytes > 0; i++) {
        uint64_t skip = i == first ? before : 0;
        uint64_t length = gather->iov[i].iov_len - skip;
        length = length < bytes ? length : bytes;
        crc = tb_crc32c(crc, (const uint8_t *)gather->iov[i].iov_base + skip, length);
        bytes -= length;
    }
    return crc;
}

static uint64_t offer_from_memory(tb_frame *frame, tb_gather *gather, bool first_frame) {
    tb_stream *stream = frame->stream;
    uint64_t left = frame->flow.left;
    uint64_t may_pack = left < PACK_BYTES ? left : PACK_BYTES;
    uint64_t taken = tb_staging_reserve(&stream->staging, 0, may_pack, first_frame);
    int first = gather->count > 0 ? gather->count - 1 : 0; /* packed bytes may be added to the last iovec */
    uint64_t before = gather->count > 0 ? gather->iov[first].iov_len : 0;
    gather->may_pack = taken;
    frame->next = frame->flow;
    uint64_t offered = tb_flow_gather(&frame->next, gather);
    frame->packed = taken - gather->may_pack;
    tb_staging_unreserve(&stream->staging, 0, gather->may_pack);
    if (frame->packed > 0) {
        tb_staging_add(&stream->staging, frame->packed);
    }
    if (frame->checksum) {
        frame->next_crc = check_offered(gather, first, before, offered, frame->crc);
    }
    return offered;
}

static void offer_trailer(tb_frame *frame, tb_gather *gather) {
    uint64_t at =
        frame->sent > TB_HEADER_BYTES + frame->payload ? frame->sent - TB_HEADER_BYTES - frame->payload : 0;
    bool good = frame->stream != NULL || frame->good;
    tb_wire_trailer trailer = {
        .verdict = good ? TB_TRAILER_GOOD : TB_TRAILER_VOID,
        .crc = frame->checksum && good ? frame->next_crc : 0,
    };
    if (tb_gather_has_room(gather, TB_TRAILER_BYTES)) {
        tb_gather_copy(gather, (const uint8_t *)&trailer + at, TB_TRAILER_BYTES - at);
    }
}

/* Offers what fits of a frame's next bytes. True if that is all of them. */
static bool offer_frame(tb_frame *frame, tb_gather *gather, bool first_frame) {
    uint64_t begin = gather->bytes;
    frame->packed = 0;
    if (offer_header(frame, gather)) {
        uint64_t passed = frame->sent > TB_HEADER_BYTES ? frame->sent - TB_HEADER_BYTES : 0;
        uint64_t left = passed < frame->payload ? frame->payload - passed : 0;
        uint64_t offered = 0;
        if (left > 0) {
            offered = frame->stream == NULL ? offer_zeros(gather, left)
                                           : offer_from_memory(frame, gather, first_frame);
        } else {
            frame->next_crc = frame->crc;
        }
        if (offered == left) {
            offer_trailer(frame, gather);
        }
    }
    frame->offered = gather->bytes - begin;
    return frame->offered == frame_bytes(frame) - frame->sent;
}

static void offer_control(tb_conn *conn, write_plan *plan) {
    uint32_t bytes = conn->sending_bytes - conn->sending_at;
    if (bytes > 0 && plan->gather.count < plan->gather.max) {
        plan->gather.iov[plan->gather.count++] = (struct iovec){conn->sending + conn->sending_at, bytes};
        plan->gather.bytes += bytes;
        plan->control = bytes;
    }
}

static void plan_write(tb_conn *conn, write_plan *plan) {
    *plan = (write_plan){
        .gather = {.iov = conn->loop->iov,
                   .max = TB_IOVECS,
                   .bounce = conn->loop->bounce,
                   .size = TB_BOUNCE_BYTES,
                   .limit = TB_CALL_BYTES},
    };
    /* Control goes between frames, before all that have not begun. */
    plan->control_before = conn->frame_count > 0 && frame_at(conn, 0)->sent > 0 ? 1 : 0;
    bool whole = true;
    for (uint32_t i = 0; i <= conn->frame_count && whole; i++) {
        if (i == plan->control_before) {
            offer_control(conn, plan);
        }
        if (i < conn->frame_count) {
            whole = offer_frame(frame_at(conn, i), &plan->gather, i == 0);
            plan->frames++;
        }
    }
}

/* ---- what was taken ------------------------------------------------------------------------------------ */

static void accept_frame(tb_frame *frame, uint64_t bytes) {
    uint64_t begin = frame->sent;
    frame->sent += bytes;
    tb_stream *stream = frame->stream;
    if (stream == NULL) {
        return;
    }
    if (frame->packed > 0) {
        tb_staging_remove(&stream->staging, frame->packed);
        tb_staging_unreserve(&stream->staging, 0, frame->packed);
    }
    frame->good = frame->sent > TB_HEADER_BYTES + frame->payload;
    uint64_t from = begin > TB_HEADER_BYTES ? begin - TB_HEADER_BYTES : 0;
    uint64_t to = frame->sent > TB_HEADER_BYTES ? frame->sent - TB_HEADER_BYTES : 0;
    from = from < frame->payload ? from : frame->payload;
    to = to < frame->payload ? to : frame->payload;
    if (to == from) {
        return;
    }
    if (bytes == frame->offered) {
        frame->flow = frame->next;
        frame->crc = frame->next_crc;
    } else if (frame->checksum) {
        frame->crc = tb_flow_crc(&frame->flow, to - from, frame->crc);
    } else {
        tb_flow_skip(&frame->flow, to - from);
    }
    atomic_fetch_add_explicit(&stream->bytes_sent, to - from, memory_order_relaxed);
}

static void accept_bytes(tb_conn *conn, write_plan *plan, uint64_t taken) {
    for (uint32_t i = 0; i <= plan->frames; i++) {
        if (i == plan->control_before) {
            uint64_t control = taken < plan->control ? taken : plan->control;
            conn->sending_at += (uint32_t)control;
            taken -= control;
        }
        if (i < plan->frames) {
            tb_frame *frame = frame_at(conn, i);
            uint64_t part = taken < frame->offered ? taken : frame->offered;
            accept_frame(frame, part);
            taken -= part;
        }
    }
}

/* The lock is held. */
static void retire_frames(tb_conn *conn) {
    while (conn->frame_count > 0 && frame_at(conn, 0)->sent == frame_bytes(frame_at(conn, 0))) {
        tb_frame *frame = frame_at(conn, 0);
        tb_stream *stream = frame->stream;
        uint32_t bucket = frame->bucket;
        conn->first_frame = (conn->first_frame + 1) % TB_BATCH;
        conn->frame_count--;
        if (stream != NULL) {
            conn->net->handler->sent(stream, bucket);
        }
    }
}

/* Frames of rounds that were stopped since the last look must not be read from memory. The lock is held. */
static bool prepare_write(tb_conn *conn) {
    tb_conn_let_go(conn, false);
    take_work(conn);
    return conn->frame_count > 0 || conn->sending_at < conn->sending_bytes;
}

bool tb_conn_write(tb_conn *conn) {
    tb_net *net = conn->net;
    uint64_t bytes = 0;
    while (conn->writable && !conn->doomed && bytes < WRITE_TURN) {
        pthread_mutex_lock(&net->lock);
        bool work = prepare_write(conn);
        pthread_mutex_unlock(&net->lock);
        if (!work) {
            return false;
        }
        write_plan plan;
        plan_write(conn, &plan);
        ssize_t taken = conn->link.kind->writev(&conn->link, conn->loop->iov, plan.gather.count);
        accept_bytes(conn, &plan, taken > 0 ? (uint64_t)taken : 0);
        if (taken < 0 && taken != -EAGAIN && taken != -EINTR) {
            conn->ended = tb_conn_says_end(taken);
            tb_conn_fail(conn, TB_EPEER_LOST, (int)-taken, "the connection broke");
            return false;
        }
        conn->writable = taken == -EINTR || (taken > 0 && (uint64_t)taken == plan.gather.bytes);
        bytes += taken > 0 ? (uint64_t)taken : 0;
        pthread_mutex_lock(&net->lock);
        retire_frames(conn);
        pthread_mutex_unlock(&net->lock);
    }
    return conn->writable && !conn->doomed;
}
