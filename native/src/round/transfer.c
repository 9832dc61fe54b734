/* tb_transfer_*: a program that is bound to memory, and its rounds. */
#include "round/transfer.h"

#include <stdlib.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "base/handle.h"
#include "round/round.h"

tb_transfer *tb_transfer_find(tb_session *session, uint64_t handle, tb_error *err) {
    tb_transfer *transfer = session->transfers;
    while (transfer != NULL && transfer->handle != handle) {
        transfer = transfer->next;
    }
    if (transfer == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "the transfer was released");
    }
    return transfer;
}

/* ---- prepare ------------------------------------------------------------------------------------------- */

/* The registered region that all of a buffer lies in, or TB_NONE; that of an empty one too. */
static uint32_t region_of(const tb_transfer *transfer, uint32_t buffer) {
    const tb_session *session = transfer->session;
    uint64_t begin = transfer->bindings[buffer].address;
    uint64_t span = transfer->program.buffers[buffer].span;
    for (uint32_t r = 0; r < session->region_count && span > 0; r++) {
        const tb_region *region = &session->regions[r];
        if (region->open && begin >= region->address && begin - region->address <= region->bytes
            && span <= region->bytes - (begin - region->address)) {
            return r;
        }
    }
    return TB_NONE;
}

/* Whether the tensors lie on the session's device is known before anything is allocated for them. */
static int32_t find_device(tb_transfer *transfer, tb_error *err) {
    tb_session *session = transfer->session;
    uint32_t kinds = 0;
    pthread_mutex_lock(&session->lock);
    for (uint32_t i = 0; i < transfer->program.header->buffer_count && session->device != NULL; i++) {
        uint32_t region = region_of(transfer, i);
        kinds |= region == TB_NONE ? 0 : session->regions[region].memory;
    }
    pthread_mutex_unlock(&session->lock);
    if ((kinds & TB_MEMORY_CUDA) != 0 && kinds != TB_MEMORY_CUDA) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "some tensors lie in CUDA memory and some in memory of the host: not in one batch");
    }
    transfer->device = kinds == TB_MEMORY_CUDA ? session->device : NULL;
    return TB_OK;
}

static int32_t hold_regions(tb_transfer *transfer, tb_error *err) {
    tb_session *session = transfer->session;
    const tb_program *program = &transfer->program;
    for (uint32_t i = 0; i < program->header->buffer_count; i++) {
        uint32_t region = region_of(transfer, i);
        bool moved = region != TB_NONE
                  && (session->regions[region].memory == TB_MEMORY_CUDA) != (transfer->device != NULL);
        transfer->regions[i] = region;
        if (program->buffers[i].span > 0 && (region == TB_NONE || moved)) {
            return tb_fail(err, TB_EREGION, -1, 0, "the memory of tensor %u is not registered",
                           program->buffers[i].tensor);
        }
    }
    for (uint32_t i = 0; i < program->header->buffer_count; i++) {
        if (transfer->regions[i] != TB_NONE) {
            session->regions[transfer->regions[i]].uses++;
        }
    }
    transfer->holds_regions = true;
    return TB_OK;
}

static tb_exchange *exchange_of(tb_transfer *transfer, tb_peer *peer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        if (transfer->exchanges[i].peer == peer) {
            return &transfer->exchanges[i];
        }
    }
    tb_exchange *exchange = &transfer->exchanges[transfer->exchange_count++];
    *exchange = (tb_exchange){
        .transfer = transfer, .peer = peer, .carrier = tb_carrier_by_way(transfer->session, TB_WAY_STREAM)};
    memset(exchange->send, 0xff, sizeof exchange->send);
    memset(exchange->receive, 0xff, sizeof exchange->receive);
    return exchange;
}

/* Who leads knows all members, and they know it, whether they exchange anything or not; so do those who are linked. */
static int32_t make_member_sides(tb_transfer *transfer, tb_error *err) {
    int32_t own = transfer->session->options.rank;
    for (uint32_t i = 0; i < transfer->member_count; i++) {
        const tb_member *member = &transfer->members[i];
        bool together = transfer->leader == own || member->rank == transfer->leader;
        bool exchanges = (member->roles & TB_MEMBER_PEER) != 0;
        bool linked = (member->roles & TB_MEMBER_LINKED) != 0;
        if (member->rank == own || (!together && !exchanges && !linked)) {
            continue;
        }
        tb_peer *peer = tb_net_peer(&transfer->session->net, member->rank);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "peer %d", member->rank);
        }
        tb_exchange *exchange = exchange_of(transfer, peer);
        exchange->linked = linked;
        exchange->together = together;
        exchange->joins = (member->roles & TB_MEMBER_JOINS) != 0;
        exchange->jointly = exchanges;
    }
    return TB_OK;
}

