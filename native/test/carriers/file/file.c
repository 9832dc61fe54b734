/*
 * A carrier for tests, which shows all that one has to say (docs/adding-a-transport.md): a target copies over a file, which
 * is the source's memory as the kernel shows it, /proc/PID/mem. It proves nothing of who the source is; a carrier that is
 * used does (carriers/shm/book.h).
 *
 * describe runs with the session's lock, everything else in a thread of the session without it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "carriers/registry.h"
#include "flow/flow_parts.h"
#include "kernels/dtype.h"
#include "round/carrier.h"

typedef struct file_import {
    int fd; /* stays with the process's memory: its number may be given to another process */
    uint64_t addresses[];
} file_import;

/* What a target has to know of a region: where it lies. */
static int32_t file_describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                             tb_error *err) {
    (void)session;
    (void)number;
    (void)err;
    memcpy(blob, &region->address, sizeof region->address);
    *bytes = sizeof region->address;
    return TB_OK;
}

static int32_t file_open(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    (void)exchange;
    char path[64];
    file_import *opened = calloc(1, sizeof *opened + import->region_count * sizeof(uint64_t));
    import->opened = opened;
    if (opened == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "%u regions of rank %d", import->region_count, import->rank);
    }
    for (uint32_t i = 0; i < import->region_count; i++) {
        if (import->regions[i].blob_bytes != sizeof(uint64_t)) {
            opened->fd = -1;
            return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d does not say where its memory lies", import->rank);
        }
        memcpy(&opened->addresses[i], tb_import_blob(import, i), sizeof(uint64_t));
    }
    snprintf(path, sizeof path, "/proc/%d/mem", import->identity.pid);
    opened->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (opened->fd < 0) {
        return tb_fail(err, errno == ENOENT ? TB_EPEER_LOST : TB_EUNSUPPORTED, import->rank, errno, "%s", path);
    }
    return TB_OK;
}

static void file_close(tb_import *import) {
    file_import *opened = import->opened;
    if (opened != NULL && opened->fd >= 0) {
        close(opened->fd);
    }
    free(opened);
    import->opened = NULL;
}

static bool fetch(const tb_import *import, void *to, uint64_t bytes, uint64_t address, tb_error *err) {
    const file_import *opened = import->opened;
    ssize_t got = pread(opened->fd, to, bytes, (off_t)address);
    if (got == (ssize_t)bytes) {
        return true;
    }
    tb_fail(err, TB_EPEER_LOST, import->rank, got < 0 ? errno : 0, "rank %d is gone: its memory cannot be read",
            import->rank);
    return false;
}

/* Starts the cursor where the next chunk begins at the source: addresses there, which the cursor only counts with. */
static bool start_chunk(tb_job *job, tb_error *err) {
    const tb_import *import = job->exchange->import;
    const file_import *opened = import->opened;
    const tb_chunk *chunk = tb_flow_chunk(&job->flow);
    uint8_t stage = tb_bucket_channel(&job->transfer->program, job->bucket)->stage;
    const tb_wire_end *end = tb_import_end(import, stage, job->flow.chunk);
    uint64_t base = opened->addresses[end->region];
    if (end->descriptor != TB_NONE) {
        tb_cursor_start(&job->source, (void *)(uintptr_t)(base + end->at), import->words + end->descriptor);
        return true;
    }
    const tb_wire_region *pool = &import->regions[end->region];
    uint64_t bytes = chunk->elements * tb_dtype_size(end->dtype);
    uint64_t at;
    if (!fetch(import, &at, sizeof at, base + pool->pieces_at + end->at * sizeof at, err)) {
        return false;
    }
    if (at > pool->pieces_at || bytes > pool->pieces_at - at) {
        tb_fail(err, TB_EPROTOCOL, import->rank, 0, "a reduced piece of rank %d lies beyond its pool", import->rank);
        return false;
    }
    tb_cursor_start_row(&job->source, (void *)(uintptr_t)(base + at), bytes);
    return true;
}

/* Copies some of the chunk's elements into the thread's buffer, and from there, cast and folded, to where they belong. */
static bool move_some(tb_job *job, uint64_t limit, tb_error *err) {
    if (!job->started && !start_chunk(job, err)) {
        return false;
    }
    uint64_t size = tb_dtype_size(tb_flow_chunk(&job->flow)->source_dtype);
    uint64_t elements = tb_least(job->flow.chunk_left / job->flow.item, tb_least(limit, TB_BOUNCE_BYTES) / size);
    uint64_t bytes;
    uint64_t used = 0;
    int count = tb_cursor_iov(&job->source, job->iov, TB_IOVECS, elements * size, &bytes);
    for (int i = 0; i < count; used += job->iov[i++].iov_len) {
        if (!fetch(job->exchange->import, job->bounce + used, job->iov[i].iov_len, (uint64_t)(uintptr_t)job->iov[i].iov_base,
                   err)) {
            return false;
        }
    }
    tb_cursor_advance(&job->source, bytes);
    tb_cursor row;
    tb_cursor_start_row(&row, job->bounce, bytes);
    job->started = !tb_flow_move(&job->flow, &row, bytes / size);
    return true;
}

static enum tb_moved file_move(tb_job *job, uint64_t limit, tb_error *err) {
    uint64_t until = job->flow.left > limit ? job->flow.left - limit : 0;
    while (job->flow.left > until) {
        if (!move_some(job, limit, err)) {
            return TB_MOVED_NOT;
        }
    }
    return job->flow.left > 0 ? TB_MOVED_PART : TB_MOVED_ALL;
}

const tb_carrier tb_carrier_file = {
    .number = TB_CARRIER_FILE,
    .name = "file",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .same_host = true,
    .describe = file_describe,
    .open = file_open,
    .close = file_close,
    .move = file_move,
};
