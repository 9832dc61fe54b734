/*
 * The carrier of one host: a target reads shared memory through a mapping of its own, and private memory of another
 * process by process_vm_readv, through a buffer that stays in the second-level cache. A process that is read in is
 * pinned by a pidfd, and known by when it began: a number that was given to another process is noticed before a bucket
 * counts. A source describes its memory with the session's lock; a target opens and moves without it.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "carriers/shm/book.h"
#include "carriers/registry.h"
#include "identity/identity.h"
#include "round/own.h"
#include "base/error.h"
#include "flow/flow_parts.h"
#include "memory/shared_table.h"
#include "carriers/shm/shm_map.h"
#include "kernels/dtype.h"
#include "round/carrier.h"

typedef struct shm_region {
    const uint8_t *base; /* its address in this process; NULL: it lies in the other one only, */
    uint64_t there;      /* at this address of it */
    tb_shm_map *map;
} shm_region;

typedef struct shm_import {
    int pid_fd;
    shm_region regions[];
} shm_import;

/* ---- prepare ------------------------------------------------------------------------------------------- */

static tb_book *book_of(const tb_session *session) {
    return session->carrier_state[TB_CARRIER_SHM];
}

static int32_t shm_session_open(tb_session *session, tb_error *err) {
    tb_book *book = NULL;
    int32_t code = tb_book_create(session->options.world, &book, err);
    if (code == TB_OK) {
        session->carrier_state[TB_CARRIER_SHM] = book;
        session->identity.book = tb_book_file(book);
    }
    return code;
}

static int32_t shm_session_free(tb_session *session, tb_error *err) {
    (void)err;
    tb_book_free(book_of(session));
    return TB_OK;
}

static int32_t shm_describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                            tb_error *err) {
    tb_shared shared;
    *bytes = 0;
    if (region->memory != TB_MEMORY_SHARED) {
        return tb_book_note(book_of(session), number, region->address)
                   ? TB_OK
                   : tb_fail(err, TB_EUNSUPPORTED, session->options.rank, 0, "a book has no room for more regions");
    }
    if (!tb_shared_find(region->address, region->bytes, &shared)) {
        return tb_fail(err, TB_EREGION, session->options.rank, 0,
                       "shared memory was unmapped while it is registered");
    }
    tb_shm_file file = {
        .descriptor = shared.fd,
        .device = shared.device,
        .inode = shared.inode,
        .bytes = shared.file_bytes,
        .region_at = region->address - shared.address,
        .region_bytes = region->bytes,
    };
    memcpy(blob, &file, sizeof file);
    *bytes = sizeof file;
    return TB_OK;
}

static void shm_described(const tb_exchange *exchange) {
    const tb_session *session = exchange->transfer->session;
    tb_book_answer(book_of(session), session->options.rank, exchange->peer->rank, exchange->identity.nonce);
}

static int32_t pin(tb_import *import, shm_import *opened, tb_error *err) {
    opened->pid_fd = (int)syscall(SYS_pidfd_open, import->identity.pid, 0);
    int os_errno = opened->pid_fd < 0 ? errno : 0;
    if (os_errno == ENOSYS || os_errno == EPERM) {
        return tb_fail(err, TB_EUNSUPPORTED, import->rank, os_errno,
                       "the process of rank %d cannot be opened (pidfd_open)", import->rank);
    }
    if (os_errno != 0 && os_errno != ESRCH) {
        return tb_fail(err, TB_ESYSTEM, import->rank, os_errno, "the process of rank %d cannot be opened (pidfd_open)",
                       import->rank);
    }
    if (os_errno == ESRCH || !tb_identity_lives(&import->identity)) {
        return tb_fail(err, TB_EPEER_LOST, import->rank, 0, "the process of rank %d is gone", import->rank);
    }
    return TB_OK;
}

/*
 * Finds out before a round whether the kernel lets us read there at all: it is asked for the first and the last
 * byte.
 */
