/* Staging memory: how much is in use, and how much a stream may take. It has a lock of its own. */
#include "flow/stream.h"
#include "flow/staging.h"

int tb_staging_init(tb_staging *staging) {
    int error = pthread_mutex_init(&staging->lock, NULL);
    if (error != 0) {
        return error;
    }
    error = pthread_cond_init(&staging->freed, NULL);
    if (error != 0) {
        pthread_mutex_destroy(&staging->lock);
    }
    return error;
}

void tb_staging_destroy(tb_staging *staging) {
    pthread_cond_destroy(&staging->freed);
    pthread_mutex_destroy(&staging->lock);
}

void tb_staging_add(tb_staging *staging, uint64_t bytes) {
    pthread_mutex_lock(&staging->lock);
    staging->now += bytes;
    staging->high = staging->now > staging->high ? staging->now : staging->high;
    pthread_mutex_unlock(&staging->lock);
}

void tb_staging_remove(tb_staging *staging, uint64_t bytes) {
    pthread_mutex_lock(&staging->lock);
    staging->now -= bytes;
    pthread_mutex_unlock(&staging->lock);
}

/*
 * A stream that holds some gives it back after one system call and one unpack, waiting for nothing: so this wait ends.
 */
uint64_t tb_staging_reserve(tb_staging *staging, int direction, uint64_t bytes, bool wait) {
    enum { ELEMENT = 8 };
    pthread_mutex_lock(&staging->lock);
    uint64_t limit = staging->limit[direction];
    while (wait && staging->streams[direction] > 0 && limit - staging->streams[direction] < ELEMENT) {
        pthread_cond_wait(&staging->freed, &staging->lock);
    }
    uint64_t room = limit - staging->streams[direction];
    bytes = bytes < room ? bytes : room;
    staging->streams[direction] += bytes;
    pthread_mutex_unlock(&staging->lock);
    return bytes;
}

void tb_staging_unreserve(tb_staging *staging, int direction, uint64_t bytes) {
    if (bytes == 0) {
        return;
    }
    pthread_mutex_lock(&staging->lock);
    staging->streams[direction] -= bytes;
    pthread_cond_broadcast(&staging->freed);
    pthread_mutex_unlock(&staging->lock);
}
