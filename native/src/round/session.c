/* tb_session_*: opening and closing, events. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "carriers/book.h"
#include "carriers/carrier.h"
#include "carriers/own.h"
#include "wire/conn.h"
#include "cuda/device.h"
#include "base/error.h"
#include "round/transfer.h"
#include "base/handle.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"

enum { MOST_RANKS = 1 << 20, MOST_FAULTS = 256 };
/* An orderly end waits this long for peers to read it. */
#define FAREWELL_NS 500000000ull

/* ---- events -------------------------------------------------------------------------------------------- */

void tb_session_event_reserved(tb_session *session, const tb_event *event, tb_event_node **reserved) {
    tb_event_node *node = *reserved;
    bool first = session->events == NULL;
    /* Who closes waits for one event more, and for no other. */
    if ((session->closing && event->kind != TB_EVENT_ENDED) || node == NULL) {
        return;
    }
    *reserved = NULL;
    node->next = NULL;
    node->event = *event;
    *session->events_end = node;
    session->events_end = &node->next;
    if (first) {
        /* The pipe is empty, or holds a byte that was not read yet; both will be seen. */
        ssize_t written = write(session->event_write, "", 1);
        (void)written;
    }
}

bool tb_session_event(tb_session *session, const tb_event *event) {
    tb_event_node *node = malloc(sizeof *node);
    bool made = node != NULL;
    tb_session_event_reserved(session, event, &node);
    bool taken = made && node == NULL;
    free(node);
    return taken;
}

/* Strangers cause them, as many as they like: those that nobody takes are not kept for ever. */
void tb_session_fault(tb_session *session, const tb_error *error) {
    tb_event event = {.kind = TB_EVENT_FAULT, .error = *error};
    if (session->fault_count < MOST_FAULTS && tb_session_event(session, &event)) {
        session->fault_count++;
    }
}

static void next_event(tb_session *session, tb_event *event) {
    tb_event_node *node = session->events;
    if (node == NULL) {
        memset(event, 0, sizeof *event);
        return;
    }
    *event = node->event;
    session->fault_count -= event->kind == TB_EVENT_FAULT;
    session->events = node->next;
    if (session->events == NULL) {
        session->events_end = &session->events;
        char bytes[8];
        ssize_t drained = read(session->event_read, bytes, sizeof bytes);
        (void)drained; /* whoever watches the pipe may have been faster */
    }
    free(node);
}

/* ---- opening ------------------------------------------------------------------------------------------- */

void tb_session_timer(tb_session *session, uint64_t at) {
    if (at < session->next_timer) {
        session->next_timer = at;
        tb_thread_wake(&session->threads[0]);
    }
}

tb_peer *tb_session_peer(tb_session *session, int32_t rank) {
    tb_peer *peer = session->peers[rank];
    if (peer == NULL) {
        peer = calloc(1, sizeof *peer);
        if (peer != NULL) {
            peer->session = session;
            peer->rank = rank;
            session->peers[rank] = peer;
        }
    }
    return peer;
}

static int32_t check_options(const tb_session_options *options, tb_error *err) {
    if (options->struct_bytes != sizeof *options) {
        return tb_fail(err, TB_EVERSION, -1, 0, "options of %u bytes, not %zu", options->struct_bytes,
                       sizeof *options);
    }
    if (options->world < 1 || options->world > MOST_RANKS || options->rank < 0
        || options->rank >= options->world) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "rank %d of %d", options->rank, options->world);
    }
    if (options->io_threads < 1 || options->io_threads > 16) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%u threads, not 1 to 16", options->io_threads);
    }
    if (options->kind > TB_BACKEND_TCP) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "no transport %u", options->kind);
    }
    if (options->peer_timeout_ms < 10 || options->quiesce_ms > 3600000) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "timeouts of %u and %u ms are out of range",
                       options->peer_timeout_ms, options->quiesce_ms);
    }
    return TB_OK;
}

