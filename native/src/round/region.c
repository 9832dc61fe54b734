/*
 * The memory that a session's peers and transfers may touch. The session's lock guards the table; carriers register
 * memory without it, since that may take long.
 */
#include <stdlib.h>

#include "round/carrier.h"
#include "base/error.h"
#include "base/handle.h"
#include "memory/shared_table.h"
#include "round/region.h"
#include "round/select.h"

/* ---- carriers that register memory --------------------------------------------------------------------- */

static bool registers(const tb_session *session, const tb_carrier *carrier) {
    return carrier->region_add != NULL && (session->identity.carriers >> carrier->number & 1) != 0;
}

/* Those of the table that stand before `end`; NULL: all of them. */
static void withdraw(tb_session *session, tb_region *region, const tb_carrier *const *end) {
    for (const tb_carrier *const *at = session->carriers; *at != NULL && at != end; at++) {
        if (registers(session, *at) && (*at)->region_remove != NULL) {
            (*at)->region_remove(session, region, region->carrier_state[(*at)->number]);
        }
    }
    free(region->carrier_state);
    region->carrier_state = NULL;
}

int32_t tb_region_show(tb_session *session, tb_region *region, tb_error *err) {
    for (const tb_carrier *const *at = session->carriers; *at != NULL; at++) {
        if (!registers(session, *at)) {
            continue;
        }
        if (region->carrier_state == NULL) {
            region->carrier_state = calloc(TB_CARRIER_NUMBERS, sizeof *region->carrier_state);
        }
        int32_t code = region->carrier_state == NULL
                         ? tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for what carriers know of a region")
                         : (*at)->region_add(session, region, &region->carrier_state[(*at)->number], err);
        if (code != TB_OK) {
            withdraw(session, region, at);
            return code;
        }
    }
    return TB_OK;
}

void tb_region_withdraw(tb_session *session, tb_region *region) {
    if (region->carrier_state != NULL) {
        withdraw(session, region, NULL);
    }
}

/* ---- the table: the lock is held ----------------------------------------------------------------------- */

static int32_t add_region(tb_session *session, const tb_region *region, tb_error *err) {
    tb_region *entry = NULL;
    for (uint32_t i = 0; i < session->region_count; i++) {
        tb_region *other = &session->regions[i];
        if (other->open && other->address == region->address && other->bytes == region->bytes) {
            return tb_fail(err, TB_EALIAS, -1, 0, "this memory is registered already");
        }
        entry = other->open ? entry : other;
    }
    if (entry == NULL) {
        tb_region *larger = realloc(session->regions, (session->region_count + 1) * sizeof *larger);
        if (larger == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of regions");
        }
        session->regions = larger;
        entry = &larger[session->region_count++];
    }
    *entry = *region;
    entry->open = true;
    return TB_OK;
}

/* *removed is what carriers are still to let go of. */
static int32_t remove_region(tb_session *session, uint64_t address, uint64_t bytes, tb_region *removed, tb_error *err) {
    for (uint32_t i = 0; i < session->region_count; i++) {
        tb_region *region = &session->regions[i];
        if (!region->open || region->address != address || region->bytes != bytes) {
            continue;
        }
        if (region->quarantined) {
            return tb_fail(err, TB_EQUARANTINED, -1, 0, "a peer may still read this memory");
        }
        if (region->uses > 0) {
            return tb_fail(err, TB_EBUSY, -1, 0, "a prepared transfer uses this memory");
        }
        *removed = *region;
        *region = (tb_region){.open = false};
        return TB_OK;
    }
    return tb_fail(err, TB_EREGION, -1, 0, "this memory is not registered");
}

/* ---- what callers ask ---------------------------------------------------------------------------------- */

/* What kind of memory lies there. */
static int32_t describe(const tb_session *session, uint64_t address, uint64_t bytes, tb_region *region, tb_error *err) {
    uint64_t end;
    if (address == 0 || __builtin_add_overflow(address, bytes, &end)) {
        return tb_fail(err, TB_EREGION, -1, 0, "no memory lies at this address");
    }
    *region = (tb_region){.address = address, .bytes = bytes};
    if (session->device != NULL) {
        int32_t code = session->devices->describe(session->device, address, bytes, &region->device, err);
        bool may_be_host = tb_session_may(session, TB_WAY_STREAM | TB_WAY_PULL, TB_MEMORY_HOST);
        if (code != TB_OK && !(code == TB_EREGION && may_be_host)) {
            return code;
        }
    }
    tb_shared shared;
    region->memory = region->device.on_device                  ? TB_MEMORY_CUDA
                     : tb_shared_find(address, bytes, &shared) ? TB_MEMORY_SHARED
                                                               : TB_MEMORY_HOST;
    return TB_OK;
}

int32_t tb_session_register(uint64_t handle, uint64_t address, uint64_t bytes, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    tb_region region;
    int32_t code = describe(session, address, bytes, &region, err);
    if (code == TB_OK) {
        code = tb_region_show(session, &region, err);
    }
    if (code == TB_OK) {
        pthread_mutex_lock(&session->lock);
        code = add_region(session, &region, err);
        pthread_mutex_unlock(&session->lock);
        if (code != TB_OK) {
            tb_region_withdraw(session, &region);
        }
    }
    tb_handle_put(handle);
    return code;
}

int32_t tb_session_unregister(uint64_t handle, uint64_t address, uint64_t bytes, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    tb_region region;
    pthread_mutex_lock(&session->lock);
    int32_t code = remove_region(session, address, bytes, &region, err);
    pthread_mutex_unlock(&session->lock);
    if (code == TB_OK) {
        tb_region_withdraw(session, &region);
    }
    tb_handle_put(handle);
    return code;
}
