/*
 * What the bus needs of the system and Node.js does not offer: the last section of tensorbus.h, which includes it.
 * Handles are those of this section only; each belongs to the process that made it, and may be used from any of its
 * threads.
 */
#ifndef TENSORBUS_BUS_H
#define TENSORBUS_BUS_H

#include "tensorbus.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A port gathers what the threads of this section have to say. *fd is the read end of a pipe, which becomes readable
 * when a token waits for tb_port_next; the caller closes it after the port.
 */
TB_API int32_t tb_port_open(uint64_t *port, int32_t *fd, tb_error *err);
/* Fills *token with the next one that was raised; *found is 0 if there is none. A token waits at most once. */
TB_API int32_t tb_port_next(uint64_t port, uint64_t *token, uint32_t *found, tb_error *err);
/* TB_EBUSY while a waiter, watch or gate reports to it. */
TB_API int32_t tb_port_close(uint64_t port, tb_error *err);

/*
 * A POSIX named semaphore. create: TB_EEXISTS if the name is taken; mode 0600, value 0. open: TB_EFOREIGN unless it
 * belongs to this user and to nobody else; err->os_errno is ENOENT if there is none. close keeps the name.
 */
TB_API int32_t tb_semaphore_create(const char *name, uint64_t *semaphore, tb_error *err);
TB_API int32_t tb_semaphore_open(const char *name, uint64_t *semaphore, tb_error *err);
TB_API int32_t tb_semaphore_post(uint64_t semaphore, tb_error *err);
/* Takes one without waiting; *taken is 0 if there is none. */
TB_API int32_t tb_semaphore_try(uint64_t semaphore, uint32_t *taken, tb_error *err);
/* Takes one. Blocks, at most timeout_ns of CLOCK_MONOTONIC (TB_ETIMEOUT): never for an event loop. */
TB_API int32_t tb_semaphore_wait(uint64_t semaphore, uint64_t timeout_ns, tb_error *err);
TB_API int32_t tb_semaphore_close(uint64_t semaphore, tb_error *err);
/* Removes the name; *removed is 0 if there was none. */
TB_API int32_t tb_semaphore_unlink(const char *name, uint32_t *removed, tb_error *err);

/*
 * A thread that waits on a semaphore and raises token at port for every post, several posts at once as one. After a
 * post it spins for spin_ns before it sleeps, as long as posts keep coming; 0 never spins.
 */
TB_API int32_t tb_waiter_start(uint64_t port, uint64_t semaphore, uint64_t token, uint64_t spin_ns, uint64_t *waiter,
                               tb_error *err);
TB_API int32_t tb_waiter_stop(uint64_t waiter, tb_error *err);

/*
 * A file of single-byte locks, which the kernel frees when the process ends, however it ends. The file is made with
 * mode 0600 if it is missing; TB_EFOREIGN unless it belongs to this user and to nobody else.
 */
TB_API int32_t tb_lock_open(const char *path, uint64_t *lock, tb_error *err);
/* Takes the lock at offset without waiting; *taken is 0 if another holds it. */
TB_API int32_t tb_lock_try(uint64_t lock, uint64_t offset, uint32_t *taken, tb_error *err);
/* The same beside others that share it. */
TB_API int32_t tb_lock_share(uint64_t lock, uint64_t offset, uint32_t *taken, tb_error *err);
TB_API int32_t tb_lock_release(uint64_t lock, uint64_t offset, tb_error *err);
/* *held is 1 while another open of the file, in whatever process, holds the lock at offset. */
TB_API int32_t tb_lock_held(uint64_t lock, uint64_t offset, uint32_t *held, tb_error *err);
/* Frees all that was taken through it. */
TB_API int32_t tb_lock_close(uint64_t lock, tb_error *err);

/* A thread that waits until nobody holds the lock at offset, raises token at port, once, and ends. */
TB_API int32_t tb_watch_start(uint64_t port, const char *path, uint64_t offset, uint64_t token, uint64_t *watch,
                              tb_error *err);
