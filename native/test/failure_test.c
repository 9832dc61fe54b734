/* Cancels, deadlines, deaths and disagreements: every rank learns of them, and memory is quiet afterwards. */
#include "base/handle.h"
#include "kernels/dtype.h"
#include "round/transfer.h"
#include "world_kit.h"

static const world_options *transport;

enum { BYTES = 8 << 20, PARTS = 6 };

/* A chain, 0 to 1 to 2 to 3: ranks 0 and 3 are no peers of each other. Each hop is a tensor of its own. */
static void chain(kit *k, int ranks) {
    kit_start(k, 2, 2);
    for (int hop = 0; hop + 1 < ranks; hop++) {
        kit_tensor(k, (uint32_t)hop, TB_UINT8, (uint64_t)BYTES * PARTS, TB_UINT8, (uint64_t)BYTES * PARTS);
        for (int i = 0; i < PARTS; i++) {
            kit_bucket *bucket = kit_bucket_add(k, 1, (uint32_t)hop, (uint32_t)hop + 1, 0);
            kit_copy(k, bucket, (uint32_t)hop, BYTES, kit_run((int64_t)i * BYTES, BYTES),
                     kit_run((int64_t)i * BYTES, BYTES));
        }
    }
}

static void check_chain(world *w) {
    for (int hop = 0; hop + 1 < w->ranks; hop++) {
        CHECK(memcmp(w->memory[hop][hop][0], w->memory[hop + 1][hop][1], (size_t)BYTES * PARTS) == 0);
    }
}

static void wait_for_bytes(world *w, int rank) {
    uint64_t round, done = 0, total, staging;
    while (done == 0) {
        world_pump(w, 1);
        CHECK(tb_transfer_progress(w->session[rank], w->transfer[rank], &round, &done, &total, &staging, NULL)
              == TB_OK);
    }
}

/*
 * In the middle of a round, and again and again: the rounds after it work, and nothing stale arrives in them.
 */
static void test_cancel(void) {
    world w;
    kit k;
    chain(&k, 4);
    world_open(&w, transport, 4);
    world_prepare(&w, &k, 0);
    uint64_t round = 0;
    for (int canceller = 0; canceller < 4; canceller++) {
        round++;
        for (int rank = 0; rank < 4; rank++) {
            if (rank != 3) {
                world_post(&w, rank, round, 20 * SECOND); /* rank 3 is late: nobody can be done */
            }
        }
        wait_for_bytes(&w, canceller == 3 ? 1 : canceller);
        if (canceller == 3) {
            world_post(&w, 3, round, 20 * SECOND);
        }
        CHECK(tb_transfer_cancel(w.session[canceller], w.transfer[canceller], TB_ECANCELLED, NULL) == TB_OK);
        tb_event event;
        CHECK(world_take(&w, canceller, TB_EVENT_ROUND, 20 * SECOND, &event));
        /* Ranks 0 and 1 do not need rank 3, and may have been faster than the cancel. */
        bool cancelled = event.error.code != TB_OK;
        CHECK(cancelled ? event.error.code == TB_ECANCELLED && event.error.rank == canceller : canceller < 2);
        /* Once the event is there, nothing may touch the memory any more. */
        if (canceller > 0) {
            memset(w.memory[canceller][canceller - 1][1], 0x55, (size_t)BYTES * PARTS);
        }
        /*
         * Rank 2 cannot be done before rank 3 posts, so it hears of the cancel before that; posting any sooner, rank 3
         * might be served by a rank that has not yet heard of it, which is no fault.
         */
        if (canceller != 3 && !cancelled) {
            world_post(&w, 3, round, 20 * SECOND);
        }
        for (int rank = 0; rank < 4; rank++) {
            if (rank == canceller) {
                continue;
            }
            if (rank == 3 && cancelled) {
                world_post(&w, 3, round, 20 * SECOND);
            }
            CHECK(world_take(&w, rank, TB_EVENT_ROUND, 20 * SECOND, &event));
            bool done = event.error.code == TB_OK;
            CHECK(done ? rank < 2 || !cancelled
                       : event.error.code == TB_ECANCELLED && event.error.rank == canceller);
        }
        for (uint64_t at = 0; canceller > 0 && at < (uint64_t)BYTES * PARTS; at++) {
            CHECK(w.memory[canceller][canceller - 1][1][at] == 0x55);
        }
        world_round(&w, ++round);
        check_chain(&w);
    }
    world_release(&w);
    world_close(&w);
    kit_free(&k);
}

