/* The table of handles, behind its own lock. */
#include "base/handle.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/error.h"

typedef struct slot {
    void *object; /* NULL: the slot is free */
    void (*destroy)(void *);
    uint32_t generation; /* the generation of the object in the slot; never 0 */
    uint32_t users;
    enum tb_handle_kind kind;
    bool open;
} slot;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER;
static slot *slots;
static uint32_t slot_count;

/* The slot of a handle, or NULL. The lock is held, here and in the next three. */
static slot *find(uint64_t handle) {
    uint32_t index = (uint32_t)handle;
    bool known = index < slot_count && slots[index].generation == (uint32_t)(handle >> 32);
    return known && slots[index].object != NULL ? &slots[index] : NULL;
}

static slot *find_open(enum tb_handle_kind kind, uint64_t handle) {
    slot *found = find(handle);
    return found != NULL && found->open && found->kind == kind ? found : NULL;
}

/* Takes the object out of a slot that nobody needs any more. */
static void *vacate(slot *left) {
    void *object = left->object;
    left->object = NULL;
    left->generation = left->generation == UINT32_MAX ? 1 : left->generation + 1;
    return object;
}

static bool grow(void) {
    uint32_t more = slot_count == 0 ? 16 : slot_count * 2;
    slot *larger = more <= slot_count ? NULL : realloc(slots, more * sizeof *slots);
    if (larger == NULL) {
        return false;
    }
    for (uint32_t i = slot_count; i < more; i++) {
        larger[i] = (slot){.generation = 1};
    }
    slots = larger;
    slot_count = more;
    return true;
}

int32_t tb_handle_add(enum tb_handle_kind kind, void *object, void (*destroy)(void *), uint64_t *handle,
                      tb_error *err) {
    pthread_mutex_lock(&lock);
    uint32_t index = 0;
    while (index < slot_count && slots[index].object != NULL) {
        index++;
    }
    if (index == slot_count && !grow()) {
        pthread_mutex_unlock(&lock);
        return tb_fail(err, TB_ENO_MEMORY, -1, ENOMEM, "no memory for another handle");
    }
    slot *made = &slots[index];
    *made = (slot){object, destroy, made->generation, 0, kind, true};
    *handle = (uint64_t)made->generation << 32 | index;
    pthread_mutex_unlock(&lock);
    return TB_OK;
}

void *tb_handle_get(enum tb_handle_kind kind, uint64_t handle, tb_error *err) {
    void *object = NULL;
    pthread_mutex_lock(&lock);
    slot *found = find_open(kind, handle);
    if (found != NULL) {
        found->users++;
        object = found->object;
    }
    pthread_mutex_unlock(&lock);
    if (object == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "it was closed");
    }
    return object;
}

void tb_handle_put(uint64_t handle) {
    void *object = NULL;
    void (*destroy)(void *) = NULL;
    pthread_mutex_lock(&lock);
    slot *found = find(handle);
    if (found != NULL && --found->users == 0) {
        destroy = found->destroy;
        object = !found->open && destroy != NULL ? vacate(found) : NULL;
        pthread_cond_broadcast(&unused);
    }
    pthread_mutex_unlock(&lock);
    if (object != NULL) {
        destroy(object);
    }
}

int32_t tb_handle_close(enum tb_handle_kind kind, uint64_t handle, tb_error *err) {
    void *object = NULL;
    void (*destroy)(void *) = NULL;
    pthread_mutex_lock(&lock);
    slot *found = find_open(kind, handle);
    if (found != NULL) {
        found->open = false;
        destroy = found->destroy;
        object = found->users == 0 ? vacate(found) : NULL;
    }
    pthread_mutex_unlock(&lock);
    if (object != NULL) {
        destroy(object);
    }
    return found != NULL ? TB_OK : tb_fail(err, TB_ECLOSED, -1, 0, "it was closed before");
}

void *tb_handle_take(enum tb_handle_kind kind, uint64_t handle, tb_error *err) {
    void *object = NULL;
    pthread_mutex_lock(&lock);
    slot *found = find_open(kind, handle);
    if (found != NULL) {
        found->open = false;
        found->destroy = NULL;
        while (found->users > 0) {
            pthread_cond_wait(&unused, &lock);
            found = find(handle); /* the table may have moved */
        }
        object = vacate(found);
    }
    pthread_mutex_unlock(&lock);
    if (object == NULL) {
        tb_fail(err, TB_ECLOSED, -1, 0, "it was closed before");
    }
    return object;
}