/* One side for each peer, with room for all its buckets. */
static int32_t make_sides(tb_transfer *transfer, tb_error *err) {
    const tb_program *program = &transfer->program;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        if (channel->direction == TB_LOCAL) {
            continue;
        }
        tb_peer *peer = tb_net_peer(&transfer->session->net, (int32_t)channel->peer);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "peer %u", channel->peer);
        }
        tb_exchange *exchange = exchange_of(transfer, peer);
        (channel->direction == TB_SEND ? exchange->send : exchange->receive)[channel->stage] = i;
        transfer->channels[i].exchange = exchange;
        exchange->ready.count += channel->direction == TB_SEND ? channel->bucket_count : 0;
    }
    int32_t code = make_member_sides(transfer, err);
    if (code != TB_OK) {
        return code;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_heap *ready = &transfer->exchanges[i].ready;
        ready->items = calloc((size_t)ready->count + 1, sizeof *ready->items);
        ready->count = 0;
        if (ready->items == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "tables of a transfer");
        }
    }
    return TB_OK;
}

static int32_t check_key(tb_session *session, const char *key, tb_error *err) {
    for (tb_transfer *transfer = session->transfers; transfer != NULL; transfer = transfer->next) {
        if (transfer->state != TB_TRANSFER_DEAD && strcmp(transfer->key, key) == 0) {
            return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is prepared already", key);
        }
    }
    return TB_OK;
}

static void meet_peers(tb_transfer *transfer) {
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        exchange->next = exchange->peer->exchanges;
        exchange->peer->exchanges = exchange;
    }
    tb_net_timer(&transfer->session->net, transfer->deadline);
    if (transfer->exchange_count == 0) {
        tb_transfer_check_prepared(transfer);
    }
    for (uint32_t i = 0; i < transfer->exchange_count && transfer->state == TB_TRANSFER_PREPARING; i++) {
        tb_exchange *exchange = &transfer->exchanges[i];
        if (exchange->peer->up) {
            tb_transfer_say_prepare(exchange);
            tb_transfer_meet_early(exchange);
        } else {
            tb_peer_want(exchange->peer);
        }
    }
}

static int32_t begin_prepare(tb_transfer *transfer, uint64_t *handle, tb_error *err) {
    tb_session *session = transfer->session;
    pthread_mutex_lock(&session->lock);
    int32_t code = session->closing ? tb_fail(err, TB_ECLOSED, -1, 0, "the session is closed") : TB_OK;
    if (code == TB_OK) {
        code = check_key(session, transfer->key, err);
    }
    if (code == TB_OK) {
        code = make_sides(transfer, err);
    }
    if (code == TB_OK) {
        code = hold_regions(transfer, err);
    }
    if (code == TB_OK) {
        transfer->handle = ++session->transfer_count;
        transfer->next = session->transfers;
        session->transfers = transfer;
        *handle = transfer->handle;
        meet_peers(transfer);
    }
    pthread_mutex_unlock(&session->lock);
    return code;
}

static int32_t copy_arguments(tb_transfer *transfer, const char *key, const tb_binding *bindings, uint32_t count,
                              tb_error *err) {
    size_t length = key == NULL ? 0 : strnlen(key, TB_KEY_BYTES + 1);
    if (length == 0 || length > TB_KEY_BYTES) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a key has 1 to %d bytes", TB_KEY_BYTES);
    }
    transfer->key = strdup(key);
    transfer->bindings = calloc((size_t)count + 1, sizeof *bindings);
    if (transfer->key == NULL || transfer->bindings == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "%u bindings", count);
    }
    if (count > 0) {
        memcpy(transfer->bindings, bindings, count * sizeof *bindings);
    }
    return TB_OK;
}

