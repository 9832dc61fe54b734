/* tb_graph_*: a program that is bound to memory, and its rounds. */
#include "round/transfer.h"

#include <stdlib.h>
#include <string.h>

#include "carriers/carrier.h"
#include "wire/conn.h"
#include "base/error.h"
#include "base/handle.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"

tb_graph *tb_graph_find(tb_session *session, uint64_t handle, tb_error *err) {
    tb_graph *graph = session->graphs;
    while (graph != NULL && graph->handle != handle) {
        graph = graph->next;
    }
    if (graph == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "the graph was released");
    }
    return graph;
}

/* ---- prepare ------------------------------------------------------------------------------------------- */

/* The registered region that all of a buffer lies in, or TB_NONE; that of an empty one too. */
static uint32_t region_of(const tb_graph *graph, uint32_t buffer) {
    const tb_session *session = graph->session;
    uint64_t begin = graph->bindings[buffer].address;
    uint64_t span = graph->program.buffers[buffer].span;
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
static int32_t find_device(tb_graph *graph, tb_error *err) {
    tb_session *session = graph->session;
    uint32_t kinds = 0;
    pthread_mutex_lock(&session->lock);
    for (uint32_t i = 0; i < graph->program.header->buffer_count && session->device != NULL; i++) {
        uint32_t region = region_of(graph, i);
        kinds |= region == TB_NONE ? 0 : session->regions[region].memory;
    }
    pthread_mutex_unlock(&session->lock);
    if ((kinds & TB_MEMORY_CUDA) != 0 && kinds != TB_MEMORY_CUDA) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "some tensors lie in CUDA memory and some in memory of the host: not in one batch");
    }
    graph->device = kinds == TB_MEMORY_CUDA ? session->device : NULL;
    return TB_OK;
}

static int32_t hold_regions(tb_graph *graph, tb_error *err) {
    tb_session *session = graph->session;
    const tb_program *program = &graph->program;
    for (uint32_t i = 0; i < program->header->buffer_count; i++) {
        uint32_t region = region_of(graph, i);
        bool moved = region != TB_NONE
                  && (session->regions[region].memory == TB_MEMORY_CUDA) != (graph->device != NULL);
        graph->regions[i] = region;
        if (program->buffers[i].span > 0 && (region == TB_NONE || moved)) {
            return tb_fail(err, TB_EREGION, -1, 0, "the memory of tensor %u is not registered",
                           program->buffers[i].tensor);
        }
    }
    for (uint32_t i = 0; i < program->header->buffer_count; i++) {
        if (graph->regions[i] != TB_NONE) {
            session->regions[graph->regions[i]].uses++;
        }
    }
    graph->holds_regions = true;
    return TB_OK;
}

static tb_side *side_of(tb_graph *graph, tb_peer *peer) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].peer == peer) {
            return &graph->sides[i];
        }
    }
    tb_side *side = &graph->sides[graph->side_count++];
    *side = (tb_side){.graph = graph, .peer = peer};
    memset(side->send, 0xff, sizeof side->send);
    memset(side->receive, 0xff, sizeof side->receive);
    return side;
}

/* Who leads knows all members, and they know it, whether they exchange anything or not. */
static int32_t make_member_sides(tb_graph *graph, tb_error *err) {
    int32_t own = graph->session->options.rank;
    for (uint32_t i = 0; i < graph->member_count; i++) {
        const tb_member *member = &graph->members[i];
        bool together = graph->leader == own || member->rank == graph->leader;
        bool exchanges = (member->roles & TB_MEMBER_PEER) != 0;
        if (member->rank == own || (!together && !exchanges)) {
            continue;
        }
        tb_peer *peer = tb_session_peer(graph->session, member->rank);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "peer %d", member->rank);
        }
        tb_side *side = side_of(graph, peer);
        side->together = together;
        side->joins = (member->roles & TB_MEMBER_JOINS) != 0;
        side->by_nccl = exchanges;
    }
    return TB_OK;
}

