/*
 * Rounds over NCCL: the communicators of a session's device, and who runs on them when.
 *
 * A set of ranks has one communicator, shared by all transfers of plans in which just these ranks need it. Its lowest
 * rank leads: the others tell it by BEGIN that they have begun a round, and once all have it says TURN. Rounds of a
 * set run one after another, in the order of the TURNs, which is the same on all ranks: whoever posts to a
 * communicator posts in that order, and no kernel waits for a rank that has not come. Ranks that exchange nothing by
 * NCCL, but something with ranks that do, say BEGIN as well: a round that has its turn then waits for nobody who is
 * still to begin it.
 *
 * From TURN on a round goes to its end on all ranks, also if it failed meanwhile: its memory is quiet then, and the
 * communicator as good as before. Only if that cannot be, since a rank is gone, CUDA or NCCL failed, or the end does
 * not come within quiesce_ms, it is aborted, on every rank that hears of it. Prepares after that make another.
 *
 * A transfer may be mixed (nccl_steps.h). What a step of it sends may then be the outcome of what others move, and will
 * never be there if the round has failed. It is sent as it is once nobody counts it any more: every rank answers
 * ABORT by its own, to the leader too, and when the leader has it of all it says DRAIN.
 *
 * All calls of CUDA and NCCL are made in the thread of the device, in steps of one task, which is there as long as
 * there is something to do. What it has to decide it decides with the session's lock.
 */
#ifndef TB_NCCL_H
#define TB_NCCL_H

#include "carriers/registry.h"
#include "carriers/nccl/nccl_api.h"
#include "carriers/nccl/nccl_steps.h"

typedef struct tb_nccl tb_nccl;
typedef struct tb_nccl_set tb_nccl_set;
typedef struct tb_nccl_run tb_nccl_run;

/* Numbers of tb_nccl_state. */
enum tb_nccl_set_state { TB_SET_JOINING = 0, TB_SET_READY = 1, TB_SET_BROKEN = 2 };

/* What a step has under way. */
typedef struct tb_nccl_slot {
    tb_cu_event packed, wired, unpacked;
    uint32_t step; /* TB_NONE: none */
} tb_nccl_slot;

struct tb_nccl_set {
    tb_nccl_set *next;
    tb_nccl *nccl;
    uint64_t number;
    int32_t *ranks; /* ascending; the first leads */
    uint32_t rank_count;
    uint32_t epoch;
    uint32_t own;   /* this rank's place among them, and its rank in the communicator */
    tb_nccl_id id;
    enum tb_nccl_set_state state;
    bool doomed;     /* to be aborted */
    tb_error error;  /* why */
    tb_nccl_run *runs, **runs_end; /* whose turn has come, in their order */

    /* Owned by the device's thread; no lock is needed. */
    tb_nccl_comm comm;
    bool started, torn; /* streams are there; everything was given back */
    bool ended;         /* its rounds were */
    uint64_t tear_by;
    bool asking;        /* NCCL has not finished the last call */
    tb_cu_stream wire, packing, out; /* sends and receives; packs; unpacks, folds and copies */
    tb_nccl_slot slots[2];
};

/*
 * What a peer has said of rounds: the latest that it has begun, on which communicator, and the latest that it gave up.
 */
typedef struct tb_nccl_said {
    uint64_t begun;
    uint32_t begun_epoch;
    uint64_t gave_up;
} tb_nccl_said;

/* The frames of this carrier. */
enum {
    TB_NCCL_BEGIN = TB_FRAME_CARRIER, /* the sender has begun the round; sequence: the epoch; to the rank that leads */
    TB_NCCL_TURN,                     /* all have, and it is next on their communicator; from the rank that leads */
    /* All have given the round up: what is still sent is of no use to anybody; from the rank that leads. */
    TB_NCCL_DRAIN,
};

/* A transfer's part of this carrier, and a round of it, from its post to its end. */
struct tb_nccl_run {
    tb_nccl_run *next;
    tb_transfer *transfer;
    tb_nccl_steps *plan;
    tb_nccl_said *said; /* by exchange */
    tb_nccl_set *set; /* that it runs on */
    bool active;      /* a round is under way */
    bool turned;      /* it has its turn, or has had it */
    bool refused;     /* the leader gave the round up: there will be no turn */
    bool drains;      /* all have given it up: what is sent is of no use to anybody */
    uint64_t quiet_by;

    /* Owned by the device's thread; no lock is needed. */
    bool first_done, first_launched;
    uint32_t packed, launched, over; /* steps */
    tb_cu_event first;

    /* Before the first round: memory of the device. built and failure behind the lock. */
    tb_cuda_task building;
    enum tb_nccl_built { TB_RUN_UNBUILT, TB_RUN_BUILDING, TB_RUN_BUILT, TB_RUN_FAILED } built;
    tb_error failure;
};

struct tb_nccl {
    tb_cuda_task task;
    tb_session *session;
    tb_cuda_worker *worker;
    const tb_nccl_api *api;
    tb_nccl_set *sets;
    uint64_t set_count;
    bool running; /* the task is with the worker */
    uint32_t buildings;
    pthread_cond_t rested;
};

/* The session's device and communicators; NULL until it was told which library to use. */
static inline tb_nccl *tb_nccl_of(const tb_session *session) {
    return session->carrier_state[TB_CARRIER_NCCL];
}

/* This carrier's part of a transfer; NULL if the rank takes no part in steps of it. */
static inline tb_nccl_run *tb_nccl_run_of(const tb_transfer *transfer) {
    return transfer->joint.own;
}

/* ---- nccl_prepare.c ------------------------------------------------------------------------------------ */

/* Without the lock. */
int32_t tb_nccl_plan(tb_transfer *transfer, tb_error *err);
void tb_nccl_transfer_free(tb_transfer *transfer);
/* With it. */
bool tb_nccl_busy(const tb_transfer *transfer);

/* ---- nccl_transfer.c: the session's lock is held ------------------------------------------------------- */

/* A run is over: memory is quiet. Or it is not, and is never touched again. */
void tb_nccl_run_over(tb_nccl_run *run);
void tb_nccl_quarantine(tb_transfer *transfer);

/* ---- nccl_set.c, nccl_session.c ------------------------------------------------------------------------- */

/* The task: in the device's thread, without the lock. */
enum tb_cuda_step tb_nccl_task_step(tb_cuda_task *task, tb_cuda_worker *worker);
/* The lock is held: the task looks at everything again. */
void tb_nccl_wake(tb_nccl *nccl);
void tb_nccl_doom(tb_nccl_set *set, int32_t code, int32_t rank, const char *why);
tb_nccl_set *tb_nccl_find(tb_session *session, uint64_t number, tb_error *err);
/* The session ends: everything on its communicators does. */
void tb_nccl_stop(tb_session *session);
/* Waits for that; false if it takes too long. Without the lock, as the next two. */
bool tb_nccl_rest(tb_session *session, uint64_t until);
int32_t tb_nccl_free(tb_session *session, tb_error *err);
void tb_nccl_give_event(tb_nccl *nccl, tb_cu_event event);

/* ---- nccl_run.c: in the device's thread, without the lock ----------------------------------------------- */

/* Goes on as far as it can without waiting. True if it is over. */
bool tb_nccl_run_step(tb_nccl_run *run, tb_error *err);
/* The first step, which needs no turn. */
int32_t tb_nccl_run_first(tb_nccl_run *run, tb_error *err);
/* NCCL's last call is over, and was good: TB_OK; TB_EBUSY while it is under way. */
int32_t tb_nccl_settled(tb_nccl_set *set, tb_error *err);

#endif