static int32_t try_reading(const tb_import *import, const tb_wire_region *region, uint64_t there, tb_error *err) {
    uint8_t bytes[2];
    uint64_t last;
    if (there == 0 || __builtin_add_overflow(there, region->bytes - 1, &last)) {
        return tb_fail(err, TB_EREGION, import->rank, 0, "rank %d does not say where its memory lies", import->rank);
    }
    struct iovec here = {bytes, sizeof bytes};
    struct iovec ends[] = {{(void *)(uintptr_t)there, 1}, {(void *)(uintptr_t)last, 1}};
    ssize_t got = process_vm_readv(import->identity.pid, &here, 1, ends, 2, 0);
    if (got == (ssize_t)sizeof bytes) {
        return TB_OK;
    }
    int os_errno = got < 0 ? errno : EFAULT;
    if (os_errno == EPERM || os_errno == ENOSYS || os_errno == EACCES) {
        return tb_fail(err, TB_EUNSUPPORTED, import->rank, os_errno,
                       "process_vm_readv of private memory of rank %d is not allowed "
                       "(kernel.yama.ptrace_scope, seccomp, "
                       "or a process that is not dumpable); shared memory needs no such right",
                       import->rank);
    }
    return tb_fail(err, os_errno == ESRCH ? TB_EPEER_LOST : TB_EREGION, import->rank, os_errno,
                   "private memory of rank %d cannot be read", import->rank);
}

static int32_t open_region(tb_import *import, uint32_t index, int book, tb_error *err) {
    shm_import *opened = import->opened;
    const tb_wire_region *region = &import->regions[index];
    shm_region *own = &opened->regions[index];
    if (region->memory != TB_MEMORY_SHARED) {
        own->there = tb_book_look(book, import->session->options.world, region->number);
        return region->pieces > 0 ? tb_fail(err, TB_EPROTOCOL, import->rank, 0, "a pool in private memory")
               : region->bytes == 0 ? TB_OK
                                    : try_reading(import, region, own->there, err);
    }
    tb_shm_file file;
    if (region->blob_bytes != sizeof file) {
        return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d did not describe its shared memory", import->rank);
    }
    memcpy(&file, tb_import_blob(import, index), sizeof file);
    if (file.region_bytes != region->bytes) {
        return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d exports a malformed region", import->rank);
    }
    int32_t code = tb_shm_map_open(&import->identity, &file, import->rank, &own->map, err);
    if (code == TB_OK) {
        own->base = tb_shm_map_at(own->map) + file.region_at;
    }
    return code;
}

/* It was the same process all along if it is still there. */
static bool is_there(const shm_import *opened) {
    struct pollfd process = {.fd = opened->pid_fd, .events = POLLIN};
    return poll(&process, 1, 0) == 0;
}

static int32_t lost(const tb_import *import, int os_errno, tb_error *err) {
    return tb_fail(err, TB_EPEER_LOST, import->rank, os_errno, "rank %d is gone: its memory cannot be read",
                   import->rank);
}

/* A session of this process: its memory is ours. */
static int32_t take_own(tb_import *import, const uint64_t *addresses, tb_error *err) {
    shm_import *opened = import->opened;
    for (uint32_t i = 0; i < import->region_count; i++) {
        if (addresses[i] == 0) {
            return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d has no region %u", import->rank,
                           import->regions[i].number);
        }
        opened->regions[i].base = (const uint8_t *)(uintptr_t)addresses[i];
    }
    return TB_OK;
}

static int32_t open_other(tb_import *import, tb_error *err) {
    const tb_session *session = import->session;
    shm_import *opened = import->opened;
    int book = -1;
    int32_t code = pin(import, opened, err);
    if (code == TB_OK) {
        code = tb_book_open(&import->identity, import->rank, session->options.world, session->options.rank,
                            import->nonce, &book, err);
    }
    for (uint32_t i = 0; i < import->region_count && code == TB_OK; i++) {
        code = open_region(import, i, book, err);
    }
    if (book >= 0) {
        close(book);
    }
    return code != TB_OK && code != TB_EAUTH ? code : is_there(opened) ? code : lost(import, 0, err);
}

static int32_t shm_open(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    shm_import *opened = calloc(1, sizeof *opened + import->region_count * sizeof *opened->regions);
    uint64_t *addresses = calloc((size_t)import->region_count + 1, sizeof *addresses);
    import->opened = opened;
    if (opened == NULL || addresses == NULL) {
        free(addresses);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u regions of rank %d", import->region_count,
                       import->rank);
    }
    opened->pid_fd = -1;
    int32_t code =
        tb_own_find(import, exchange, addresses) ? take_own(import, addresses, err) : open_other(import, err);
    free(addresses);
    return code;
}

static void shm_close(tb_import *import) {
    shm_import *opened = import->opened;
    if (opened == NULL) {
        return;
    }
    for (uint32_t i = 0; i < import->region_count; i++) {
        tb_shm_map_close(opened->regions[i].map);
    }
    if (opened->pid_fd >= 0) {
        close(opened->pid_fd);
    }
    free(opened);
    import->opened = NULL;
}

/* ---- moving -------------------------------------------------------------------------------------------- */

