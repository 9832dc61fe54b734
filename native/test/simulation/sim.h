/*
 * A world of sessions without threads, whose clock, connections and carriers belong to a scheduler that a seed drives.
 *
 * Everything that decides is the engine's own: sessions, transfers, rounds, connections and frames. What is replaced is
 * the clock (base/clock.c), who lives (identity/identity.c), the links, and the two carriers that pull. One step of the
 * scheduler is one thing that could happen next in a cluster: a connection is served, bytes become visible to a reader,
 * a job moves a slice, a prepare opens what it imports, a deadline passes, a link breaks, a process dies, a caller
 * cancels or posts.
 */
#ifndef TB_SIM_H
#define TB_SIM_H

#include <setjmp.h>

#include "../program_build.h"
#include "round/carrier.h"
#include "round/round.h"

enum { SIM_RANKS = 3, SIM_LINKS = 16, SIM_ROUNDS = 3, SIM_RING = 16384, SIM_PULLS = 64 };
enum { SIM_STREAM = 0, SIM_MOVES = 4, SIM_SUBMITS = 5 }; /* numbers of the carriers */

/* One direction of a link: written by one end, visible to the other from `visible` on, read by it. */
typedef struct sim_ring {
    uint8_t *bytes; /* SIM_RING of them, which no schedule clears */
    uint64_t written, visible, read;
    bool finished, told_end;
} sim_ring;

typedef struct tb_pipe {
    int ranks[2];
    uint32_t index; /* of the connection */
    bool used;
    int cut; /* the errno of whoever reads or writes it; 0: it is whole */
    bool closed[2];
    tb_conn *conns[2];
    sim_ring rings[2]; /* by the end that writes */
} sim_link;

typedef struct sim_rank {
    tb_session *session;
    int32_t event_fd;
    bool alive;
    tb_transfer *transfer;
    uint64_t handle; /* of the transfer */
    kit_program program;
    uint8_t *memory[KIT_TENSORS][2];
    bool prepared, broken; /* broken: the prepare failed, or a round can never succeed again */
    uint64_t posted;       /* the latest round; 0: none */
    bool running;          /* its end is still to come */
    uint32_t rest_crc;     /* of the targets, when the last round ended */
} sim_rank;

typedef struct sim {
    uint64_t seed, random, now, steps;
    bool trace;
    int faults; /* that were injected: from then on rounds may fail */
    kit k;
    uint32_t flags;
    uint32_t connections;
    sim_rank ranks[SIM_RANKS];
    sim_link links[SIM_LINKS];
    bool wanted[SIM_RANKS][SIM_RANKS]; /* the first connects with the second */
    tb_job *pulls[SIM_PULLS]; /* that a carrier has submitted, and their ends */
    tb_pull *ends[SIM_PULLS];
    bool launched[SIM_PULLS]; /* it goes to its end, even if its round fails meanwhile */
    uint32_t pull_count;
    uint32_t registered; /* regions and pools that carriers hold */
    jmp_buf failed;
    char why[400];
} sim;

extern sim *the_sim;

/* Fails the schedule. */
_Noreturn void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define SIM_CHECK(condition, ...)                                                                                      \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            sim_fail(__VA_ARGS__);                                                                                     \
        }                                                                                                              \
    } while (0)

/* ---- random.c: xorshift64*; below `limit`, which is not 0 ---- */
uint64_t sim_random(uint64_t limit);

/* ---- links.c ---- */
extern const tb_backend sim_backend;
/* Makes the links that were wanted and can be made now. False if there are none. */
bool sim_connect(void);
/* Says whether something of a direction can become visible, and makes some of it so. */
bool sim_can_deliver(const sim_link *link, int end);
void sim_deliver(sim_link *link, int end);
/*
 * ETIMEDOUT: the network lost it. ECONNRESET: the process at one end is gone, or something between the two has reset it:
 * both may live, and read each other's memory.
 */
void sim_cut(sim_link *link, int os_errno);

/* ---- carriers.c ---- */
extern const tb_carrier *const sim_carriers[];
/* Goes on with a submitted pull. */
void sim_pull(uint32_t index);
/* The process of a rank is gone: what it was pulling never ends. */
void sim_forget_pulls(const tb_session *session);

/* ---- invariants.c ---- */
void sim_check(void);
uint32_t sim_target_crc(const sim_rank *rank);
/* The targets of a round that succeeded hold what they should. */
void sim_check_bytes(int rank);

#endif
