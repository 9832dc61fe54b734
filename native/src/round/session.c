/* Opening and closing a session, and its events. Each call of the interface takes the session's lock for itself. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "identity/identity.h"
#include "round/carrier.h"
#include "round/own.h"
#include "wire/conn.h"
#include "base/error.h"
#include "round/transfer.h"
#include "base/handle.h"
#include "round/peers.h"
#include "round/region.h"
#include "round/select.h"
#include "wire/loop.h"
#include "wire/peer.h"
#include "round/invariants.h"

enum { MOST_RANKS = 1 << 20 };
/* An orderly end waits this long for peers to read it. */
#define FAREWELL_NS 500000000ull

/* ---- opening ------------------------------------------------------------------------------------------- */

static int32_t check_options(const tb_session_options *options, tb_error *err) {
    if (options->struct_bytes != sizeof *options) {
        return tb_fail(err, TB_EVERSION, -1, 0, "the options have %u bytes, not the %zu of this version",
                       options->struct_bytes, sizeof *options);
    }
    if (options->world < 1 || options->world > MOST_RANKS || options->rank < 0
        || options->rank >= options->world) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "rank %d is not in a world of %d", options->rank, options->world);
    }
    if (options->io_threads < 1 || options->io_threads > TB_LOOPS) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%u threads were asked for; there may be 1 to %d",
                       options->io_threads, TB_LOOPS);
    }
    if (options->kind > TB_BACKEND_TCP) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "there is no transport %u", options->kind);
    }
    if (options->peer_timeout_ms < 10 || options->quiesce_ms > 3600000) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the timeouts, %u and %u ms, are out of range",
                       options->peer_timeout_ms, options->quiesce_ms);
    }
    return TB_OK;
}

/* TB_EQUARANTINED if a carrier left something behind that still runs. */
static int32_t free_session(tb_session *session, tb_error *err) {
    int32_t code = TB_OK;
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
    for (uint32_t i = 0; i < session->region_count; i++) {
        tb_region_withdraw(session, &session->regions[i]);
    }
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        int32_t freed = (*at)->session_free == NULL ? TB_OK : (*at)->session_free(session, err);
        code = freed == TB_OK ? code : freed;
    }
    tb_net_free(&session->net);
    tb_threads_free(session);
    if (session->device != NULL && code == TB_OK) {
        code = session->devices->close(session->device, session->options.quiesce_ms, err);
    }
    free(session->regions);
    pthread_cond_destroy(&session->thread_ended);
    free(session);
    return code;
}

/* The session's memory and its pipe; *event_fd is the caller's end. */
static int32_t make_session(const tb_session_options *options, const tb_backend *backend,
                            const tb_carrier *const *carriers, const tb_device_kind *devices, tb_session **made,
                            int32_t *event_fd, tb_error *err) {
    tb_session *session = calloc(1, sizeof *session);
    if (session == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a session");
    }
    session->carriers = carriers;
    session->devices = devices;
    tb_cond_init(&session->thread_ended);
    int32_t code = tb_net_init(&session->net, options, backend, &tb_round_peers, event_fd, err);
    if (code != TB_OK) {
        free_session(session, NULL);
        return code;
    }
    *made = session;
    return TB_OK;
}

/* What this session says of itself in PREPARE, but for the memory of a transfer. */
static int32_t identify(tb_session *session, tb_error *err) {
    const uint32_t flags = (uint32_t)TB_CARRY_APART | TB_CARRY_SHARED_GPU; /* these are no carriers */
    tb_wire_identity *identity = &session->identity;
    uint32_t asked = session->options.carriers & ~flags;
    uint32_t built = 0;
    bool streams_alone = true;
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        uint32_t bit = 1u << (*at)->number;
        built |= bit;
        identity->carriers |= asked == 0 && (*at)->way == TB_WAY_STREAM ? bit : asked & bit;
        streams_alone = streams_alone && ((asked & bit) == 0 || (*at)->way == TB_WAY_STREAM);
    }
    if ((asked & ~built) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "carriers 0x%x were asked for, but the native library has 0x%x: it comes from another version; "
                       "run `npm rebuild "
                       "tensorbus`, in a clone `npm run build:native`",
                       asked, built);
    }
    identity->carriers |= session->options.carriers & TB_CARRY_SHARED_GPU;
    identity->pid = getpid();
    identity->user = geteuid();
    identity->book = -1;
    memcpy(identity->device, session->options.device, sizeof identity->device);
    return streams_alone ? TB_OK : tb_identity_fill(identity, err);
}

static int32_t open_device(tb_session *session, tb_error *err) {
    static const uint8_t none[sizeof session->options.device];
    bool named = memcmp(session->options.device, none, sizeof none) != 0;
    bool needed = false, of_use = false;
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        if ((session->identity.carriers >> (*at)->number & 1) != 0) {
            needed = needed || (*at)->memory == TB_MEMORY_CUDA;
            of_use = of_use || ((*at)->memory & TB_MEMORY_CUDA) != 0;
        }
    }
    if ((needed && !named) || (named && !of_use)) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "a carrier of CUDA memory needs a device, and a device needs such a carrier");
    }
    return named ? session->devices->open(session->options.device, &session->device, err) : TB_OK;
}