/* Returns once the rank has heard that its peer has begun the round. */
static void wait_for_begin(world *w, int rank, int peer, uint64_t round) {
    bool heard = false;
    for (uint64_t until = test_now() + 20 * SECOND; !heard; world_pump(w, 1)) {
        tb_net *net = tb_handle_get(TB_HANDLE_SESSION, w->session[rank], NULL);
        CHECK(net != NULL && test_now() < until);
        pthread_mutex_lock(&net->lock);
        heard = net->peers[peer]->exchanges->here >= round;
        pthread_mutex_unlock(&net->lock);
        tb_handle_put(w->session[rank]);
    }
}

static void test_deadline(void) {
    world w;
    kit k;
    chain(&k, 4);
    world_open(&w, transport, 4);
    world_prepare(&w, &k, 0);
    world_post(&w, 0, 1, 20 * SECOND);
    world_post(&w, 1, 1, 20 * SECOND);
    wait_for_begin(&w, 2, 1, 1); /* else it is that rank which is late */
    world_post(&w, 2, 1, SECOND / 20);
    /* Whom it waited for is named there and elsewhere; that rank itself hears that the round is over. */
    world_expect(&w, 2, TB_EVENT_ROUND, TB_ETIMEOUT, 3, NULL);
    int32_t ranks[1];
    uint32_t states[1], count;
    CHECK(tb_transfer_waits(w.session[2], w.transfer[2], ranks, states, 1, &count, NULL) == TB_OK);
    CHECK(count >= 1 && states[0] == (ranks[0] == 3 ? TB_WAITS_ABSENT : TB_WAITS_UNFINISHED));
    tb_event event;
    CHECK(world_take(&w, 1, TB_EVENT_ROUND, 20 * SECOND, &event));
    CHECK(event.error.code == TB_OK || (event.error.code == TB_ECANCELLED && event.error.rank == 3));
    world_post(&w, 3, 1, 20 * SECOND);
    world_expect(&w, 3, TB_EVENT_ROUND, TB_ECANCELLED, 3, NULL);
    CHECK(world_take(&w, 0, TB_EVENT_ROUND, 20 * SECOND, &event));
    world_round(&w, 2);
    check_chain(&w);
    world_close(&w);
    kit_free(&k);
}

/*
 * A session that ends in the middle of a round: unfinished ranks fail with its rank, also those that are no
 * peers of it.
 */
static void test_loss(void) {
    world w;
    kit k;
    chain(&k, 4);
    world_open(&w, transport, 4);
    world_prepare(&w, &k, 0);
    for (int rank = 1; rank < 4; rank++) {
        world_post(&w, rank, 1, 20 * SECOND);
    }
    /* Rank 0 never posts, so rank 1 is unfinished; the others finish. */
    world_expect(&w, 3, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_expect(&w, 2, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_close_rank(&w, 0);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_EPEER_LOST, 0, NULL);
    /* What was prepared with it is over; with others it can be prepared anew. */
    world_post(&w, 1, 2, 20 * SECOND);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_EPEER_LOST, 0, NULL);
    for (int rank = 1; rank < 4; rank++) {
        CHECK(tb_transfer_release(w.session[rank], w.transfer[rank], NULL) == TB_OK);
        CHECK(tb_transfer_release(w.session[rank], w.transfer[rank], NULL) == TB_ECLOSED);
    }
    world_forget_memory(&w, 0, 0, 0);
    world_open_rank(&w, 0);
    world_introduce(&w);
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    check_chain(&w);
    world_close(&w);
    kit_free(&k);
}

