/* simulate [--seed N] [--runs N] [--trace]: runs schedules of the engine, one a seed, and says which one fails, and why. */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"
#include "world.h"
#include "wire/loop.h"

enum { MOST_STEPS = 60000, MOST_FAULTS = 4, FAULT_STEPS = 700 };
enum action { SERVE, DELIVER, MOVE, IMPORT, PULL, TURN, POST, CONNECT, ACTIONS };
static const char *const names[] = {"serve", "deliver", "move", "import", "pull", "turn", "post", "connect"};

typedef struct option {
    enum action action;
    int index, end;
} option;

/* ---- what can happen next ------------------------------------------------------------------------------- */

static bool has_turn(const tb_session *session) {
    const tb_thread *thread = &session->threads[0];
    for (const tb_transfer *at = session->transfers; at != NULL && thread->job.transfer == NULL; at = at->next) {
        if (at->jobs.count > 0) {
            return true;
        }
    }
    return thread->sweep || the_sim->now >= session->next_timer;
}

static bool may_post(const sim_rank *rank) {
    return rank->prepared && !rank->running && !rank->broken && rank->posted < SIM_ROUNDS;
}

static int list(option *options) {
    int count = 0;
    for (int i = 0; i < SIM_RANKS; i++) {
        const sim_rank *rank = &the_sim->ranks[i];
        if (!rank->alive) {
            continue;
        }
        const tb_session *session = rank->session;
        const bool can[ACTIONS] = {
            [SERVE] = session->loops[0]->runnable != NULL,
            [MOVE] = session->threads[0].job.transfer != NULL,
            [IMPORT] = session->imports != NULL,
            [TURN] = has_turn(session),
            [POST] = may_post(rank),
        };
        for (int action = 0; action < ACTIONS; action++) {
            if (can[action]) {
                options[count++] = (option){(enum action)action, i, 0};
            }
        }
        for (int to = i + 1; to < SIM_RANKS; to++) {
            if (the_sim->wanted[i][to] && the_sim->ranks[to].alive) {
                options[count++] = (option){CONNECT, i, to};
            }
        }
    }
    for (int i = 0; i < SIM_LINKS; i++) {
        for (int end = 0; end < 2; end++) {
            if (sim_can_deliver(&the_sim->links[i], end)) {
                options[count++] = (option){DELIVER, i, end};
            }
        }
    }
    for (uint32_t i = 0; i < the_sim->pull_count; i++) {
        options[count++] = (option){PULL, (int)i, 0};
    }
    return count;
}

static void post(sim_rank *rank, int number) {
    tb_error err = {0};
    SIM_CHECK(rank->posted == 0 || sim_target_crc(rank) == rank->rest_crc, "rank %d: memory changed after round %d ended",
              number, (int)rank->posted);
    /* Whoever hears that a peer may still read its memory leaves it alone, or that peer's round gets what is written. */
    for (int t = 0; t < KIT_TENSORS && !rank->transfer->quarantined; t++) {
        if (rank->memory[t][1] != NULL) {
            memset(rank->memory[t][1], 0xee, the_sim->k.span[t][1]);
        }
    }
    rank->running = true;
    int32_t code = tb_transfer_post(rank->handle, rank->transfer->handle, ++rank->posted, SIM_TIMEOUT, &err);
    if (code == TB_EQUARANTINED && the_sim->faults > 0) {
        rank->running = false;
        rank->broken = true;
        rank->rest_crc = sim_target_crc(rank);
        return;
    }
    SIM_CHECK(code == TB_OK, "rank %d posts no round %d: %s", number, (int)rank->posted, err.message);
}

static void act(const option *chosen) {
    if (chosen->action == DELIVER) {
        sim_deliver(&the_sim->links[chosen->index], chosen->end);
        return;
    }
    if (chosen->action == PULL) {
        sim_pull((uint32_t)chosen->index);
        return;
    }
    if (chosen->action == CONNECT) {
        sim_connect();
        return;
    }
    sim_rank *rank = &the_sim->ranks[chosen->index];
    tb_session *session = rank->session;
    tb_thread *thread = &session->threads[0];
    if (chosen->action != POST) {
        pthread_mutex_lock(&session->lock);
        tb_thread_decide(thread);
        pthread_mutex_unlock(&session->lock);
    }
    switch (chosen->action) {
    case SERVE:
        tb_loop_serve_next(&thread->loop);
        break;
    case MOVE:
        tb_thread_move(thread, 16 + sim_random(300)); /* at least an element */
        break;
    case IMPORT:
        tb_import_serve(session);
        break;
    case POST:
        post(rank, chosen->index);
        break;
    default:
        break;
    }
}

/* ---- faults --------------------------------------------------------------------------------------------- */

static void fault(void) {
    int number = (int)sim_random(SIM_RANKS);
    sim_rank *rank = &the_sim->ranks[number];
    sim_link *link = &the_sim->links[sim_random(SIM_LINKS)];
    uint64_t kind = sim_random(4);
    if (kind == 0 && link->used && link->cut == 0) {
        sim_cut(link, sim_random(2) == 0 ? ETIMEDOUT : ECONNRESET);
    } else if (kind == 1 && rank->alive) {
        sim_kill(number);
    } else if (kind == 2) {
        the_sim->now += SIM_TIMEOUT / 2 + sim_random(SIM_TIMEOUT);
    } else if (rank->alive) {
        tb_transfer_cancel(rank->handle, rank->transfer->handle, TB_ECANCELLED, NULL);
    } else {
        return;
    }
    the_sim->faults++;
    if (the_sim->trace) {
        printf("%6d fault %d at rank %d\n", (int)the_sim->steps, (int)kind, number);
    }
}

/* ---- what was told -------------------------------------------------------------------------------------- */

