/* A round that is given up while others read in the memory of a peer for another one. */
#include "base/error.h"
#include "base/handle.h"
#include "carriers/registry.h"
#include "round/carrier.h"
#include "round/transfer_peer.h"
#include "world_kit.h"

enum { BYTES = 4 << 20 };

/* A round that takes seconds if there are many buckets: each carries the whole tensor again. */
static void endless(kit *k, int buckets) {
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_UINT8, BYTES, TB_UINT8, BYTES);
    for (int i = 0; i < buckets; i++) {
        kit_copy(k, kit_bucket_add(k, 1, 0, 1, 0), 0, BYTES, kit_run(0, BYTES), kit_run(0, BYTES));
    }
}

/* Says ABORT of those rounds to rank 1, as rank 0 passes it on, while rank 1 reads in rank 0's memory; what it owes then. */
static uint64_t abort_while_read(world *w, const uint64_t *rounds, int count) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, w->session[1], NULL);
    CHECK(session != NULL);
    pthread_mutex_lock(&session->lock);
    tb_exchange *exchange = &session->transfers->exchanges[0];
    while (exchange->pulling < 2) {
        CHECK(exchange->transfer->state == TB_TRANSFER_RUNNING);
        pthread_mutex_unlock(&session->lock);
        world_pump(w, 1);
        pthread_mutex_lock(&session->lock);
    }
    for (int i = 0; i < count; i++) {
        const tb_wire_failure why = {TB_ECANCELLED, 0};
        const tb_wire_header header = {
            .kind = TB_FRAME_ABORT, .transfer = exchange->transfer->handle, .round = rounds[i], .body_bytes = sizeof why};
        CHECK(tb_transfer_on_frame(exchange->peer, &header, (const uint8_t *)&why, NULL) == TB_OK);
    }
    uint64_t owed = exchange->owes_quiet;
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(w->session[1]);
    return owed;
}

/* A third rank is ahead, and gives up a round that these two have not begun: the one under way goes on. */
static void test_abort_of_another_round(void) {
    static const uint64_t ahead[] = {2};
    static const uint64_t around[] = {3, 4, 2}; /* the one under way, and its neighbours */
    world_options options = {.kind = TB_BACKEND_TCP,
                             .threads = 3,
                             .connections = 1,
                             .carriers = TB_CARRY_SHM,
                             .quiesce_ms = 60000};
    world w;
    kit k;
    endless(&k, 400);
    world_open(&w, &options, 2);
    world_prepare(&w, &k, 0);
    for (uint64_t round = 1; round <= 3; round++) {
        world_post(&w, 1, round, 60 * SECOND);
        world_post(&w, 0, round, 60 * SECOND);
        if (round == 1) {
            CHECK(abort_while_read(&w, ahead, 1) == 0);
        } else if (round == 3) {
            CHECK(abort_while_read(&w, around, 3) == 3);
        }
        for (int rank = 0; rank < 2; rank++) {
            tb_event event;
            CHECK(world_take(&w, rank, TB_EVENT_ROUND, 50 * SECOND, &event)); /* before the memory is given up */
            CHECK(event.error.code == (round == 1 ? TB_OK : TB_ECANCELLED));
        }
    }
    world_close(&w);
    kit_free(&k);
}

int main(void) {
    test_abort_of_another_round();
    return 0;
}
