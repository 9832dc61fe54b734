/* Waiting for a semaphore by the monotonic clock, on a system whose semaphores know the wall clock alone. */
#ifndef TB_BUS_SEMAPHORE_H
#define TB_BUS_SEMAPHORE_H

#include <semaphore.h>
#include <stdint.h>

/* Takes one, waiting until tb_now() is `end`. Returns 0 or an errno, ETIMEDOUT among them. */
int tb_semaphore_await_by_wall_clock(sem_t *semaphore, uint64_t end);

#endif
