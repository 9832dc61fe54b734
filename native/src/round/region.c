/* tb_session_register: the memory that a session's peers and transfers may touch. */
#include <stdlib.h>

#include "round/carrier.h"
#include "base/error.h"
#include "base/handle.h"
#include "memory/shared_table.h"

static int32_t add_region(tb_session *session, uint64_t address, uint64_t bytes,
                          const tb_device_memory *device, tb_error *err) {
    tb_region *free_entry = NULL;
    for (uint32_t i = 0; i < session->region_count; i++) {
        tb_region *region = &session->regions[i];
        if (region->open && region->address == address && region->bytes == bytes) {
            return tb_fail(err, TB_EALIAS, -1, 0, "this memory is registered already");
        }
        free_entry = region->open ? free_entry : region;
    }
    if (free_entry == NULL) {
        tb_region *larger = realloc(session->regions, (session->region_count + 1) * sizeof *larger);
        if (larger == NULL) {
            return tb_fail(err, TB_ENO_MEMORY, -1, 0, "a table of regions");
        }
        session->regions = larger;
        free_entry = &larger[session->region_count++];
    }
    tb_shared shared;
    uint32_t memory = device->on_device                         ? TB_MEMORY_CUDA
                      : tb_shared_find(address, bytes, &shared) ? TB_MEMORY_SHARED
                                                                : TB_MEMORY_HOST;
    *free_entry = (tb_region){
        .address = address, .bytes = bytes, .memory = memory, .device = *device, .open = true};
    return TB_OK;
}

static int32_t remove_region(tb_session *session, uint64_t address, uint64_t bytes, tb_error *err) {
    for (uint32_t i = 0; i < session->region_count; i++) {
        tb_region *region = &session->regions[i];
        if (!region->open || region->address != address || region->bytes != bytes) {
            continue;
        }
        if (region->quarantined) {
            return tb_fail(err, TB_EQUARANTINED, -1, 0, "a peer may still read this memory");
        }
        if (region->uses > 0) {
            return tb_fail(err, TB_EBUSY, -1, 0, "this memory is used by what is prepared");
        }
        region->open = false;
        return TB_OK;
    }
    return tb_fail(err, TB_EREGION, -1, 0, "this memory is not registered");
}

int32_t tb_session_register(uint64_t handle, uint64_t address, uint64_t bytes, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    uint64_t end;
    int32_t code = TB_OK;
    tb_device_memory device = {0};
    if (address == 0 || __builtin_add_overflow(address, bytes, &end)) {
        code = tb_fail(err, TB_EREGION, -1, 0, "no memory lies at this address");
    } else if (session->device != NULL) {
        code = session->devices->describe(session->device, address, bytes, &device, err);
        bool may_be_host = tb_session_may(session, TB_WAY_STREAM | TB_WAY_PULL, TB_MEMORY_HOST);
        code = code == TB_EREGION && may_be_host ? TB_OK : code;
    }
    if (code == TB_OK) {
        pthread_mutex_lock(&session->lock);
        code = add_region(session, address, bytes, &device, err);
        pthread_mutex_unlock(&session->lock);
    }
    tb_handle_put(handle);
    return code;
}

int32_t tb_session_unregister(uint64_t handle, uint64_t address, uint64_t bytes, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    int32_t code = remove_region(session, address, bytes, err);
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}