/* Ranks 0 and 1 exchange bytes, so do 2 and 3, and 0 and 2 are linked: neither pair runs ahead of the other. */
static void test_links(void) {
    world w;
    kit k;
    kit_start(&k, 2, 2);
    for (uint32_t pair = 0; pair < 2; pair++) {
        kit_tensor(&k, pair, TB_UINT8, BYTES, TB_UINT8, BYTES);
        kit_bucket *bucket = kit_bucket_add(&k, 1, 2 * pair, 2 * pair + 1, 0);
        kit_copy(&k, bucket, pair, BYTES, kit_run(0, BYTES), kit_run(0, BYTES));
    }
    world_open(&w, transport, 4);
    w.linked = true;
    world_prepare(&w, &k, 0);
    world_post(&w, 0, 1, 20 * SECOND);
    world_post(&w, 1, 1, 20 * SECOND);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
    int32_t ranks[4];
    uint32_t states[4], count = 0;
    for (bool taken = false; !taken;) { /* until rank 1 has said that it took all */
        world_pump(&w, 1);
        CHECK(tb_transfer_waits(w.session[0], w.transfer[0], ranks, states, 4, &count, NULL) == TB_OK);
        taken = count == 1;
    }
    CHECK(ranks[0] == 2 && states[0] == TB_WAITS_ABSENT);
    world_post(&w, 2, 1, 20 * SECOND);
    world_expect(&w, 0, TB_EVENT_ROUND, TB_OK, -1, NULL);
    /* What ends a round of one pair ends that of the other. */
    CHECK(tb_transfer_post_cancelled(w.session[1], w.transfer[1], 2, NULL) == TB_OK);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_ECANCELLED, 1, NULL);
    world_post(&w, 3, 1, 20 * SECOND);
    world_expect(&w, 3, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_expect(&w, 2, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_post(&w, 3, 2, 20 * SECOND);
    world_expect(&w, 3, TB_EVENT_ROUND, TB_ECANCELLED, 1, NULL);
    for (int rank = 0; rank < 4; rank += 2) {
        world_post(&w, rank, 2, 20 * SECOND);
        world_expect(&w, rank, TB_EVENT_ROUND, TB_ECANCELLED, 1, NULL);
    }
    world_round(&w, 3);
    world_close(&w);
    kit_free(&k);
}

static void test_mismatch(void) {
    world w;
    kit k;
    chain(&k, 2);
    world_open(&w, transport, 2);
    world_prepare_rank(&w, &k, 0, 0, 20 * SECOND);
    k.digest[5] ^= 1;
    world_prepare_rank(&w, &k, 1, 0, 20 * SECOND);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_EPLAN_MISMATCH, 1, NULL);
    world_expect(&w, 1, TB_EVENT_PREPARED, TB_EPLAN_MISMATCH, 0, NULL);
    world_release(&w);
    world_prepare_rank(&w, &k, 0, TB_TRANSFER_CHECKSUM, 20 * SECOND);
    world_prepare_rank(&w, &k, 1, 0, 20 * SECOND);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_EPLAN_MISMATCH, 1, NULL);
    world_expect(&w, 1, TB_EVENT_PREPARED, TB_EPLAN_MISMATCH, 0, NULL);
    world_release(&w);
    /* The same key, once both agree; and a prepare that nobody joins. */
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    check_chain(&w);
    world_release(&w);
    world_prepare_rank(&w, &k, 0, 0, SECOND / 20);
    world_expect(&w, 0, TB_EVENT_PREPARED, TB_ETIMEOUT, 1, NULL);
    CHECK(tb_transfer_post(w.session[0], w.transfer[0], 9, SECOND, NULL) == TB_EINVALIDATED);
    CHECK(tb_transfer_release(w.session[0], w.transfer[0], NULL) == TB_OK);
    world_prepare(&w, &k, 0);
    world_round(&w, 1);
    world_close(&w);
    kit_free(&k);
}

