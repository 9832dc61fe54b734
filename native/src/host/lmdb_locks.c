/* LMDB's lock file: what is checked of it, and who holds its locks. No lock is needed. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "host/lmdb.h"
#include "tensorbus_bus.h"

/*
 * Kinds of mutexes that processes share: what the C library makes of LMDB's attributes, and what we make of that. WORD:
 * the place of the word that threads wait for, among words of 32 bits. Other libraries than glibc are taken for musl.
 */
#ifdef __GLIBC__
enum { WORD = 0, ROBUST = 16 + 128, PLAIN = 128 };
#else
enum { KIND = 0, WORD = 1, ROBUST = 4 + 128 };
#endif

#define FUTEX_OWNER 0x3fffffffu /* the bits of a robust mutex's word that name the thread which holds it */

static uint32_t word_of(const pthread_mutex_t *mutex) {
    return atomic_load_explicit((_Atomic uint32_t *)mutex + WORD, memory_order_acquire);
}

uint32_t tb_lmdb_adder(const tb_lmdb_locks *locks) {
    return word_of(&locks->head.body.reader_table) & FUTEX_OWNER;
}

#ifdef __GLIBC__
static bool is_lmdbs(const pthread_mutex_t *mutex) {
    return mutex->__data.__kind == ROBUST;
}

static bool is_plain(const pthread_mutex_t *mutex) {
    return mutex->__data.__kind == PLAIN;
}

static _Atomic int *owner_of(const pthread_mutex_t *mutex) {
    return (_Atomic int *)&mutex->__data.__owner;
}

/* Glibc ends the process which takes a free one that has an owner. */
static bool is_free_whole(const pthread_mutex_t *mutex) {
    return !is_plain(mutex) || word_of(mutex) != 0 || atomic_load(owner_of(mutex)) == 0;
}

void tb_lmdb_make_plain(tb_lmdb_locks *locks) {
    if (is_lmdbs(&locks->writer) && (word_of(&locks->writer) & FUTEX_OWNER) == 0) {
        *owner_of(&locks->writer) = 0;
        atomic_store_explicit((_Atomic uint32_t *)&locks->writer, 0, memory_order_release);
        locks->writer.__data.__kind = PLAIN;
    }
}

uint32_t tb_lmdb_writer(const tb_lmdb_locks *locks, bool *dead) {
    uint32_t word = word_of(&locks->writer);
    *dead = false;
    if (!is_plain(&locks->writer)) {
        return word & FUTEX_OWNER;
    }
    uint32_t thread = word == 0 ? 0 : (uint32_t)atomic_load_explicit(owner_of(&locks->writer), memory_order_acquire);
    bool by_the_gate = thread == atomic_load_explicit(&((tb_lmdb_locks *)locks)->inside, memory_order_acquire);
    struct sched_param unused;
    /* One that has died on its way in or out has not named itself, or no more. */
    *dead =
        word != 0 && (thread == 0 || by_the_gate || (sched_getparam((pid_t)thread, &unused) != 0 && errno == ESRCH));
    return thread;
}

void tb_lmdb_free_lock(tb_lmdb_locks *locks, uint64_t transaction) {
    atomic_store_explicit(&locks->head.body.transaction, transaction, memory_order_release);
    locks->writer.__data.__nusers = 0;
    atomic_store_explicit(owner_of(&locks->writer), 0, memory_order_release);
    atomic_store_explicit((_Atomic uint32_t *)&locks->writer, 0, memory_order_release);
}
#else
static bool is_lmdbs(const pthread_mutex_t *mutex) {
    return ((const int *)mutex)[KIND] == ROBUST;
}

static bool is_free_whole(const pthread_mutex_t *mutex) {
    (void)mutex;
    return true;
}

static bool is_plain(const pthread_mutex_t *mutex) {
    (void)mutex;
    return false;
}

/* A mutex of musl's that names its holder is in a list of that thread, robust or not. */
void tb_lmdb_make_plain(tb_lmdb_locks *locks) {
    (void)locks;
}

/* The kernel has taken the name of one who has died out of the word, and LMDB sees to the rest. */
uint32_t tb_lmdb_writer(const tb_lmdb_locks *locks, bool *dead) {
    *dead = false;
    return word_of(&locks->writer) & FUTEX_OWNER;
}

void tb_lmdb_free_lock(tb_lmdb_locks *locks, uint64_t transaction) {
    (void)locks;
    (void)transaction;
}
#endif

const char *tb_lmdb_check_lock_head(const tb_lmdb_locks *locks) {
    if (locks->head.body.magic != TB_LMDB_MAGIC) {
        return "it is not a lock file of LMDB";
    }
    bool has_writer = is_lmdbs(&locks->writer) || is_plain(&locks->writer);
    if (!is_lmdbs(&locks->head.body.reader_table) || !has_writer || !is_lmdbs(&locks->sync)) {
        return "its locks are invalid";
    }
    if (locks->head.body.readers > TB_LMDB_READERS) {
        return "it counts more readers than it has room for";
    }
    return NULL;
}

const char *tb_lmdb_check_locks(const tb_lmdb_locks *locks, uint64_t transaction) {
    const char *problem = tb_lmdb_check_lock_head(locks);
    if (problem != NULL) {
        return problem;
    }
    if (!is_free_whole(&locks->writer)) {
        return "its lock of writers is free and has an owner";
    }
    uint64_t named = atomic_load_explicit(&((tb_lmdb_locks *)locks)->head.body.transaction, memory_order_acquire);
    /* A writer that was killed right after its commit has not told; who locks next does. */
    if (named != transaction && named + 1 != transaction) {
        return "it names another transaction than the data file";
    }
    return NULL;
}
