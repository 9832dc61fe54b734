/* What callers ask of a transfer that is prepared: each call takes the session's lock for itself. */
#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/handle.h"
#include "round/carrier.h"
#include "round/round.h"
#include "round/transfer_meet.h"
#include "round/transfer_peer.h"

/* ---- rounds -------------------------------------------------------------------------------------------- */

static int32_t post(tb_transfer *transfer, uint64_t round, uint64_t timeout_ns, tb_error *err) {
    if (transfer->session->closing) {
        return tb_fail(err, TB_ECLOSED, -1, 0, "the session is closed");
    }
    switch (transfer->state) {
    case TB_TRANSFER_PREPARING:
    case TB_TRANSFER_ENDING:
        return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is not prepared yet", transfer->key);
    case TB_TRANSFER_RUNNING:
        return tb_fail(err, TB_EBUSY, -1, 0, "round %llu of \"%.100s\" is under way",
                       (unsigned long long)transfer->round, transfer->key);
    case TB_TRANSFER_DEAD:
        return tb_fail(err, TB_EINVALIDATED, -1, 0, "\"%.100s\" could not be prepared", transfer->key);
    case TB_TRANSFER_READY:
        break;
    }
    if (transfer->quarantined) {
        return tb_fail(err, TB_EQUARANTINED, -1, 0, "memory of \"%.100s\" may still be read by a peer",
                       transfer->key);
    }
    if (round <= transfer->round) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "round %llu cannot follow round %llu: rounds begin at 1 and grow",
                       (unsigned long long)round, (unsigned long long)transfer->round);
    }
    if (transfer->reserved == NULL && (transfer->reserved = malloc(sizeof *transfer->reserved)) == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for the end of a round");
    }
    tb_round_start(transfer, round, tb_deadline(timeout_ns));
    return TB_OK;
}

static void progress(tb_transfer *transfer, uint64_t *round, uint64_t *done, uint64_t *total, uint64_t *staging) {
    const tb_program_header *header = transfer->program.header;
    *round = transfer->round;
    *done = atomic_load(&transfer->bytes_sent) + atomic_load(&transfer->bytes_received)
          + atomic_load(&transfer->bytes_copied);
    *total = transfer->program.bytes_total;
    *done = *done < *total ? *done : *total;
    *staging = transfer->joint.bytes;
    if (!transfer->joint.alone) {
        *staging += header->send_staging_bytes + header->recv_staging_bytes + transfer->pool.ring;
    }
}

/* A transfer of a session, found and used under its lock. */
typedef struct transfer_use {
    tb_session *session;
    tb_transfer *transfer;
    uint64_t handle;
} transfer_use;

static bool begin_use(transfer_use *use, uint64_t session, uint64_t transfer, tb_error *err) {
    use->handle = session;
    use->session = tb_handle_get(TB_HANDLE_SESSION, session, err);
    if (use->session == NULL) {
        return false;
    }
    pthread_mutex_lock(&use->session->lock);
    use->transfer = tb_transfer_find(use->session, transfer, err);
    if (use->transfer == NULL) {
        pthread_mutex_unlock(&use->session->lock);
        tb_handle_put(session);
    }
    return use->transfer != NULL;
}

static void end_use(const transfer_use *use) {
    pthread_mutex_unlock(&use->session->lock);
    tb_handle_put(use->handle);
}

int32_t tb_transfer_post(uint64_t session, uint64_t transfer, uint64_t round, uint64_t timeout_ns, tb_error *err) {
    transfer_use use;
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    int32_t code = post(use.transfer, round, timeout_ns, err);
    end_use(&use);
    return code;
}

int32_t tb_transfer_post_cancelled(uint64_t session, uint64_t transfer, uint64_t round, tb_error *err) {
    transfer_use use;
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    int32_t code = post(use.transfer, round, UINT64_MAX, err);
    if (code == TB_OK) {
        tb_transfer_give_up(use.transfer, TB_ECANCELLED); /* in the same breath: nobody has had the lock between */
    }
    end_use(&use);
    return code;
}

int32_t tb_transfer_cancel(uint64_t session, uint64_t transfer, int32_t code, tb_error *err) {
    transfer_use use;
    if (code < 100 || code > 999) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%d is not an error code", code);
    }
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    tb_transfer_give_up(use.transfer, code);
    end_use(&use);
    return TB_OK;
}

int32_t tb_transfer_progress(uint64_t session, uint64_t transfer, uint64_t *round, uint64_t *done, uint64_t *total,
                          uint64_t *staging, tb_error *err) {
    transfer_use use;
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    progress(use.transfer, round, done, total, staging);
    end_use(&use);
    return TB_OK;
}

static int32_t carrier_of(const tb_transfer *transfer, int32_t rank, uint32_t *carrier, tb_error *err) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].peer->rank == rank) {
            *carrier = transfer->exchanges[i].carrier->number;
            return TB_OK;
        }
    }
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "\"%.100s\" has nothing to do with rank %d", transfer->key,
                   rank);
}

int32_t tb_transfer_carrier(uint64_t session, uint64_t transfer, int32_t rank, uint32_t *carrier, tb_error *err) {
    transfer_use use;
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    int32_t code = carrier_of(use.transfer, rank, carrier, err);
    end_use(&use);
    return code;
}

/* Takes it out of its session, once nothing is under way. */
static int32_t release(tb_transfer *transfer, tb_error *err) {
    if (transfer->state == TB_TRANSFER_RUNNING || transfer->state == TB_TRANSFER_PREPARING
        || transfer->state == TB_TRANSFER_ENDING
        || (transfer->joint.own != NULL && transfer->joint.carrier->busy(transfer))) {
        return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is still under way", transfer->key);
    }
    if (transfer->state == TB_TRANSFER_READY) {
        tb_error error;
        int32_t rank = transfer->session->options.rank;
        tb_fail(&error, TB_EINVALIDATED, rank, 0, "rank %d released \"%.100s\"", rank, transfer->key);
        for (uint32_t i = 0; i < transfer->exchange_count; i++) {
            tb_transfer_say_failure(&transfer->exchanges[i], TB_FRAME_RELEASE, transfer->handle, &error);
        }
        tb_transfer_leave_peers(transfer);
        tb_transfer_let_regions_go(transfer);
    }
    tb_transfer **at = &transfer->session->transfers;
    while (*at != transfer) {
        at = &(*at)->next;
    }
    *at = transfer->next;
    return TB_OK;
}

int32_t tb_transfer_release(uint64_t session, uint64_t transfer, tb_error *err) {
    transfer_use use;
    if (!begin_use(&use, session, transfer, err)) {
        return TB_ECLOSED;
    }
    int32_t code = release(use.transfer, err);
    pthread_mutex_unlock(&use.session->lock);
    if (code == TB_OK) {
        tb_transfer_free(use.transfer); /* before the handle is put: carriers let go of its memory by the session */
    }
    tb_handle_put(use.handle);
    return code;
}

int32_t tb_transfer_check_peers(uint64_t handle, uint64_t transfer_handle, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    const tb_transfer *transfer = tb_transfer_find(session, transfer_handle, err);
    int32_t code = transfer == NULL ? TB_ECLOSED : TB_OK;
    for (uint32_t i = 0; code == TB_OK && transfer->moved && i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].gone) {
            code = tb_fail(err, TB_EINVALIDATED, transfer->exchanges[i].peer->rank, ESTALE, "rank %d prepares anew",
                           transfer->exchanges[i].peer->rank);
        }
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}