static void test_misuse(void) {
    world w;
    kit k;
    tb_error err;
    chain(&k, 2);
    world_open(&w, transport, 2);
    world_allocate(&w, &k, 0);
    world_allocate(&w, &k, 1);
    uint64_t address = (uint64_t)(uintptr_t)w.memory[0][0][0];
    CHECK(tb_session_unregister(w.session[0], address, (uint64_t)BYTES * PARTS, &err) == TB_OK);
    CHECK(world_prepare_code(&w, &k, 0, 0, SECOND, &err) == TB_EREGION);
    CHECK(tb_session_register(w.session[0], address, (uint64_t)BYTES * PARTS, &err) == TB_OK);
    CHECK(tb_session_register(w.session[0], address, (uint64_t)BYTES * PARTS, &err) == TB_EALIAS);
    world_prepare(&w, &k, 0);
    CHECK(tb_session_unregister(w.session[0], address, (uint64_t)BYTES * PARTS, &err) == TB_EBUSY);
    CHECK(world_prepare_code(&w, &k, 0, 0, SECOND, &err) == TB_EBUSY);
    world_post(&w, 0, 1, 20 * SECOND);
    CHECK(tb_transfer_post(w.session[0], w.transfer[0], 2, SECOND, &err) == TB_EBUSY);
    CHECK(tb_transfer_release(w.session[0], w.transfer[0], &err) == TB_EBUSY);
    world_post(&w, 1, 1, 20 * SECOND);
    world_expect(&w, 0, TB_EVENT_ROUND, TB_OK, -1, NULL);
    world_expect(&w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
    /* The other side's release ends the next round at once. */
    CHECK(tb_transfer_release(w.session[1], w.transfer[1], &err) == TB_OK);
    world_post(&w, 0, 2, 20 * SECOND);
    tb_event event;
    CHECK(world_take(&w, 0, TB_EVENT_ROUND, 20 * SECOND, &event));
    CHECK(event.error.code == TB_EINVALIDATED || event.error.code == TB_EPEER_LOST);
    CHECK(event.error.rank == 1);
    uint64_t session = w.session[0];
    world_close_rank(&w, 0);
    CHECK(tb_session_close(session, &err) == TB_ECLOSED);
    CHECK(tb_session_next_event(session, &event, &err) == TB_ECLOSED);
    CHECK(tb_transfer_post(session, 1, 5, SECOND, &err) == TB_ECLOSED);
    CHECK(tb_session_register(session, address, 1, &err) == TB_ECLOSED);
    CHECK(tb_session_handshake(session, 1, NULL, 0, &err) == TB_ECLOSED);
    world_close(&w);
    kit_free(&k);
}

int main(void) {
    static const world_options transports[] = {
        {.kind = TB_BACKEND_MEMORY, .threads = 1, .connections = 1},
        {.kind = TB_BACKEND_MEMORY, .threads = 2, .connections = 1},
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1},
        {.kind = TB_BACKEND_TCP, .threads = 3, .connections = 2},
        {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = TB_CARRY_SHM},
        {.kind = TB_BACKEND_TCP,
         .threads = 2,
         .connections = 1,
         .carriers = TB_CARRY_SHM | TB_CARRY_APART,
         .shared = true},
        {.kind = TB_BACKEND_TCP, .threads = 3, .connections = 1, .carriers = TB_CARRY_SHM | TB_CARRY_APART},
    };
    for (size_t i = 0; i < sizeof transports / sizeof transports[0]; i++) {
        transport = &transports[i];
        test_cancel();
        test_deadline();
        test_loss();
        test_links();
        test_mismatch();
        test_misuse();
    }
    return 0;
}
