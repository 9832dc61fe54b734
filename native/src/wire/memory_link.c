/* Links within the process. A pipe has its own lock, which is taken before that of a session, never after it. */
#include "wire/memory_link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wire/conn.h"

enum { RING_BYTES = 256 * 1024 };

/* Written by one end, read by the other. */
typedef struct ring {
    uint8_t *bytes;
    uint64_t written, read;
    bool reader_waits, writer_waits;
    bool finished;
} ring;

/* The lock is taken before that of a session, never after it. */
struct tb_pipe {
    pthread_mutex_t lock;
    ring rings[2]; /* by the end that writes */
    tb_conn *conns[2];
    bool closed[2];
};

static void signal_end(tb_pipe *pipe, int end, uint8_t signals) {
    if (pipe->conns[end] != NULL) {
        tb_conn_signal(pipe->conns[end], signals);
    }
}

/* Copies between iovecs and the ring; gives the bytes. */
static uint64_t move(ring *ring, const struct iovec *iov, int count, bool write) {
    uint64_t moved = 0;
    for (int i = 0; i < count; i++) {
        uint8_t *at = iov[i].iov_base;
        uint64_t left = iov[i].iov_len;
        while (left > 0) {
            uint64_t used = ring->written - ring->read;
            uint64_t position = (write ? ring->written : ring->read) % RING_BYTES;
            uint64_t part = write ? RING_BYTES - used : used;
            part = part < RING_BYTES - position ? part : RING_BYTES - position;
            part = part < left ? part : left;
            if (part == 0) {
                return moved;
            }
            if (write) {
                memcpy(ring->bytes + position, at, part);
                ring->written += part;
            } else {
                memcpy(at, ring->bytes + position, part);
                ring->read += part;
            }
            at += part;
            left -= part;
            moved += part;
        }
    }
    return moved;
}

static uint64_t bytes_of(const struct iovec *iov, int count) {
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

static ssize_t pipe_readv(tb_link *link, const struct iovec *iov, int count) {
    tb_pipe *pipe = link->pipe;
    int other = 1 - link->end;
    ring *from = &pipe->rings[other];
    pthread_mutex_lock(&pipe->lock);
    uint64_t moved = move(from, iov, count, false);
    from->reader_waits |= moved < bytes_of(iov, count);
    if (moved > 0 && from->writer_waits) {
        from->writer_waits = false;
        signal_end(pipe, other, TB_CONN_WRITABLE);
    }
    bool ended = from->finished || pipe->closed[other];
    if (moved > 0 && ended) {
        signal_end(pipe, link->end, TB_CONN_READABLE); /* the end itself is still to be read */
    }
    pthread_mutex_unlock(&pipe->lock);
    return moved > 0 ? (ssize_t)moved : ended ? 0 : -EAGAIN;
}

static ssize_t pipe_writev(tb_link *link, const struct iovec *iov, int count) {
    tb_pipe *pipe = link->pipe;
    int other = 1 - link->end;
    ring *to = &pipe->rings[link->end];
    pthread_mutex_lock(&pipe->lock);
    bool closed = pipe->closed[other];
    uint64_t moved = closed ? 0 : move(to, iov, count, true);
    to->writer_waits |= moved < bytes_of(iov, count);
    if (moved > 0 && to->reader_waits) {
        to->reader_waits = false;
        signal_end(pipe, other, TB_CONN_READABLE);
    }
    pthread_mutex_unlock(&pipe->lock);
    return closed ? -EPIPE : moved > 0 ? (ssize_t)moved : -EAGAIN;
}

static void pipe_finish(tb_link *link) {
    tb_pipe *pipe = link->pipe;
    pthread_mutex_lock(&pipe->lock);
    pipe->rings[link->end].finished = true;
    signal_end(pipe, 1 - link->end, TB_CONN_READABLE);
    pthread_mutex_unlock(&pipe->lock);
}

static void free_pipe(tb_pipe *pipe) {
    pthread_mutex_destroy(&pipe->lock);
    free(pipe->rings[0].bytes);
    free(pipe->rings[1].bytes);
    free(pipe);
}

static void pipe_close(tb_link *link) {
    tb_pipe *pipe = link->pipe;
    pthread_mutex_lock(&pipe->lock);
    pipe->closed[link->end] = true;
    pipe->conns[link->end] = NULL;
    bool last = pipe->closed[1 - link->end];
    signal_end(pipe, 1 - link->end, TB_CONN_READABLE | TB_CONN_WRITABLE);
    pthread_mutex_unlock(&pipe->lock);
    if (last) {
        free_pipe(pipe);
    }
}

static void write_name(const tb_pipe *pipe, int end, uint8_t name[24]) {
    uint64_t parts[3] = {(uint64_t)(uintptr_t)pipe, (uint64_t)end, 0};
    memcpy(name, parts, sizeof parts);
}

static bool pipe_name(const tb_link *link, tb_link_name *name) {
    write_name(link->pipe, link->end, name->here);
    write_name(link->pipe, 1 - link->end, name->there);
    return true;
}

static const tb_link_kind pipe_kind = {pipe_readv, pipe_writev, pipe_finish, pipe_close, pipe_name};

bool tb_pipe_create(tb_link ends[2]) {
    tb_pipe *pipe = calloc(1, sizeof *pipe);
    if (pipe == NULL) {
        return false;
    }
    pthread_mutex_init(&pipe->lock, NULL);
    for (int end = 0; end < 2; end++) {
        pipe->rings[end].bytes = malloc(RING_BYTES);
        ends[end] = (tb_link){.kind = &pipe_kind, .fd = -1, .pipe = pipe, .end = end};
    }
    if (pipe->rings[0].bytes == NULL || pipe->rings[1].bytes == NULL) {
        free_pipe(pipe);
        return false;
    }
    return true;
}

void tb_pipe_attach(const tb_link *link, tb_conn *conn) {
    pthread_mutex_lock(&link->pipe->lock);
    link->pipe->conns[link->end] = conn;
    pthread_mutex_unlock(&link->pipe->lock);
}
