/* Preparing: a program is bound to memory, and its peers are met. The lock is held unless a comment says otherwise. */
#include "round/transfer.h"

#include <stdlib.h>
#include <string.h>

#include "round/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "base/fingerprint.h"
#include "base/handle.h"
#include "flow/staging.h"
#include "round/select.h"
#include "round/transfer_meet.h"
#include "wire/peer.h"

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

/* Finds out whether the tensors lie on the session's device, before anything is allocated for them. */
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
                       "some tensors lie in CUDA memory and some in memory of the host: a batch cannot have both");
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

/*
 * The leader knows all members, and they know it, whether they exchange anything or not; so do ranks that are linked.
 */
static int32_t make_member_exchanges(tb_transfer *transfer, tb_error *err) {
    int32_t own = transfer->session->options.rank;
    for (uint32_t i = 0; i < transfer->member_count; i++) {
        const tb_member *member = &transfer->members[i];
        bool together = (transfer->leader == own || member->rank == transfer->leader)
                     && (member->roles & TB_MEMBER_APART) == 0;
        bool exchanges = (member->roles & TB_MEMBER_PEER) != 0;
        bool linked = (member->roles & TB_MEMBER_LINKED) != 0;
        if (member->rank == own || (!together && !exchanges && !linked)) {
            continue;
        }
        tb_peer *peer = tb_net_peer(&transfer->session->net, member->rank);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for peer %d", member->rank);
        }
        tb_exchange *exchange = exchange_of(transfer, peer);
        exchange->linked = linked;
        exchange->together = together;
        exchange->joins = (member->roles & TB_MEMBER_JOINS) != 0;
        exchange->jointly = exchanges;
    }
    return TB_OK;
}

/* One exchange for each peer, with room for all its buckets. */
static int32_t make_exchanges(tb_transfer *transfer, tb_error *err) {
    const tb_program *program = &transfer->program;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        if (channel->direction == TB_LOCAL) {
            continue;
        }
        tb_peer *peer = tb_net_peer(&transfer->session->net, (int32_t)channel->peer);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for peer %u", channel->peer);
        }
        tb_exchange *exchange = exchange_of(transfer, peer);
        (channel->direction == TB_SEND ? exchange->send : exchange->receive)[channel->stage] = i;
        transfer->channels[i].exchange = exchange;
        exchange->ready.count += channel->direction == TB_SEND ? channel->bucket_count : 0;
    }
    int32_t code = make_member_exchanges(transfer, err);
    if (code != TB_OK) {
        return code;
    }
    for (uint32_t i = 0; i < transfer->exchange_count; i++) {
        tb_heap *ready = &transfer->exchanges[i].ready;
        ready->items = calloc((size_t)ready->count + 1, sizeof *ready->items);
        ready->count = 0;
        if (ready->items == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for tables of a transfer");
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
        code = make_exchanges(transfer, err);
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
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u bindings", count);
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
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u members", count);
    }
    uint64_t print = TB_FINGERPRINT_START;
    bool joins = false;
    for (uint32_t i = 0; i < count; i++) {
        const tb_member *member = &members[i];
        bool own = member->rank == session->options.rank;
        if (member->rank < 0 || member->rank >= session->options.world
            || (i > 0 && member->rank <= members[i - 1].rank)) {
            return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the ranks of members must ascend, and lie within the world");
        }
        transfer->members[i] = *member;
        among |= own;
        if ((member->roles & TB_MEMBER_JOINS) != 0) {
            transfer->leader = transfer->leader < 0 ? member->rank : transfer->leader;
            print = tb_fingerprint_step(print, (uint32_t)member->rank);
            joins |= own;
        }
    }
    transfer->member_count = count;
    transfer->joined = joins ? print : 0;
    return among ? TB_OK : tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this rank is not among the members");
}

/* The carrier that the members of a transfer move by together. */
static int32_t plan_joint(tb_transfer *transfer, tb_error *err) {
    transfer->joint.carrier = tb_carrier_by_way(transfer->session, TB_WAY_JOINT);
    if (transfer->joint.carrier == NULL) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "no carrier of this build moves the buckets of several ranks jointly");
    }
    return transfer->joined != 0 ? transfer->joint.carrier->plan(transfer, err) : TB_OK;
}

static int32_t prepare(tb_session *session, const char *key, const void *program, uint64_t program_bytes,
                       const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                       uint64_t timeout_ns, const tb_member *members, uint32_t member_count, uint64_t *handle,
                       tb_error *err) {
    if ((flags & ~(uint32_t)TB_TRANSFER_CHECKSUM) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "flags 0x%x are unknown", flags);
    }
    tb_transfer *transfer = calloc(1, sizeof *transfer);
    if (transfer == NULL || tb_staging_init(&transfer->staging) != 0) {
        free(transfer);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a transfer");
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

int32_t tb_transfer_prepare(uint64_t session_handle, const char *key, const void *program, uint64_t program_bytes,
                            const tb_binding *bindings, uint32_t binding_count, uint32_t flags, uint64_t timeout_ns,
                            const tb_member *members, uint32_t member_count, uint64_t *transfer, tb_error *err) {
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
