/* Progress threads: each serves the connections of its loop, and moves what is to be moved in this rank. */
#ifndef TB_THREAD_H
#define TB_THREAD_H

#include "round/transfer.h"

/* A bucket that a thread moves by itself, in slices. */
struct tb_job {
    tb_transfer *transfer; /* NULL: none */
    uint32_t bucket;
    uint64_t moved;
    tb_flow flow;
    tb_cursor source;
    tb_exchange *exchange;        /* whose memory it is pulled from, or NULL */
    uint64_t source_left; /* pulled: bytes of the chunk at the source that are to come */
    bool started;
    uint8_t *bounce; /* the thread's, for private memory of other processes */
    struct iovec *iov;
};

struct tb_thread {
    union { /* first: wire/ knows this part alone */
        struct tb_loop;
        tb_loop loop;
    };
    tb_session *session;
    pthread_t id;
    tb_job job; /* owned by the thread; no lock is needed */
};

/* Makes the threads and their loops, without starting them. */
int32_t tb_threads_make(tb_session *session, tb_error *err);
int32_t tb_threads_start(tb_session *session, tb_error *err);
bool tb_threads_join(tb_session *session, uint64_t until);
void tb_threads_free(tb_session *session);
/*
 * What a thread does in a turn, beside serving its connections: lets go of rounds that failed, looks at timers, takes a
 * job. The lock is held.
 */
void tb_thread_decide(tb_thread *thread);
/* Moves about so many bytes of its job. Without the lock. */
void tb_thread_move(tb_thread *thread, uint64_t limit);
void tb_threads_sweep(tb_session *session);     /* the lock is held */
void tb_threads_offer_job(tb_session *session); /* the lock is held */

#endif