/* Members, whom they follow, and what they have in common with those of other ranks. */
static int32_t copy_members(tb_transfer *transfer, const tb_member *members, uint32_t count, tb_error *err) {
    const tb_session *session = transfer->session;
    bool among = count == 0;
    transfer->members = malloc(((size_t)count + 1) * sizeof *members);
    if (transfer->members == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "%u members", count);
    }
    uint64_t print = 0xcbf29ce484222325u; /* FNV-1a, of ranks */
    bool joins = false;
    for (uint32_t i = 0; i < count; i++) {
        const tb_member *member = &members[i];
        bool own = member->rank == session->options.rank;
        if (member->rank < 0 || member->rank >= session->options.world
            || (i > 0 && member->rank <= members[i - 1].rank)) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "members ascend within the world");
        }
        transfer->members[i] = *member;
        among |= own;
        if ((member->roles & TB_MEMBER_JOINS) != 0) {
            transfer->leader = transfer->leader < 0 ? member->rank : transfer->leader;
            print = (print ^ (uint32_t)member->rank) * 0x100000001b3u;
            joins |= own;
        }
    }
    transfer->member_count = count;
    transfer->joined = joins ? print : 0;
    return among ? TB_OK : tb_fail(err, TB_EUNSUPPORTED, -1, 0, "members without this rank");
}

/* The carrier that the members of a transfer move by together. */
static int32_t plan_joint(tb_transfer *transfer, tb_error *err) {
    transfer->joint.carrier = tb_carrier_by_way(transfer->session, TB_WAY_JOINT);
    if (transfer->joint.carrier == NULL) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "no carrier of this build moves jointly");
    }
    return transfer->joined != 0 ? transfer->joint.carrier->plan(transfer, err) : TB_OK;
}

static int32_t prepare(tb_session *session, const char *key, const void *program, uint64_t program_bytes,
                       const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                       uint64_t timeout_ns, const tb_member *members, uint32_t member_count, uint64_t *handle,
                       tb_error *err) {
    if ((flags & ~(uint32_t)TB_TRANSFER_CHECKSUM) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "unknown flags %x", flags);
    }
    tb_transfer *transfer = calloc(1, sizeof *transfer);
    if (transfer == NULL || tb_staging_init(&transfer->staging) != 0) {
        free(transfer);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a transfer");
    }
    transfer->session = session;
    transfer->flags = flags;
    transfer->leader = -1;
    transfer->deadline = tb_deadline(timeout_ns);
    int32_t code = copy_arguments(transfer, key, bindings, binding_count, err);
    if (code == TB_OK) {
        code = tb_program_load(&transfer->program, program, program_bytes, transfer->bindings, binding_count,
                               session->options.rank, session->options.world, err);
    }
    if (code == TB_OK) {
        code = copy_members(transfer, members, member_count, err);
    }
    if (code == TB_OK) {
        code = find_device(transfer, err);
    }
    if (code == TB_OK && transfer->leader >= 0) {
        code = plan_joint(transfer, err);
    }
    if (code == TB_OK) {
        code = tb_transfer_allocate(transfer, err);
    }
    if (code == TB_OK) {
        code = begin_prepare(transfer, handle, err);
    }
    if (code != TB_OK) {
        tb_transfer_free(transfer);
    }
    return code;
}

int32_t tb_transfer_prepare(uint64_t session, const char *key, const void *program, uint64_t program_bytes,
                         const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                         uint64_t timeout_ns, uint64_t *transfer, tb_error *err) {
    return tb_transfer_prepare_among(session, key, program, program_bytes, bindings, binding_count, flags,
                                  timeout_ns, NULL, 0, transfer, err);
}

int32_t tb_transfer_prepare_among(uint64_t session_handle, const char *key, const void *program,
                               uint64_t program_bytes, const tb_binding *bindings, uint32_t binding_count,
                               uint32_t flags, uint64_t timeout_ns, const tb_member *members,
                               uint32_t member_count, uint64_t *transfer, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, session_handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    int32_t code =
        prepare(session, key, program, program_bytes, bindings, binding_count, flags, timeout_ns, members,
                member_count, transfer, err);
    tb_handle_put(session_handle);
    return code;
}

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
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "round %llu after round %llu: they begin at 1 and grow",
                       (unsigned long long)round, (unsigned long long)transfer->round);
    }
    if (transfer->reserved == NULL && (transfer->reserved = malloc(sizeof *transfer->reserved)) == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the end of a round");
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
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%d is no code of a failure", code);
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
    end_use(&use);
    if (code == TB_OK) {
        tb_transfer_free(use.transfer);
    }
    return code;
}