TB_API int32_t tb_watch_stop(uint64_t watch, tb_error *err);

/*
 * The door before the write lock of an LMDB environment: whoever has entered it finds that lock free, so that it can be
 * taken on an event loop. It is the lock at offset 0 of the file at path.
 */
TB_API int32_t tb_gate_open(uint64_t port, const char *path, uint64_t token, uint64_t *gate, tb_error *err);
/*
 * Looks at LMDB's own lock file too, so that a process which writes without passing the gate is seen. *attached is 0
 * if the file does not stand yet; call it again once LMDB has made it.
 */
TB_API int32_t tb_gate_attach(uint64_t gate, const char *data_path, const char *lock_path, uint32_t *attached,
                              tb_error *err);
/*
 * Inside of the gate, before LMDB opens its files in this process: checks all that LMDB would trust, and takes the
 * space of what it touches first. Makes both files if they are missing. map_bytes: of the map that LMDB will make.
 * Whoever has the files open shares the byte TB_GATE_USERS of the gate's file, and the caller does so from then on. If
 * *users is not TB_GATE_USERS_KNOWN, nothing was checked and LMDB must not open the files: a process that ends lets go
 * of both one after the other, so that it is worth another try for a moment. TB_EBUS_FORMAT, TB_ENO_SPACE, TB_EFOREIGN;
 * TB_ESYSTEM or TB_ENO_MEMORY if this process has too few descriptors or too little address space left.
 */
#define TB_GATE_USERS 3 /* src/bus/process/liveness.ts: lockOffsets */
enum tb_gate_users {
    TB_GATE_USERS_KNOWN = 0,     /* or there are none */
    TB_GATE_USERS_UNKNOWN = 1,   /* others have LMDB's lock file open, and nobody shares the byte */
    TB_GATE_USERS_ELSEWHERE = 2, /* others share the byte, and nobody has LMDB's lock file open */
};
TB_API int32_t tb_gate_prepare(uint64_t gate, const char *data_path, const char *lock_path, uint64_t map_bytes,
                               uint32_t *users, tb_error *err);
/*
 * Inside of the gate, once LMDB has opened its files and tb_gate_attach has seen them: from here on it looks at them,
 * and no page of theirs that is missing since somebody has cut them ends this process. That lasts until tb_gate_close,
 * which is for when LMDB has closed them. *lost is the address of a word of 32 bits that counts, for the whole process
 * and for good, such pages. At *metas stand both meta pages, of *page_bytes each.
 */
TB_API int32_t tb_gate_guard(uint64_t gate, const char *data_path, const char *lock_path, uint64_t *lost,
                             uint64_t *metas, uint32_t *page_bytes, tb_error *err);
/*
 * Once LMDB has begun to read, and again before that is believed if a page was missing meanwhile: TB_EBUS_FORMAT if
 * LMDB's files were cut or overwritten, or if they or the gate's were removed, which is looked for every few
 * milliseconds. tb_gate_enter and tb_gate_leave ask too.
 */
TB_API int32_t tb_gate_check(uint64_t gate, tb_error *err);
/*
 * Inside of a write transaction, before it is committed: takes the space that it may need, so that no write fails. It
 * has put values: those of up to half a page have small_bytes in all, the others take big_pages. A transaction that
 * removes something may use the last pages, which others leave to it. TB_ENO_SPACE.
 */
TB_API int32_t tb_gate_reserve(uint64_t gate, uint32_t puts, uint32_t removes, uint32_t small_bytes, uint32_t big_pages,
                               tb_error *err);
/* Inside of a write transaction: *owned is 1 if LMDB's write lock is where tb_gate_attach looks for it. */
TB_API int32_t tb_gate_verify(uint64_t gate, uint32_t *owned, tb_error *err);
/*
 * What most transactions stay within: as many puts and removes, and bytes of values of up to half a page, and no
 * others.
 */
