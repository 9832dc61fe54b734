/* Handles of sessions and hubs: a number that was never given out before, so that a stale one is refused. */
#ifndef TB_HANDLE_H
#define TB_HANDLE_H

#include <stdint.h>

#include "tensorbus.h"

enum tb_handle_kind { TB_HANDLE_SESSION = 1, TB_HANDLE_HUB = 2 };

/* 0 where there is no memory for it. */
uint64_t tb_handle_add(enum tb_handle_kind kind, void *object);
/* The object, which lives at least until tb_handle_put; NULL and TB_ECLOSED where it was closed. */
void *tb_handle_get(enum tb_handle_kind kind, uint64_t handle, tb_error *err);
void tb_handle_put(uint64_t handle);
/*
 * No tb_handle_get finds it from here on; returns it once nobody else uses it. NULL and TB_ECLOSED for all
 * but the first who asks.
 */
void *tb_handle_take(enum tb_handle_kind kind, uint64_t handle, tb_error *err);

#endif
