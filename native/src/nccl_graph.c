/* What the engine asks of rounds over NCCL. The session's lock is held unless a comment says otherwise. */
#include <stdlib.h>
#include <string.h>

#include "conn.h"
#include "error.h"
#include "graph.h"
#include "handle.h"
#include "nccl_rounds.h"
#include "round.h"

/* Rounds of this process that have their turn. Giving memory back waits for the device, and so for them. */
static _Atomic uint32_t rounds_under_way;
#define MOST_FREE_NS 5000000000ull

/* ---- prepare -------------------------------------------------------------------------------------------- */

int32_t tb_nccl_graph_plan(tb_graph *graph, const int32_t *members, uint32_t count, tb_error *err) {
    graph->run = calloc(1, sizeof *graph->run);
    graph->waves = calloc(1, sizeof *graph->waves);
    graph->members = malloc(((size_t)count + 1) * sizeof *members);
    if (graph->run == NULL || graph->waves == NULL || graph->members == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the rounds of a graph");
    }
    graph->run->graph = graph;
    if (count > 0) {
        memcpy(graph->members, members, count * sizeof *members);
    }
    graph->member_count = count;
    return tb_waves_plan(&graph->program, graph->waves, err);
}

static int32_t build(tb_graph *graph, tb_cuda_worker *worker, tb_error *err) {
    tb_waves *waves = graph->waves;
    tb_cu_pointer memory = 0;
    if (waves->device_bytes > 0) {
        TB_CUDA_TRY(worker->api, cuMemAlloc_v2(&memory, waves->device_bytes), err);
    }
    int32_t code = tb_waves_place(&graph->program, graph->bindings, memory, waves, err);
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

static int32_t attach(tb_graph *graph, tb_nccl_set *set, tb_error *err) {
    tb_nccl_run *run = graph->run;
    if (run == NULL || run->built != TB_RUN_UNBUILT || set->rank_count != graph->member_count
        || memcmp(set->ranks, graph->members, set->rank_count * sizeof *set->ranks) != 0) {
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
    uint64_t until;
} freeing;

static enum tb_cuda_step step_free(tb_cuda_task *task, tb_cuda_worker *worker) {
    freeing *what = (freeing *)task;
    if (atomic_load(&rounds_under_way) > 0 && tb_now() < what->until) {
        return TB_CUDA_AGAIN;
    }
    tb_cuda_moves_unload(&what->waves->moves, worker);
    if (what->waves->memory != 0) {
        worker->api->cuMemFree_v2(what->waves->memory);
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
        *what = (freeing){.task.step = step_free, .waves = graph->waves, .until = tb_deadline(MOST_FREE_NS)};
        tb_cuda_worker_submit(nccl->worker, &what->task);
    } else if (!built) {
        tb_waves_free(graph->waves);
    }
    free(run);
    free(graph->members);
}

/* ---- rounds --------------------------------------------------------------------------------------------- */

static bool leads(const tb_graph *graph) {
    return graph->members[0] == graph->session->options.rank;
}

static void take_turn(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    run->turned = true;
    run->next = NULL;
    *run->set->runs_end = run;
    run->set->runs_end = &run->next;
    rounds_under_way++;
    tb_nccl_wake(run->set->nccl);
}

static void say(tb_side *side, uint8_t kind) {
    tb_wire_header header = {.kind = kind,
                             .graph = side->remote,
                             .round = side->graph->round,
                             .sequence = side->graph->run->set->epoch};
    tb_peer_say(side->peer, &header, NULL);
}

static void check_turn(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    if (!run->active || run->turned || graph->failing || !leads(graph)) {
        return;
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        if (graph->sides[i].begun != graph->round) {
            return;
        }
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        const tb_side *side = &graph->sides[i];
        if (side->begun_epoch != run->set->epoch) {
            tb_round_fail(graph, TB_EINVALIDATED, side->peer->rank, 0,
                          "a rank is on another communicator: it is to be prepared again");
            return;
        }
    }
    for (uint32_t i = 0; i < graph->side_count; i++) {
        say(&graph->sides[i], TB_FRAME_TURN);
    }
    take_turn(graph);
}

void tb_nccl_round_start(tb_graph *graph) {
    tb_nccl_run *run = graph->run;
    tb_session *session = graph->session;
    graph->staging.high = graph->waves->device_bytes;
    if (run->set == NULL || run->set->doomed || run->built != TB_RUN_BUILT) {
        tb_round_fail(graph, TB_EINVALIDATED, session->options.rank, 0,
                      "its communicator was aborted, or it has none: it is to be prepared again");
        return;
    }
    graph->active++;
    run->active = true;
    run->turned = false;
    run->refused = leads(graph);
    run->first_done = false;
    run->first_launched = false;
    run->packed = 1;
    run->launched = 1;
    run->over = 1;
    run->quiet_by = 0;
    if (leads(graph)) {
        check_turn(graph);
    } else {
        for (uint32_t i = 0; i < graph->side_count; i++) {
            if (graph->sides[i].peer->rank == graph->members[0]) {
                say(&graph->sides[i], TB_FRAME_BEGIN);
            }
        }
    }
    tb_nccl_wake(run->set->nccl);
}

void tb_nccl_run_over(tb_nccl_run *run) {
    tb_graph *graph = run->graph;
    rounds_under_way -= run->turned;
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
    bool expected = side->peer->rank == graph->members[0] && run->active && !run->turned && !run->refused
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

void tb_nccl_on_abort(tb_side *side, uint64_t round, int32_t code) {
    tb_graph *graph = side->graph;
    tb_nccl_run *run = graph->run;
    if (!run->active || round < graph->round) {
        return;
    }
    if (side->peer->rank == graph->members[0] && !run->turned) {
        run->refused = true; /* what it says comes in order: there will be no turn */
    }
    /* That rank goes no further on the communicator. */
    bool stops = code == TB_ENCCL || code == TB_ECUDA || code == TB_EPEER_LOST || code == TB_EQUARANTINED;
    if (run->turned && stops) {
        tb_nccl_doom(run->set, code, side->peer->rank, graph->aborted.message);
    }
    tb_nccl_wake(run->set->nccl);
}

void tb_nccl_peer_gone(tb_side *side, const char *why) {
    tb_nccl_run *run = side->graph->run;
    if (run->set != NULL) {
        tb_nccl_doom(run->set, TB_EPEER_LOST, side->peer->rank, why);
    }
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