#define TB_GATE_USUAL_CHANGES 8
#define TB_GATE_USUAL_BYTES 4096
/*
 * Enters, trying for at most spin_ns; *entered is 0 if another is inside, and 2 if the space of one usual transaction
 * is taken already, which needs no tb_gate_reserve then. *holder is a thread id if it is known, else 0. TB_EBUS_FORMAT
 * if LMDB's files were overwritten.
 */
TB_API int32_t tb_gate_enter(uint64_t gate, uint64_t spin_ns, uint32_t *entered, int32_t *holder, tb_error *err);
/* Leaves, whatever it returns: TB_EBUS_FORMAT as tb_gate_check, and then what was done inside is not to be believed. */
TB_API int32_t tb_gate_leave(uint64_t gate, tb_error *err);
/* Raises the gate's token once it was seen free; a thread waits for that. */
TB_API int32_t tb_gate_await(uint64_t gate, tb_error *err);
TB_API int32_t tb_gate_close(uint64_t gate, tb_error *err);

/*
 * A word in shared memory that a thread sets to CLOCK_MONOTONIC every interval_ms, as long as the process is not
 * stopped. start: TB_EEXISTS if the name is taken. stop removes the name.
 */
TB_API int32_t tb_heartbeat_start(const char *name, uint32_t interval_ms, uint64_t *heartbeat, tb_error *err);
TB_API int32_t tb_heartbeat_stop(uint64_t heartbeat, tb_error *err);
/* Another process's: TB_EFOREIGN unless it belongs to this user; err->os_errno is ENOENT if there is none. */
TB_API int32_t tb_pulse_open(const char *name, uint64_t *pulse, tb_error *err);
/* Nanoseconds since its last beat. */
TB_API int32_t tb_pulse_age(uint64_t pulse, uint64_t *age_ns, tb_error *err);
TB_API int32_t tb_pulse_close(uint64_t pulse, tb_error *err);
/* Removes the name of a dead process's heartbeat; *removed is 0 if there was none. */
TB_API int32_t tb_heartbeat_unlink(const char *name, uint32_t *removed, tb_error *err);

/*
 * The door of clients that are no processes of Node.js. uid of the process that made a Unix socket's connection, as
 * this process's user namespace names it.
 */
TB_API int32_t tb_peer_uid(int32_t fd, uint32_t *uid, tb_error *err);

/* Descriptors in one hand-over, at most: what Linux takes in one message. */
#define TB_HANDOVER_MAX 253

/*
 * A Unix socket on which clients hand over descriptors: each connection begins with the 16 bytes of its client's
 * secret; each message after that is a number (u64, little-endian) and its descriptors. It is accepted and received
 * only by the calls below, none of which blocks. open: the path must be free. close leaves it.
 */
TB_API int32_t tb_handover_open(const char *path, uint32_t mode, uint64_t *handover, tb_error *err);
TB_API int32_t tb_handover_close(uint64_t handover, tb_error *err);
/* A client of that user may come with this secret, once; forget closes its connection. */
TB_API int32_t tb_handover_expect(uint64_t handover, const uint8_t secret[16], uint32_t uid, tb_error *err);
TB_API int32_t tb_handover_forget(uint64_t handover, const uint8_t secret[16], tb_error *err);
/*
 * The descriptors of a hand-over that the client has sent, close-on-exec; the caller closes them. Hand-overs with
 * smaller numbers are closed. TB_ETENSOR_MISSING if it has not come, TB_EPROTOCOL if something else has.
 */
TB_API int32_t tb_handover_take(uint64_t handover, const uint8_t secret[16], uint64_t number, int32_t *fds,
                                uint32_t capacity, uint32_t *count, tb_error *err);
/* Sends the client one byte with a read-only descriptor of a heartbeat of this process. */
TB_API int32_t tb_handover_lend(uint64_t handover, const uint8_t secret[16], const char *heartbeat, tb_error *err);

#ifdef __cplusplus
}
#endif
#endif