static void free_session(tb_session *session) {
    while (session->imports != NULL) {
        tb_import *import = session->imports;
        session->imports = import->next;
        if (import->exchange != NULL) {
            import->exchange->import = NULL;
        }
        tb_import_free(import);
    }
    for (tb_transfer *transfer = session->transfers; transfer != NULL;) {
        tb_transfer *next = transfer->next;
        tb_transfer_free(transfer);
        transfer = next;
    }
    for (int32_t rank = 0; session->peers != NULL && rank < session->options.world; rank++) {
        if (session->peers[rank] != NULL) {
            tb_peer_free(session->peers[rank]);
        }
    }
    tb_nccl_free(session);
    while (session->events != NULL) {
        tb_event_node *node = session->events;
        session->events = node->next;
        free(node);
    }
    if (session->event_read >= 0) {
        close(session->event_read);
        close(session->event_write);
    }
    tb_threads_free(session);
    session->backend->free(session);
    if (session->device != NULL) {
        tb_device_close(session->device, session->options.quiesce_ms);
    }
    tb_book_free(session->book);
    free(session->peers);
    free(session->regions);
    pthread_cond_destroy(&session->thread_ended);
    pthread_mutex_destroy(&session->lock);
    free(session);
}

/* The session's memory and its pipe; *event_fd is the caller's end. */
static int32_t make_session(const tb_session_options *options, tb_session **made, int32_t *event_fd,
                            tb_error *err) {
    int32_t code = TB_OK;
    int ends[2] = {-1, -1};
    tb_session *session = calloc(1, sizeof *session);
    if (session == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a session");
    }
    tb_cond_init(&session->thread_ended);
    pthread_mutex_init(&session->lock, NULL);
    session->options = *options;
    session->backend = options->kind == TB_BACKEND_TCP ? &tb_backend_tcp : &tb_backend_memory;
    session->events_end = &session->events;
    session->event_read = -1;
    session->listen_fd = -1;
    session->spare_fd = -1;
    session->next_timer = UINT64_MAX;
    session->peers = calloc((size_t)options->world, sizeof(tb_peer *));
    if (session->peers == NULL) {
        code = tb_fail(err, TB_ENO_MEMORY, -1, 0, "a session of %d ranks", options->world);
        goto fail;
    }
    if (getrandom(&session->incarnation, sizeof session->incarnation, 0) != sizeof session->incarnation
        || pipe2(ends, O_NONBLOCK | O_CLOEXEC) != 0) {
        code = tb_fail(err, TB_ESYSTEM, -1, errno, "the session's pipe");
        goto fail;
    }
    session->event_write = ends[1];
    session->event_read = fcntl(ends[0], F_DUPFD_CLOEXEC, 0);
    if (session->event_read < 0) {
        code = tb_fail(err, TB_ESYSTEM, -1, errno, "the session's pipe");
        close(ends[0]);
        close(ends[1]);
        goto fail;
    }
    *made = session;
    *event_fd = ends[0];
    return TB_OK;
fail:
    free_session(session);
    return code;
}

static int32_t open_device(tb_session *session, tb_error *err) {
    static const uint8_t none[sizeof session->options.device];
    bool needed = (session->options.carriers & (TB_CARRY_CUDA_IPC | TB_CARRY_NCCL)) != 0;
    bool named = memcmp(session->options.device, none, sizeof none) != 0;
    if (needed != named) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "carriers of CUDA memory and a device go together");
    }
    return named ? tb_device_open(session->options.device, &session->device, err) : TB_OK;
}

int32_t tb_session_open(const tb_session_options *options, uint64_t *handle, int32_t *event_fd,
                        tb_error *err) {
    tb_session *session = NULL;
    int32_t code = check_options(options, err);
    if (code == TB_OK) {
        code = make_session(options, &session, event_fd, err);
    }
    if (code != TB_OK) {
        return code;
    }
    code = tb_host_identify(session, err);
    if (code == TB_OK) {
        code = open_device(session, err);
    }
    if (code == TB_OK) {
        code = tb_threads_start(session, err);
    }
    if (code != TB_OK) {
        goto no_threads;
    }
    code = session->backend->open(session, err);
    if (code != TB_OK) {
        goto no_backend;
    }
    code = tb_handle_add(TB_HANDLE_SESSION, session, NULL, handle, err);
    if (code == TB_OK) {
        tb_own_add(session);
        return TB_OK;
    }
    session->backend->close(session);
no_backend:
    tb_threads_join(session, UINT64_MAX);
no_threads:
    close(*event_fd);
    free_session(session);
    return code;
}

/* ---- closing ------------------------------------------------------------------------------------------- */

/* Nothing of this session may be touched any more. True where peers may still read in it. */
static bool end_rounds(tb_session *session) {
    bool exposed = false;
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (!transfer->failing) {
            session->stale_pulls += transfer->pulling;
        }
        transfer->failing = true;
        atomic_store(&transfer->stop, true);
        transfer->jobs.count = 0;
        for (uint32_t i = 0; i < transfer->exchange_count; i++) {
            transfer->exchanges[i].ready.count = 0;
        }
        if (transfer->state == TB_TRANSFER_RUNNING) {
            tb_pulls_await_quiet(transfer);
            exposed |= transfer->quiet_deadline != 0;
        }
    }
    tb_threads_sweep(session);
    return exposed;
}

