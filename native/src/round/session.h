/*
 * A session: what is prepared and registered in it, on top of the connections that it shares (wire/net.h), whose lock
 * guards all of this.
 */
#ifndef TB_SESSION_H
#define TB_SESSION_H

#include "wire/net.h"

enum { TB_CARRIER_NUMBERS = 16 }; /* numbers of carriers are below */

typedef struct tb_session tb_session;
typedef struct tb_thread tb_thread;
typedef struct tb_transfer tb_transfer;
typedef struct tb_exchange tb_exchange;
typedef struct tb_import tb_import;
typedef struct tb_pull tb_pull;
typedef struct tb_job tb_job;
typedef struct tb_region tb_region;
typedef struct tb_device tb_device;

/* How peers reach memory of a GPU: the handle of the allocation that it lies in, and where. */
typedef struct tb_device_memory {
    bool on_device;
    bool has_handle;
    uint8_t handle[64];
    uint64_t offset;
} tb_device_memory;

struct tb_region {
    uint64_t address, bytes;
    uint32_t memory; /* the bit of its kind: tb_memory_bits */
    tb_device_memory device;
    uint32_t uses;
    bool open;
    bool quarantined;     /* a peer may still read it, for good */
    void **carrier_state; /* what each carrier has made of it, by its number; NULL if none of them registers memory */
};

struct tb_session {
    union { /* first: wire/ knows this part alone */
        struct tb_net;
        tb_net net;
    };
    tb_thread *threads; /* one for each loop */
    uint32_t threads_running, threads_ended;
    pthread_cond_t thread_ended;
    bool farewell; /* it was said, or there is nothing to wait for before */
    bool stop;
    uint64_t stop_at;
    tb_wire_identity identity;
    tb_session *next_own; /* the next in the list of this process's sessions */
    tb_device *device;  /* on which registered memory may lie; NULL: there is none */
    tb_import *imports; /* that wait for a thread */
    bool quarantined;
    tb_transfer *transfers;
    uint64_t transfer_count;
    tb_region *regions;
    uint32_t region_count;
    const struct tb_carrier *const *carriers; /* all that there are, in the order of preference; NULL ends them */
    const struct tb_device_kind *devices;
    void *carrier_state[TB_CARRIER_NUMBERS]; /* each carrier's own, by its number */
};

/* The session that a part of it belongs to. */
static inline tb_session *tb_session_of(tb_net *net) {
    return (tb_session *)net;
}

/* All pulls of failed rounds are over: what waited for that goes on. The lock is held. */
void tb_session_rests(tb_session *session);

/* A session whose threads do not run yet, and which has no handle. */
int32_t tb_session_make(const tb_session_options *options, const tb_backend *backend,
                        const struct tb_carrier *const *carriers, const struct tb_device_kind *devices,
                        tb_session **session, int32_t *event_fd, tb_error *err);
/* What tb_session_open does, with this table of carriers and this kind of devices. */
int32_t tb_session_open_with(const tb_session_options *options, const struct tb_carrier *const *carriers,
                             const struct tb_device_kind *devices, uint64_t *session, int32_t *event_fd, tb_error *err);

#endif