/* A pool says behind its pieces where they lie; they stay until we have read them. */
static int32_t start_piece(tb_job *job, const tb_import *import, const tb_wire_end *end, uint64_t bytes,
                           tb_error *err) {
    const shm_import *opened = import->opened;
    const tb_wire_region *region = &import->regions[end->region];
    const uint8_t *base = opened->regions[end->region].base;
    const uint64_t *places = (const uint64_t *)(base + region->pieces_at);
    uint64_t at = __atomic_load_n(&places[end->at], __ATOMIC_RELAXED);
    if (at > region->pieces_at || bytes > region->pieces_at - at) {
        return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "a reduced piece of rank %d lies beyond its pool",
                       import->rank);
    }
    tb_cursor_start_row(&job->source, (uint8_t *)(uintptr_t)(base + at), bytes);
    return TB_OK;
}

static const tb_wire_end *end_of(const tb_job *job) {
    uint8_t stage = tb_bucket_channel(&job->transfer->program, job->bucket)->stage;
    return tb_import_end(job->exchange->import, stage, job->flow.chunk);
}

static int32_t start_chunk(tb_job *job, tb_error *err) {
    const tb_import *import = job->exchange->import;
    const shm_import *opened = import->opened;
    const tb_wire_end *end = end_of(job);
    if (end->descriptor == TB_NONE) {
        uint64_t bytes = tb_flow_chunk(&job->flow)->elements * tb_dtype_size(end->dtype);
        return start_piece(job, import, end, bytes, err);
    }
    const uint8_t *base = opened->regions[end->region].base;
    uintptr_t at = base != NULL ? (uintptr_t)base : (uintptr_t)opened->regions[end->region].there;
    tb_cursor_start(&job->source, (void *)(at + end->at), import->words + end->descriptor);
    return TB_OK;
}

/* The next elements of the chunk into the buffer; how many. */
static uint64_t fetch(tb_job *job, uint64_t elements, tb_error *err) {
    const tb_import *import = job->exchange->import;
    uint64_t size = tb_dtype_size(tb_flow_chunk(&job->flow)->source_dtype);
    uint64_t bytes;
    elements = tb_least(elements, TB_BOUNCE_BYTES / size);
    int count = tb_cursor_iov(&job->source, job->iov, TB_IOVECS, elements * size, &bytes);
    struct iovec here = {job->bounce, bytes};
    ssize_t got = process_vm_readv(import->identity.pid, &here, 1, job->iov, (unsigned long)count, 0);
    if (got < 0 || (uint64_t)got != bytes) {
        lost(import, got < 0 ? errno : EFAULT, err);
        return 0;
    }
    tb_cursor_advance(&job->source, bytes);
    return bytes / size;
}

/* Moves some of the chunk's elements. False if they cannot be read. */
static bool move_some(tb_job *job, uint64_t limit, tb_error *err) {
    const shm_import *opened = job->exchange->import->opened;
    if (!job->started && start_chunk(job, err) != TB_OK) {
        return false;
    }
    uint64_t elements = tb_least(job->flow.chunk_left / job->flow.item, limit / job->flow.item);
    if (opened->regions[end_of(job)->region].base != NULL) {
        job->started = !tb_flow_move(&job->flow, &job->source, elements);
        return true;
    }
    elements = fetch(job, elements, err);
    if (elements == 0) {
        return false;
    }
    tb_cursor row;
    uint64_t size = tb_dtype_size(tb_flow_chunk(&job->flow)->source_dtype);
    tb_cursor_start_row(&row, job->bounce, elements * size);
    job->started = !tb_flow_move(&job->flow, &row, elements);
    return true;
}

static enum tb_moved shm_move(tb_job *job, uint64_t limit, tb_error *err) {
    const tb_import *import = job->exchange->import;
    const shm_import *opened = import->opened;
    uint64_t until = job->flow.left > limit ? job->flow.left - limit : 0;
    while (job->flow.left > until) {
        if (!move_some(job, limit, err)) {
            return TB_MOVED_NOT;
        }
    }
    if (job->flow.left > 0) {
        return TB_MOVED_PART;
    }
    if (opened->pid_fd >= 0 && !is_there(opened)) {
        lost(import, 0, err);
        return TB_MOVED_NOT;
    }
    return TB_MOVED_ALL;
}

const tb_carrier tb_carrier_shm = {
    .number = TB_CARRIER_SHM,
    .name = "shm",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .same_host = true,
    .session_open = shm_session_open,
    .session_free = shm_session_free,
    .describe = shm_describe,
    .described = shm_described,
    .open = shm_open,
    .close = shm_close,
    .move = shm_move,
};
