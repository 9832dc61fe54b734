/* What the engine asks of rounds over NCCL. The session's lock is held unless a comment says otherwise. */
#include <errno.h>
#include <stdlib.h>

#include "wire/conn.h"
#include "base/error.h"
#include "round/transfer.h"
#include "base/handle.h"
#include "carriers/nccl/nccl_rounds.h"
#include "round/round.h"

/* ---- prepare -------------------------------------------------------------------------------------------- */

/* Which channels others move; true where there are such, but for what is copied within this rank. */
static bool find_elsewhere(const tb_graph *graph, bool *elsewhere) {
    const tb_program *program = &graph->program;
    bool any = false;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        elsewhere[i] = true;
        for (uint32_t m = 0; m < graph->member_count && channel->direction != TB_LOCAL; m++) {
            const tb_member *member = &graph->members[m];
            bool by_nccl = member->rank == (int32_t)channel->peer && (member->roles & TB_MEMBER_PEER) != 0;
            elsewhere[i] = elsewhere[i] && !by_nccl;
        }
        any |= elsewhere[i] && channel->direction != TB_LOCAL;
    }
    return any;
}

int32_t tb_nccl_graph_plan(tb_graph *graph, tb_error *err) {
    if (graph->device == NULL || graph->session->nccl == NULL) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "nccl: tensors of this rank lie in memory of the host");
    }
    graph->run = calloc(1, sizeof *graph->run);
    graph->waves = calloc(1, sizeof *graph->waves);
    bool *elsewhere = calloc((size_t)graph->program.header->channel_count + 1, sizeof *elsewhere);
    if (graph->run == NULL || graph->waves == NULL || elsewhere == NULL) {
        free(elsewhere);
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the rounds of a graph");
    }
    graph->run->graph = graph;
    bool mixed = find_elsewhere(graph, elsewhere);
    int32_t code = tb_waves_plan(&graph->program, mixed ? elsewhere : NULL, graph->waves, err);
    free(elsewhere);
    return code;
}

static int32_t build(tb_graph *graph, tb_cuda_worker *worker, tb_error *err) {
    tb_waves *waves = graph->waves;
    tb_cu_pointer memory = 0;
    if (waves->device_bytes > 0) {
        TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&memory, waves->device_bytes), err);
    }
    int32_t code = tb_waves_place(&graph->program, graph->bindings, &graph->pool, memory, waves, err);
    if (code == TB_OK) {
        code = tb_cuda_moves_upload(&waves->moves, worker, err);
    }
    return code;
}

static enum tb_cuda_step step_build(tb_cuda_task *task, tb_cuda_worker *worker) {
    tb_nccl_run *run = (tb_nccl_run *)((char *)task - offsetof(tb_nccl_run, building));
    tb_session *session = run->graph->session;
    tb_nccl *nccl = session->nccl;
    tb_error err;
    int32_t code = build(run->graph, worker, &err);
    pthread_mutex_lock(&session->lock);
    run->built = code == TB_OK ? TB_RUN_BUILT : TB_RUN_FAILED;
    if (code != TB_OK) {
        run->failure = err;
    }
    nccl->buildings--;
    pthread_cond_broadcast(&nccl->rested);
    pthread_mutex_unlock(&session->lock);
    return TB_CUDA_DONE;
}

/* Its ranks are just those of the graph's members that join. */
static bool is_set_of(const tb_nccl_set *set, const tb_graph *graph) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < graph->member_count; i++) {
        if ((graph->members[i].roles & TB_MEMBER_JOINS) == 0) {
            continue;
        }
        if (at == set->rank_count || set->ranks[at++] != graph->members[i].rank) {
            return false;
        }
    }
    return at == set->rank_count;
}

static int32_t attach(tb_graph *graph, tb_nccl_set *set, tb_error *err) {
    tb_nccl_run *run = graph->run;
    if (run == NULL || run->built != TB_RUN_UNBUILT || !is_set_of(set, graph)) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "the communicator of other ranks than the graph's");
    }
    run->set = set;
    run->built = TB_RUN_BUILDING;
    run->building.step = step_build;
    set->nccl->buildings++;
    tb_cuda_worker_submit(set->nccl->worker, &run->building);
    return TB_OK;
}

/* ---- giving back: without the lock ---------------------------------------------------------------------- */

typedef struct freeing {
    tb_cuda_task task;
    tb_waves *waves;
} freeing;

static enum tb_cuda_step step_free(tb_cuda_task *task, tb_cuda_worker *worker) {
    freeing *what = (freeing *)task;
    tb_cuda_moves_unload(&what->waves->moves, worker);
    if (what->waves->memory != 0) {
        tb_cuda_worker_free(worker, what->waves->memory, NULL);
    }
    tb_waves_free(what->waves);
    free(what);
    return TB_CUDA_DONE;
}