static int32_t open_carriers(tb_session *session, tb_error *err) {
    int32_t code = TB_OK;
    for (const tb_carrier *const *at = session->carriers; *at != NULL && code == TB_OK; at++) {
        bool uses = (session->identity.carriers >> (*at)->number & 1) != 0;
        code = uses && (*at)->session_open != NULL ? (*at)->session_open(session, err) : TB_OK;
    }
    return code;
}

int32_t tb_session_make(const tb_session_options *options, const tb_backend *backend,
                        const tb_carrier *const *carriers, const tb_device_kind *devices, tb_session **made,
                        int32_t *event_fd, tb_error *err) {
    tb_session *session = NULL;
    int32_t code = check_options(options, err);
    if (code == TB_OK) {
        code = tb_carriers_check(carriers, err);
    }
    if (code == TB_OK) {
        code = make_session(options, backend, carriers, devices, &session, event_fd, err);
    }
    if (code != TB_OK) {
        return code;
    }
    code = identify(session, err);
    if (code == TB_OK) {
        code = open_device(session, err);
    }
    if (code == TB_OK) {
        code = open_carriers(session, err);
    }
    if (code == TB_OK) {
        code = tb_threads_make(session, err);
    }
    if (code != TB_OK) {
        close(*event_fd);
        free_session(session, NULL);
        return code;
    }
    *made = session;
    return TB_OK;
}

int32_t tb_session_open_with(const tb_session_options *options, const tb_carrier *const *carriers,
                             const tb_device_kind *devices, uint64_t *handle, int32_t *event_fd, tb_error *err) {
    tb_session *session = NULL;
    const tb_backend *backend = options->kind == TB_BACKEND_TCP ? &tb_backend_tcp : &tb_backend_memory;
    int32_t code = tb_session_make(options, backend, carriers, devices, &session, event_fd, err);
    if (code != TB_OK) {
        return code;
    }
    code = tb_threads_start(session, err);
    if (code != TB_OK) {
        goto no_threads;
    }
    code = session->backend->open(&session->net, err);
    if (code != TB_OK) {
        goto no_backend;
    }
    code = tb_handle_add(TB_HANDLE_SESSION, session, NULL, handle, err);
    if (code == TB_OK) {
        tb_own_add(session);
        return TB_OK;
    }
    session->backend->close(&session->net);
no_backend:
    tb_threads_join(session, UINT64_MAX);
no_threads:
    close(*event_fd);
    free_session(session, NULL);
    return code;
}

/* ---- closing ------------------------------------------------------------------------------------------- */

/* Nothing of this session may be touched any more. True if peers may still read in it. */
static bool end_rounds(tb_session *session) {
    bool exposed = false;
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (!transfer->failing) {
            tb_touch_goes_stale(transfer);
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
    for (uint32_t i = 0; i < session->loop_count; i++) {
        for (tb_conn *conn = session->loops[i]->conns; conn != NULL; conn = conn->next) {
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
    for (uint32_t i = 0; i < session->loop_count; i++) {
        for (tb_conn *conn = session->loops[i]->conns; conn != NULL; conn = conn->next) {
            if (conn->doomed) {
                tb_conn_kick(conn);
            }
        }
        tb_loop_wake(session->loops[i]);
    }
}

static void stop(tb_session *session) {
    uint64_t quiesce = (uint64_t)session->options.quiesce_ms * 1000000;
    session->backend->close(&session->net);
    pthread_mutex_lock(&session->lock);
    session->closing = true;
    bool exposed = end_rounds(session);
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        if ((*at)->session_stop != NULL) {
            (*at)->session_stop(session);
        }
    }
    session->stop_at = tb_deadline(quiesce < FAREWELL_NS || exposed ? quiesce : FAREWELL_NS);
    if (session->stale_pulls == 0) {
        say_farewell(session);
    }
    session->stop = true;
    for (uint32_t i = 0; i < session->loop_count; i++) {
        tb_loop_wake(session->loops[i]);
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
            if (exchange->awaits_quiet && tb_identity_may_live(&session->identity, &exchange->identity)) {
                transfer->quarantined = true;
                session->quarantined = true;
            }
        }
    }
    return session->quarantined;
}

static bool carriers_rest(tb_session *session, uint64_t until) {
    bool rest = true;
    for (const tb_carrier *const *at = session->carriers; *at != NULL && rest; at++) {
        rest = (*at)->session_rest == NULL || (*at)->session_rest(session, until);
    }
    return rest;
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
    if (!carriers_rest(session, tb_deadline(quiesce))) {
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
    int32_t code = free_session(session, err);
    if (code == TB_OK && quarantined) {
        return tb_fail(err, TB_EQUARANTINED, -1, 0, "a peer may still read what was registered");
    }
    return code;
}

/* ---- the rest of the interface ------------------------------------------------------------------------- */

int32_t tb_session_next_event(uint64_t handle, tb_event *event, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_net_next_event(&session->net, event);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return TB_OK;
}

int32_t tb_session_identity(uint64_t handle, uint8_t identity[TB_IDENTITY_BYTES], tb_error *err) {
    _Static_assert(sizeof(tb_wire_identity) == TB_IDENTITY_BYTES, "identity");
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    memcpy(identity, &session->identity, sizeof session->identity);
    tb_handle_put(handle);
    return TB_OK;
}
