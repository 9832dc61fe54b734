#include "base/handle.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

typedef struct entry {
    struct entry *next;
    uint64_t handle;
    enum tb_handle_kind kind;
    void *object;
    uint32_t users;
    bool taken;
} entry;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER;
static entry *entries;
static uint64_t last_handle;

static entry *find(uint64_t handle) {
    entry *at = entries;
    while (at != NULL && at->handle != handle) {
        at = at->next;
    }
    return at;
}

uint64_t tb_handle_add(enum tb_handle_kind kind, void *object) {
    entry *new = calloc(1, sizeof *new);
    if (new == NULL) {
        return 0;
    }
    pthread_mutex_lock(&lock);
    new->next = entries;
    new->handle = ++last_handle;
    new->kind = kind;
    new->object = object;
    entries = new;
    uint64_t handle = new->handle;
    pthread_mutex_unlock(&lock);
    return handle;
}

static void *closed(tb_error *err) {
    tb_fail(err, TB_ECLOSED, -1, 0, "it was closed");
    return NULL;
}

void *tb_handle_get(enum tb_handle_kind kind, uint64_t handle, tb_error *err) {
    void *object = NULL;
    pthread_mutex_lock(&lock);
    entry *at = find(handle);
    if (at != NULL && at->kind == kind && !at->taken) {
        at->users++;
        object = at->object;
    }
    pthread_mutex_unlock(&lock);
    return object != NULL ? object : closed(err);
}

void tb_handle_put(uint64_t handle) {
    pthread_mutex_lock(&lock);
    entry *at = find(handle);
    if (--at->users == 0) {
        pthread_cond_broadcast(&unused);
    }
    pthread_mutex_unlock(&lock);
}

void *tb_handle_take(enum tb_handle_kind kind, uint64_t handle, tb_error *err) {
    pthread_mutex_lock(&lock);
    entry *taken = find(handle);
    if (taken == NULL || taken->kind != kind || taken->taken) {
        pthread_mutex_unlock(&lock);
        return closed(err);
    }
    taken->taken = true;
    while (taken->users > 0) {
        pthread_cond_wait(&unused, &lock);
    }
    entry **at = &entries;
    while (*at != taken) {
        at = &(*at)->next;
    }
    *at = taken->next;
    pthread_mutex_unlock(&lock);
    void *object = taken->object;
    free(taken);
    return object;
}