void tb_nccl_graph_free(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    tb_nccl *nccl = graph->session->nccl;
    bool built = run != NULL && run->built != TB_RUN_UNBUILT;
    if (built && run->first != NULL && nccl != NULL) {
        tb_nccl_give_event(nccl, run->first);
    }
    freeing *what = built && nccl != NULL && !graph->quarantined ? malloc(sizeof *what) : NULL;
    if (what != NULL) {
        *what = (freeing){.task.step = step_free, .waves = graph->waves};
        tb_cuda_worker_submit(nccl->worker, &what->task);
    } else if (!built) {
        tb_waves_free(graph->waves);
    }
    free(run);
}

/* ---- rounds --------------------------------------------------------------------------------------------- */

static bool leads(const tb_graph *graph) {
    return graph->leader == graph->session->options.rank;
}

static void take_turn(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    run->turned = true;
    run->next = NULL;
    *run->set->runs_end = run;
    run->set->runs_end = &run->next;
    tb_cuda_hold(graph->waves->mixed);
    tb_nccl_wake(run->set->nccl);
}

static void say(tb_side *side, uint8_t kind) {
    const tb_nccl_run *run = side->graph->run;
    tb_wire_header header = {.kind = kind,
                             .graph = side->remote,
                             .round = side->graph->round,
                             .sequence = run == NULL ? 0 : run->set->epoch};
    tb_peer_say(side->peer, &header, NULL);
}

static void say_to_set(tb_graph *graph, uint8_t kind) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].joins) {
            say(&graph->sides[i], kind);
        }
    }
}

static void check_turn(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    if (!run->active || run->turned || graph->failing || !leads(graph)) {
        return;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        /* Who has no part in the set may be done with this round by now, and have begun the next. */
        if (graph->sides[i].together && graph->sides[i].begun < graph->round) {
            return;
        }
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        const tb_side *side = &graph->sides[i];
        if (side->joins && side->begun_epoch != run->set->epoch) {
            tb_round_fail(graph, TB_EINVALIDATED, side->peer->rank, 0,
                          "a rank is on another communicator: it is to be prepared again");
            return;
        }
    }
    say_to_set(graph, TB_FRAME_TURN);
    take_turn(graph);
}

void tb_nccl_say_begin(tb_graph *graph) {
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].peer->rank == graph->leader) {
            say(&graph->sides[i], TB_FRAME_BEGIN);
        }
    }
}

/* The leader: all have failed, or are gone, so nobody counts what comes. */
static void check_drained(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    if (!run->active || !run->turned || run->drains || !graph->failing || !leads(graph)) {
        return;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        const tb_side *side = &graph->sides[i];
        if (!side->gone && side->gave_up < graph->round) {
            return;
        }
    }
    run->drains = true;
    say_to_set(graph, TB_FRAME_DRAIN);
}

void tb_nccl_round_start(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    tb_session *session = graph->session;
    tb_staging_add(&graph->staging, graph->waves->device_bytes);
    if (run->set == NULL || run->set->doomed || run->built != TB_RUN_BUILT) {
        tb_round_fail(graph, TB_EINVALIDATED, session->options.rank, 0,
                      "its communicator was aborted, or it has none: it is to be prepared again");
        return;
    }
    graph->active++;
    run->active = true;
    run->turned = false;
    run->refused = leads(graph);
    run->drains = false;
    run->first_done = false;
    run->first_launched = false;
    run->packed = 1;
    run->launched = 1;
    run->over = 1;
    run->quiet_by = 0;
    if (leads(graph)) {
        check_turn(graph);
    } else {
        tb_nccl_say_begin(graph);
    }
    tb_nccl_wake(run->set->nccl);
}

void tb_nccl_run_over(tb_nccl_run *run) {
    tb_graph *graph = run->graph;
    if (run->turned) {
        tb_cuda_unhold(graph->waves->mixed);
    }
    run->active = false;
    run->turned = false;
    tb_round_release(graph);
}

void tb_nccl_quarantine(tb_graph *graph) {
    tb_session *session = graph->session;
    graph->quarantined = true;
    session->quarantined = true;
    for (uint32_t i = 0; i < graph->program.header->buffer_count; i++) {
        if (graph->regions[i] != TB_NONE) {
            session->regions[graph->regions[i]].quarantined = true;
        }
    }
    tb_fail(&graph->error, TB_EQUARANTINED, session->options.rank, 0,
            "the GPU may still touch memory of round %llu, %u ms after its communicator was aborted",
            (unsigned long long)graph->round, session->options.quiesce_ms);
}

void tb_nccl_round_failed(tb_graph *graph) {
    if (graph->run->active) {
        check_drained(graph);
        tb_nccl_wake(graph->run->set->nccl);
    }
}

/* ---- what others say ------------------------------------------------------------------------------------ */