static void hear(sim_rank *rank, int number) {
    tb_event event;
    for (;;) {
        pthread_mutex_lock(&rank->session->lock);
        tb_net_next_event(&rank->session->net, &event);
        pthread_mutex_unlock(&rank->session->lock);
        if (event.kind == TB_EVENT_NONE) {
            return;
        }
        if (the_sim->trace) {
            printf("%6d rank %d hears %u of round %d: %d %s\n", (int)the_sim->steps, number, event.kind,
                   (int)event.round, event.error.code, event.error.message);
        }
        bool good = event.error.code == TB_OK;
        SIM_CHECK(good || the_sim->faults > 0, "rank %d: event %u says %d %s, and nothing had gone wrong", number,
                  event.kind, event.error.code, event.error.message);
        if (event.kind == TB_EVENT_PREPARED) {
            rank->prepared = good;
            rank->broken = !good;
        } else if (event.kind == TB_EVENT_ROUND) {
            SIM_CHECK(rank->running && event.round == rank->posted, "rank %d: round %d ends, and was not under way",
                      number, (int)event.round);
            rank->running = false;
            rank->rest_crc = sim_target_crc(rank);
            if (good) {
                sim_check_bytes(number);
            }
        }
    }
}

/* ---- a schedule ----------------------------------------------------------------------------------------- */

static bool is_over(void) {
    for (int i = 0; i < SIM_RANKS; i++) {
        const sim_rank *rank = &the_sim->ranks[i];
        bool waits = !rank->prepared && !rank->broken;
        if (rank->alive && (waits || rank->running || may_post(rank))) {
            return false;
        }
    }
    return true;
}

/* Nothing can happen now: time goes on to the next thing that is due. */
static void wait_for_time(void) {
    uint64_t next = UINT64_MAX;
    for (int i = 0; i < SIM_RANKS; i++) {
        const sim_rank *rank = &the_sim->ranks[i];
        next = rank->alive && rank->session->next_timer < next ? rank->session->next_timer : next;
    }
    SIM_CHECK(the_sim->faults > 0, "everybody waits, and nothing had gone wrong");
    SIM_CHECK(next != UINT64_MAX, "everybody waits, for nothing");
    the_sim->now = next > the_sim->now ? next : the_sim->now + 1;
}

static void run(void) {
    uint64_t faults[MOST_FAULTS];
    uint64_t fault_count = sim_random(3) == 0 ? 0 : 1 + sim_random(MOST_FAULTS);
    for (uint64_t i = 0; i < fault_count; i++) {
        faults[i] = sim_random(FAULT_STEPS);
    }
    sim_open();
    while (!is_over()) {
        option options[SIM_RANKS * (ACTIONS + SIM_RANKS) + 2 * SIM_LINKS + SIM_PULLS];
        SIM_CHECK(++the_sim->steps < MOST_STEPS, "it does not end");
        for (uint64_t i = 0; i < fault_count; i++) {
            if (faults[i] == the_sim->steps) {
                fault();
            }
        }
        int count = list(options);
        if (count == 0 && is_over()) {
            break; /* the last rank has just died */
        }
        if (count == 0) {
            wait_for_time();
        } else {
            const option *chosen = &options[sim_random((uint64_t)count)];
            if (the_sim->trace) {
                printf("%6d %s %d.%d\n", (int)the_sim->steps, names[chosen->action], chosen->index, chosen->end);
            }
            act(chosen);
        }
        sim_check();
        for (int i = 0; i < SIM_RANKS; i++) {
            if (the_sim->ranks[i].alive && the_sim->ranks[i].session->events != NULL) {
                hear(&the_sim->ranks[i], i);
            }
        }
    }
    for (int i = 0; i < SIM_RANKS; i++) {
        const sim_rank *rank = &the_sim->ranks[i];
        SIM_CHECK(!rank->alive || rank->posted == 0 || sim_target_crc(rank) == rank->rest_crc,
                  "rank %d: memory changed after its last round", i);
    }
    sim_close();
    SIM_CHECK(the_sim->registered == 0, "carriers still hold %u regions of sessions that are closed", the_sim->registered);
}

static bool schedule(uint64_t seed, bool trace, uint64_t *steps) {
    static sim state;
    memset(&state, 0, sizeof state);
    the_sim = &state;
    state.seed = seed;
    state.random = seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    state.now = 1000000000;
    state.trace = trace;
    for (int i = 0; i < 8; i++) {
        sim_random(2);
    }
    if (setjmp(state.failed) != 0) {
        fprintf(stderr, "seed %llu, step %llu: %s\n", (unsigned long long)seed, (unsigned long long)state.steps,
                state.why);
        return false;
    }
    run();
    *steps += state.steps;
    return true;
}

int main(int count, char **arguments) {
    uint64_t seed = 1;
    uint64_t runs = 1;
    bool trace = false;
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--trace") == 0) {
            trace = true;
        } else if (i + 1 < count && strcmp(arguments[i], "--seed") == 0) {
            seed = strtoull(arguments[++i], NULL, 10);
        } else if (i + 1 < count && strcmp(arguments[i], "--runs") == 0) {
            runs = strtoull(arguments[++i], NULL, 10);
        } else {
            fprintf(stderr, "usage: simulate [--seed N] [--runs N] [--trace]\n");
            return 2;
        }
    }
    struct timespec begin, end;
    uint64_t steps = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint64_t i = 0; i < runs; i++) {
        if (!schedule(seed + i, trace, &steps)) {
            fprintf(stderr, "replay: simulate --seed %llu --trace\n", (unsigned long long)(seed + i));
            return 1;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("%llu schedules of the engine, %llu steps, %.1f s\n", (unsigned long long)runs, (unsigned long long)steps,
           (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
    return 0;
}
