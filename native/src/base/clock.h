/*
 * The one clock of native code. Everything that waits counts from it; a simulation links another clock.c in its place.
 */
#ifndef TB_CLOCK_H
#define TB_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t tb_now(void);
/* timeout_ns from now; UINT64_MAX is never. */
uint64_t tb_deadline(uint64_t timeout_ns);
/* A moment of tb_now as the C library wants it. */
struct timespec tb_timespec(uint64_t ns);
/* A condition whose timed waits end at a moment of tb_now. Returns an errno. */
int tb_cond_init(pthread_cond_t *cond);

#endif