/* One side for each peer, with room for all its buckets. */
static int32_t make_sides(tb_graph *graph, tb_error *err) {
    const tb_program *program = &graph->program;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        if (channel->direction == TB_LOCAL) {
            continue;
        }
        tb_peer *peer = tb_session_peer(graph->session, (int32_t)channel->peer);
        if (peer == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "peer %u", channel->peer);
        }
        tb_side *side = side_of(graph, peer);
        (channel->direction == TB_SEND ? side->send : side->receive)[channel->stage] = i;
        graph->channels[i].side = side;
        side->ready.count += channel->direction == TB_SEND ? channel->bucket_count : 0;
    }
    int32_t code = make_member_sides(graph, err);
    if (code != TB_OK) {
        return code;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_heap *ready = &graph->sides[i].ready;
        ready->items = calloc((size_t)ready->count + 1, sizeof *ready->items);
        ready->count = 0;
        if (ready->items == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "tables of a graph");
        }
    }
    return TB_OK;
}

static int32_t check_key(tb_session *session, const char *key, tb_error *err) {
    for (tb_graph *graph = session->graphs; graph != NULL; graph = graph->next) {
        if (graph->state != TB_GRAPH_DEAD && strcmp(graph->key, key) == 0) {
            return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is prepared already", key);
        }
    }
    return TB_OK;
}

static void meet_peers(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        tb_side *side = &graph->sides[i];
        side->next = side->peer->sides;
        side->peer->sides = side;
    }
    tb_session_timer(graph->session, graph->deadline);
    if (graph->side_count == 0) {
        tb_graph_check_prepared(graph);
    }
    for (uint32_t i = 0; i < graph->side_count && graph->state == TB_GRAPH_PREPARING; i++) {
        tb_side *side = &graph->sides[i];
        if (side->peer->up) {
            tb_graph_say_prepare(side);
            tb_graph_meet_early(side);
        } else {
            tb_peer_want(side->peer);
        }
    }
}

static int32_t begin_prepare(tb_graph *graph, uint64_t *handle, tb_error *err) {
    tb_session *session = graph->session;
    pthread_mutex_lock(&session->lock);
    int32_t code = session->closing ? tb_fail(err, TB_ECLOSED, -1, 0, "the session is closed") : TB_OK;
    if (code == TB_OK) {
        code = check_key(session, graph->key, err);
    }
    if (code == TB_OK) {
        code = make_sides(graph, err);
    }
    if (code == TB_OK) {
        code = hold_regions(graph, err);
    }
    if (code == TB_OK) {
        graph->handle = ++session->graph_count;
        graph->next = session->graphs;
        session->graphs = graph;
        *handle = graph->handle;
        meet_peers(graph);
    }
    pthread_mutex_unlock(&session->lock);
    return code;
}

static int32_t copy_arguments(tb_graph *graph, const char *key, const tb_binding *bindings, uint32_t count,
                              tb_error *err) {
    size_t length = key == NULL ? 0 : strnlen(key, TB_KEY_BYTES + 1);
    if (length == 0 || length > TB_KEY_BYTES) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "a key has 1 to %d bytes", TB_KEY_BYTES);
    }
    graph->key = strdup(key);
    graph->bindings = calloc((size_t)count + 1, sizeof *bindings);
    if (graph->key == NULL || graph->bindings == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "%u bindings", count);
    }
    if (count > 0) {
        memcpy(graph->bindings, bindings, count * sizeof *bindings);
    }
    return TB_OK;
}

/* Members, whom they follow, and what they have in common with those of other ranks. */
static int32_t copy_members(tb_graph *graph, const tb_member *members, uint32_t count, tb_error *err) {
    const tb_session *session = graph->session;
    bool among = count == 0;
    graph->members = malloc(((size_t)count + 1) * sizeof *members);
    if (graph->members == NULL) {
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
        graph->members[i] = *member;
        among |= own;
        if ((member->roles & TB_MEMBER_JOINS) != 0) {
            graph->leader = graph->leader < 0 ? member->rank : graph->leader;
            print = (print ^ (uint32_t)member->rank) * 0x100000001b3u;
            joins |= own;
        }
    }
    graph->member_count = count;
    graph->joined = joins ? print : 0;
    return among ? TB_OK : tb_fail(err, TB_EUNSUPPORTED, -1, 0, "members without this rank");
}

