/*
 * Handles: what the caller of the library holds instead of a pointer. A handle is an index and a generation, so that a
 * stale one is refused. The table has a lock of its own, which is never held while an object is destroyed.
 */
#ifndef TB_HANDLE_H
#define TB_HANDLE_H

#include <stdint.h>

#include "tensorbus.h"

enum tb_handle_kind {
    TB_HANDLE_SESSION = 1,
    TB_HANDLE_HUB,
    TB_HANDLE_PORT,
    TB_HANDLE_SEMAPHORE,
    TB_HANDLE_WAITER,
    TB_HANDLE_LOCK,
    TB_HANDLE_WATCH,
    TB_HANDLE_GATE,
    TB_HANDLE_HEARTBEAT,
    TB_HANDLE_PULSE,
    TB_HANDLE_EVENT,
    TB_HANDLE_HANDOVER,
};

/* destroy is called once, by the last user after tb_handle_close; NULL if the object ends by tb_handle_take alone. */
int32_t tb_handle_add(enum tb_handle_kind kind, void *object, void (*destroy)(void *), uint64_t *handle, tb_error *err);
/* The object, which lives at least until tb_handle_put; NULL and TB_ECLOSED if it was closed. */
void *tb_handle_get(enum tb_handle_kind kind, uint64_t handle, tb_error *err);
void tb_handle_put(uint64_t handle);
/* No tb_handle_get finds it from here on. It is destroyed at once, or by the last of those who use it. */
int32_t tb_handle_close(enum tb_handle_kind kind, uint64_t handle, tb_error *err);
/*
 * No tb_handle_get finds it from here on; waits until nobody uses it any more, and returns it. NULL and TB_ECLOSED for
 * all but the first who asks.
 */
void *tb_handle_take(enum tb_handle_kind kind, uint64_t handle, tb_error *err);

#endif