void tb_nccl_on_begin(tb_side *side, const tb_wire_header *header) {
    side->begun = header->round;
    side->begun_epoch = header->sequence;
    check_turn(side->graph);
}

int32_t tb_nccl_on_turn(tb_side *side, const tb_wire_header *header, tb_error *err) {
    tb_graph *graph = side->graph;
    tb_nccl_run *run = graph->run;
    bool expected = side->peer->rank == graph->leader && run->active && !run->turned && !run->refused
                    && header->round == graph->round;
    if (!expected) {
        /* It runs on the leader, and has ended here: only an abort brings the two together again. */
        if (run->set != NULL) {
            tb_nccl_doom(run->set, TB_EPROTOCOL, side->peer->rank, "a turn that nobody asked for");
        }
        return tb_fail(err, TB_EPROTOCOL, -1, 0, "a turn that nobody asked for");
    }
    take_turn(graph);
    return TB_OK;
}

void tb_nccl_on_drain(tb_side *side, const tb_wire_header *header) {
    const tb_graph *graph = side->graph;
    tb_nccl_run *run = graph->run;
    if (side->peer->rank == graph->leader && run->active && header->round == graph->round && graph->failing) {
        run->drains = true;
        tb_nccl_wake(run->set->nccl);
    }
}

static bool joins(const tb_graph *graph, int32_t rank) {
    bool found = false;
    for (uint32_t i = 0; i < graph->member_count; i++) {
        found |= graph->members[i].rank == rank && (graph->members[i].roles & TB_MEMBER_JOINS) != 0;
    }
    return found;
}

void tb_nccl_on_abort(tb_side *side, uint64_t round, int32_t code) {
    tb_graph *graph = side->graph;
    tb_nccl_run *run = graph->run;
    side->gave_up = round > side->gave_up ? round : side->gave_up;
    if (!run->active || round < graph->round) {
        return;
    }
    check_drained(graph);
    if (side->peer->rank == graph->leader && !run->turned) {
        run->refused = true; /* what it says comes in order: there will be no turn */
    }
    /* That rank goes no further on the communicator, or knows of one that does not. */
    bool lost = code == TB_EPEER_LOST && joins(graph, graph->aborted.rank);
    bool stops = code == TB_ENCCL || code == TB_ECUDA || lost || code == TB_EQUARANTINED;
    if (run->turned && stops && side->joins) {
        tb_nccl_doom(run->set, code, side->peer->rank, graph->aborted.message);
    }
    tb_nccl_wake(run->set->nccl);
}

void tb_nccl_on_release(tb_side *side, const tb_error *why) {
    tb_graph *graph = side->graph;
    tb_nccl_run *run = graph->run;
    if (!run->active) {
        return;
    }
    if (side->peer->rank == graph->leader && !run->turned) {
        run->refused = true;
        tb_round_fail(graph, why->code, why->rank, 0, why->message);
    }
    check_drained(graph);
    tb_nccl_wake(run->set->nccl);
}

void tb_nccl_peer_gone(tb_side *side, const char *why) {
    tb_nccl_run *run = side->graph->run;
    if (run->set != NULL && side->joins) {
        tb_nccl_doom(run->set, TB_EPEER_LOST, side->peer->rank, why);
    }
    check_drained(side->graph);
}

/* ---- the interface: without the lock -------------------------------------------------------------------- */

int32_t tb_graph_attach(uint64_t handle, uint64_t graph_handle, uint64_t communicator, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_graph *graph = tb_graph_find(session, graph_handle, err);
    tb_nccl_set *set = graph == NULL ? NULL : tb_nccl_find(session, communicator, err);
    int32_t code = set == NULL ? TB_ECLOSED : attach(graph, set, err);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_graph_check_peers(uint64_t handle, uint64_t graph_handle, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    const tb_graph *graph = tb_graph_find(session, graph_handle, err);
    int32_t code = graph == NULL ? TB_ECLOSED : TB_OK;
    for (uint32_t i = 0; code == TB_OK && graph->moved && i < graph->side_count; i++) {
        if (graph->sides[i].gone) {
            code = tb_fail(err, TB_EINVALIDATED, graph->sides[i].peer->rank, ESTALE, "rank %d prepares anew",
                           graph->sides[i].peer->rank);
        }
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}

int32_t tb_graph_attached(uint64_t handle, uint64_t graph_handle, uint32_t *attached, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    tb_graph *graph = tb_graph_find(session, graph_handle, err);
    const tb_nccl_run *run = graph == NULL ? NULL : graph->run;
    int32_t code = graph == NULL ? TB_ECLOSED : TB_OK;
    *attached = run != NULL && run->built == TB_RUN_BUILT;
    if (run != NULL && run->built == TB_RUN_FAILED) {
        code = tb_fail(err, run->failure.code, session->options.rank, 0, "%s", run->failure.message);
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}