static int32_t prepare(tb_session *session, const char *key, const void *program, uint64_t program_bytes,
                       const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                       uint64_t timeout_ns, const tb_member *members, uint32_t member_count, uint64_t *handle,
                       tb_error *err) {
    if ((flags & ~(uint32_t)TB_GRAPH_CHECKSUM) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "unknown flags %x", flags);
    }
    tb_graph *graph = calloc(1, sizeof *graph);
    if (graph == NULL || tb_staging_init(&graph->staging) != 0) {
        free(graph);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a graph");
    }
    graph->session = session;
    graph->flags = flags;
    graph->leader = -1;
    graph->deadline = tb_deadline(timeout_ns);
    int32_t code = copy_arguments(graph, key, bindings, binding_count, err);
    if (code == TB_OK) {
        code = tb_program_load(&graph->program, program, program_bytes, graph->bindings, binding_count,
                               session->options.rank, session->options.world, err);
    }
    if (code == TB_OK) {
        code = copy_members(graph, members, member_count, err);
    }
    if (code == TB_OK) {
        code = find_device(graph, err);
    }
    if (code == TB_OK && graph->joined != 0) {
        code = tb_nccl_graph_plan(graph, err);
    }
    if (code == TB_OK) {
        code = tb_graph_allocate(graph, err);
    }
    if (code == TB_OK) {
        code = begin_prepare(graph, handle, err);
    }
    if (code != TB_OK) {
        tb_graph_free(graph);
    }
    return code;
}

int32_t tb_graph_prepare(uint64_t session, const char *key, const void *program, uint64_t program_bytes,
                         const tb_binding *bindings, uint32_t binding_count, uint32_t flags,
                         uint64_t timeout_ns, uint64_t *graph, tb_error *err) {
    return tb_graph_prepare_among(session, key, program, program_bytes, bindings, binding_count, flags,
                                  timeout_ns, NULL, 0, graph, err);
}

int32_t tb_graph_prepare_among(uint64_t session_handle, const char *key, const void *program,
                               uint64_t program_bytes, const tb_binding *bindings, uint32_t binding_count,
                               uint32_t flags, uint64_t timeout_ns, const tb_member *members,
                               uint32_t member_count, uint64_t *graph, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, session_handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    int32_t code =
        prepare(session, key, program, program_bytes, bindings, binding_count, flags, timeout_ns, members,
                member_count, graph, err);
    tb_handle_put(session_handle);
    return code;
}

/* ---- rounds -------------------------------------------------------------------------------------------- */

static int32_t post(tb_graph *graph, uint64_t round, uint64_t timeout_ns, tb_error *err) {
    if (graph->session->closing) {
        return tb_fail(err, TB_ECLOSED, -1, 0, "the session is closed");
    }
    switch (graph->state) {
    case TB_GRAPH_PREPARING:
    case TB_GRAPH_ENDING:
        return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is not prepared yet", graph->key);
    case TB_GRAPH_RUNNING:
        return tb_fail(err, TB_EBUSY, -1, 0, "round %llu of \"%.100s\" is under way",
                       (unsigned long long)graph->round, graph->key);
    case TB_GRAPH_DEAD:
        return tb_fail(err, TB_EINVALIDATED, -1, 0, "\"%.100s\" could not be prepared", graph->key);
    case TB_GRAPH_READY:
        break;
    }
    if (graph->quarantined) {
        return tb_fail(err, TB_EQUARANTINED, -1, 0, "memory of \"%.100s\" may still be read by a peer",
                       graph->key);
    }
    if (round <= graph->round) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "round %llu after round %llu: they begin at 1 and grow",
                       (unsigned long long)round, (unsigned long long)graph->round);
    }
    if (graph->reserved == NULL && (graph->reserved = malloc(sizeof *graph->reserved)) == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the end of a round");
    }
    tb_round_start(graph, round, tb_deadline(timeout_ns));
    return TB_OK;
}

static void progress(tb_graph *graph, uint64_t *round, uint64_t *done, uint64_t *total, uint64_t *staging) {
    const tb_program_header *header = graph->program.header;
    *round = graph->round;
    *done = atomic_load(&graph->bytes_sent) + atomic_load(&graph->bytes_received)
          + atomic_load(&graph->bytes_copied);
    *total = graph->program.bytes_total;
    *done = *done < *total ? *done : *total;
    uint64_t steps = graph->waves == NULL ? 0 : graph->waves->device_bytes;
    if (graph->waves != NULL && !graph->waves->mixed) {
        *staging = steps;
        return;
    }
    *staging = header->send_staging_bytes + header->recv_staging_bytes + graph->pool.ring + steps;
}

