/*
 * The sessions of this process, so that a peer that is one of them is read where it lies. The list's lock is taken
 * before a session's.
 */
#include "round/own.h"

#include <pthread.h>
#include <string.h>

#include "wire/conn.h"

/* Taken before the lock of a session. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tb_session *sessions;

void tb_own_add(tb_session *session) {
    pthread_mutex_lock(&lock);
    session->next_own = sessions;
    sessions = session;
    pthread_mutex_unlock(&lock);
}

void tb_own_remove(tb_session *session) {
    pthread_mutex_lock(&lock);
    for (tb_session **at = &sessions; *at != NULL; at = &(*at)->next_own) {
        if (*at == session) {
            *at = session->next_own;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* The ends of the first connection with a rank. The session's lock is held. */
static bool name_of(const tb_session *session, int32_t rank, tb_link_name *name) {
    const tb_peer *peer = rank < session->options.world ? session->peers[rank] : NULL;
    return peer != NULL && peer->up && peer->conns[0] != NULL
           && peer->conns[0]->link.kind->name(&peer->conns[0]->link, name);
}

static bool is_same(const tb_link_name *one, const tb_link_name *other) {
    return memcmp(one->here, other->there, sizeof one->here) == 0
           && memcmp(one->there, other->here, sizeof one->there) == 0;
}

static uint64_t address_of(const tb_session *session, const tb_transfer *transfer, const tb_wire_region *row) {
    if (row->number == TB_WIRE_POOL) {
        return row->bytes == transfer->pool.bytes ? (uint64_t)(uintptr_t)transfer->pool.memory : 0;
    }
    if (row->number >= session->region_count) {
        return 0;
    }
    const tb_region *region = &session->regions[row->number];
    return region->open && region->bytes == row->bytes ? region->address : 0;
}

/* The session's lock is held. */
static bool find_regions(const tb_session *session, const tb_import *import, uint64_t *addresses) {
    const tb_transfer *transfer = session->transfers;
    while (transfer != NULL && transfer->handle != import->remote) {
        transfer = transfer->next;
    }
    for (uint32_t i = 0; i < import->region_count; i++) {
        addresses[i] = transfer == NULL ? 0 : address_of(session, transfer, &import->regions[i]);
    }
    return transfer != NULL;
}

bool tb_own_find(const tb_import *import, const tb_exchange *exchange, uint64_t *addresses) {
    tb_session *own = import->session;
    tb_link_name ours, theirs;
    if ((own->options.carriers & TB_CARRY_APART) != 0) {
        return false;
    }
    pthread_mutex_lock(&own->lock);
    bool found = name_of(own, exchange->peer->rank, &ours);
    pthread_mutex_unlock(&own->lock);
    if (!found) {
        return false;
    }
    found = false;
    pthread_mutex_lock(&lock);
    for (tb_session *session = sessions; session != NULL && !found; session = session->next_own) {
        if (session == own || session->options.rank != import->rank) {
            continue;
        }
        pthread_mutex_lock(&session->lock);
        found = name_of(session, own->options.rank, &theirs) && is_same(&ours, &theirs)
                && find_regions(session, import, addresses);
        pthread_mutex_unlock(&session->lock);
    }
    pthread_mutex_unlock(&lock);
    return found;
}
