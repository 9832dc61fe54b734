/* Staging memory in use. Its lock is the last to be taken. */
#ifndef TB_STAGING_H
#define TB_STAGING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Streams (not slots, not the pool) of several threads share what was announced for them. */
typedef struct tb_staging {
    pthread_mutex_t lock;
    pthread_cond_t freed;
    uint64_t now, high;
    uint64_t streams[2], limit[2]; /* 0 sending, 1 receiving */
} tb_staging;

int tb_staging_init(tb_staging *staging);
void tb_staging_destroy(tb_staging *staging);
/* Bytes that are in use from here on, and those that are not any more. */
void tb_staging_add(tb_staging *staging, uint64_t bytes);
void tb_staging_remove(tb_staging *staging, uint64_t bytes);
/*
 * The right to as many bytes for a stream as the limit leaves. wait: at least an element; whoever waits holds no other
 * such right. direction: 0 sending, 1 receiving.
 */
uint64_t tb_staging_reserve(tb_staging *staging, int direction, uint64_t bytes, bool wait);
void tb_staging_unreserve(tb_staging *staging, int direction, uint64_t bytes);

#endif