/* A graph of a session, found and used under its lock. */
typedef struct graph_use {
    tb_session *session;
    tb_graph *graph;
    uint64_t handle;
} graph_use;

static bool begin_use(graph_use *use, uint64_t session, uint64_t graph, tb_error *err) {
    use->handle = session;
    use->session = tb_handle_get(TB_HANDLE_SESSION, session, err);
    if (use->session == NULL) {
        return false;
    }
    pthread_mutex_lock(&use->session->lock);
    use->graph = tb_graph_find(use->session, graph, err);
    if (use->graph == NULL) {
        pthread_mutex_unlock(&use->session->lock);
        tb_handle_put(session);
    }
    return use->graph != NULL;
}

static void end_use(const graph_use *use) {
    pthread_mutex_unlock(&use->session->lock);
    tb_handle_put(use->handle);
}

int32_t tb_graph_post(uint64_t session, uint64_t graph, uint64_t round, uint64_t timeout_ns, tb_error *err) {
    graph_use use;
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    int32_t code = post(use.graph, round, timeout_ns, err);
    end_use(&use);
    return code;
}

int32_t tb_graph_post_cancelled(uint64_t session, uint64_t graph, uint64_t round, tb_error *err) {
    graph_use use;
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    int32_t code = post(use.graph, round, UINT64_MAX, err);
    if (code == TB_OK) {
        tb_graph_give_up(use.graph, TB_ECANCELLED); /* in the same breath: nobody has had the lock between */
    }
    end_use(&use);
    return code;
}

int32_t tb_graph_cancel(uint64_t session, uint64_t graph, int32_t code, tb_error *err) {
    graph_use use;
    if (code < 100 || code > 999) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%d is no code of a failure", code);
    }
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    tb_graph_give_up(use.graph, code);
    end_use(&use);
    return TB_OK;
}

int32_t tb_graph_progress(uint64_t session, uint64_t graph, uint64_t *round, uint64_t *done, uint64_t *total,
                          uint64_t *staging, tb_error *err) {
    graph_use use;
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    progress(use.graph, round, done, total, staging);
    end_use(&use);
    return TB_OK;
}

static int32_t carrier_of(const tb_graph *graph, int32_t rank, uint32_t *carrier, tb_error *err) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].peer->rank == rank) {
            *carrier = graph->sides[i].carrier;
            return TB_OK;
        }
    }
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "\"%.100s\" has nothing to do with rank %d", graph->key,
                   rank);
}

int32_t tb_graph_carrier(uint64_t session, uint64_t graph, int32_t rank, uint32_t *carrier, tb_error *err) {
    graph_use use;
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    int32_t code = carrier_of(use.graph, rank, carrier, err);
    end_use(&use);
    return code;
}

/* Takes it out of its session, once nothing is under way. */
static int32_t release(tb_graph *graph, tb_error *err) {
    if (graph->state == TB_GRAPH_RUNNING || graph->state == TB_GRAPH_PREPARING
        || graph->state == TB_GRAPH_ENDING
        || (graph->run != NULL && graph->run->built == TB_RUN_BUILDING)) {
        return tb_fail(err, TB_EBUSY, -1, 0, "\"%.100s\" is still under way", graph->key);
    }
    if (graph->state == TB_GRAPH_READY) {
        tb_error error;
        int32_t rank = graph->session->options.rank;
        tb_fail(&error, TB_EINVALIDATED, rank, 0, "rank %d released \"%.100s\"", rank, graph->key);
        for (uint32_t i = 0; i < graph->side_count; i++) {
            tb_graph_say_failure(&graph->sides[i], TB_FRAME_RELEASE, graph->handle, &error);
        }
        tb_graph_leave_peers(graph);
        tb_graph_let_regions_go(graph);
    }
    tb_graph **at = &graph->session->graphs;
    while (*at != graph) {
        at = &(*at)->next;
    }
    *at = graph->next;
    return TB_OK;
}

int32_t tb_graph_release(uint64_t session, uint64_t graph, tb_error *err) {
    graph_use use;
    if (!begin_use(&use, session, graph, err)) {
        return TB_ECLOSED;
    }
    int32_t code = release(use.graph, err);
    end_use(&use);
    if (code == TB_OK) {
        tb_graph_free(use.graph);
    }
    return code;
}