/* Peers hear of the end, once nothing is read of them any more. */
static void say_farewell(tb_session *session) {
    session->farewell = true;
    for (int32_t rank = 0; rank < session->options.world; rank++) {
        tb_peer *peer = session->peers[rank];
        if (peer == NULL) {
            continue;
        }
        peer->retry_at = 0;
        tb_peer_say(peer, &(tb_wire_header){.kind = TB_FRAME_BYE}, NULL);
    }
    for (uint32_t i = 0; i < session->thread_count; i++) {
        for (tb_conn *conn = session->threads[i].conns; conn != NULL; conn = conn->next) {
            if (conn->state == TB_CONN_OPEN) {
                tb_conn_close_orderly(conn, session->stop_at);
            } else if (conn->state != TB_CONN_CLOSING) {
                tb_conn_doom(conn);
            }
        }
    }
}

void tb_session_rests(tb_session *session) {
    if (session->closing && !session->farewell) {
        say_farewell(session);
    }
    for (uint32_t i = 0; i < session->thread_count; i++) {
        for (tb_conn *conn = session->threads[i].conns; conn != NULL; conn = conn->next) {
            if (conn->doomed) {
                tb_conn_kick(conn);
            }
        }
        tb_thread_wake(&session->threads[i]);
    }
}

static void stop(tb_session *session) {
    uint64_t quiesce = (uint64_t)session->options.quiesce_ms * 1000000;
    session->backend->close(session);
    pthread_mutex_lock(&session->lock);
    session->closing = true;
    bool exposed = end_rounds(session);
    tb_nccl_stop(session);
    session->stop_at = tb_deadline(quiesce < FAREWELL_NS || exposed ? quiesce : FAREWELL_NS);
    if (session->stale_pulls == 0) {
        say_farewell(session);
    }
    session->stop = true;
    for (uint32_t i = 0; i < session->thread_count; i++) {
        tb_thread_wake(&session->threads[i]);
    }
    pthread_mutex_unlock(&session->lock);
}

static bool is_stopping(tb_session *session) {
    pthread_mutex_lock(&session->lock);
    bool stopping = session->closing;
    pthread_mutex_unlock(&session->lock);
    return stopping;
}

int32_t tb_session_stop(uint64_t handle, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    if (!is_stopping(session)) {
        stop(session);
    }
    tb_handle_put(handle);
    return TB_OK;
}

/* What peers may still read, and have not said that they do not, stays mapped for good. */
static bool find_quarantined(tb_session *session) {
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        for (uint32_t i = 0; i < transfer->exchange_count; i++) {
            const tb_exchange *exchange = &transfer->exchanges[i];
            if (exchange->awaits_quiet && tb_identity_lives(&exchange->identity)) {
                transfer->quarantined = true;
                session->quarantined = true;
            }
        }
    }
    return session->quarantined;
}

int32_t tb_session_close(uint64_t handle, tb_error *err) {
    tb_session *session = tb_handle_take(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    tb_own_remove(session);
    if (!is_stopping(session)) {
        stop(session);
    }
    uint64_t quiesce = (uint64_t)session->options.quiesce_ms * 1000000;
    if (!tb_nccl_rest(session, tb_deadline(quiesce))) {
        return tb_fail(err, TB_EQUARANTINED, session->options.rank, 0,
                       "the GPU did not come to rest within %u ms", session->options.quiesce_ms);
    }
    /* Threads take as long as that to say farewell, and then a little. */
    if (!tb_threads_join(session, tb_deadline(quiesce + FAREWELL_NS))) {
        /* Something still runs: what it may touch is left to it. */
        return tb_fail(err, TB_EQUARANTINED, session->options.rank, 0, "a thread did not end within %u ms",
                       session->options.quiesce_ms);
    }
    bool quarantined = find_quarantined(session);
    free_session(session);
    if (quarantined) {
        return tb_fail(err, TB_EQUARANTINED, -1, 0, "a peer may still read what was registered");
    }
    return TB_OK;
}

/* ---- the rest of the interface ------------------------------------------------------------------------- */

int32_t tb_session_next_event(uint64_t handle, tb_event *event, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    next_event(session, event);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return TB_OK;
}
