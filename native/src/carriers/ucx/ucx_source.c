/*
 * Another rank's memory: an end point of its own for each transfer, so that what is given up with one of them leaves
 * the others alone. An end point that failed is closed, and made anew when it is wanted again. No lock is held but for
 * what a session's thread waits for, the probe, which is behind that of the session's UCX.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "carriers/ucx/ucx.h"

/*
 * UCX reads addresses and keys without being told how long they are. What a peer says is therefore copied in front of a
 * tail that ends whatever is read there: zeros are the shortest entries, and 0xff ends their lists.
 */
enum { TAIL_ZEROS = 20 << 10, TAIL_ENDS = 4 << 10, LOOK_MS = 20 };

/* ---- the end point: in the thread ------------------------------------------------------------------------ */

static void free_source(tb_ucx_source *source) {
    tb_ucx_unpack_free(source);
    free(source->buffers);
    free(source->said);
    free(source);
}

/* Without an end point and with nothing under way, keys are of no use, and the source of none if nobody wants it. */
static void settle(tb_ucx_source *source) {
    if (source->ep != NULL || source->gets > 0) {
        return;
    }
    for (uint32_t i = 0; i < source->region_count; i++) {
        if (source->regions[i].key != NULL) {
            source->ucx->api->ucp_rkey_destroy(source->regions[i].key);
            source->regions[i].key = NULL;
        }
    }
    if (source->leaving) {
        free_source(source);
    }
}

static void is_closed(tb_ucx_source *source) {
    source->ep = NULL;
    source->failed = false;
    source->closing = false;
    source->ucx->closing--;
    settle(source);
}

static void closed(void *request, tb_ucs_status status, void *user_data) {
    (void)status;
    tb_ucx_source *source = user_data;
    source->ucx->api->ucp_request_free(request);
    is_closed(source);
}

void tb_ucx_cut(tb_ucx_source *source) {
    if (source->ep == NULL || source->closing) {
        return;
    }
    tb_ucp_request_param param = {.op_mask = TB_UCP_OP_FLAGS | TB_UCP_OP_CALLBACK | TB_UCP_OP_USER_DATA,
                                  .flags = TB_UCP_CLOSE_BY_FORCE,
                                  .call = closed,
                                  .user_data = source};
    source->closing = true;
    source->ucx->closing++;
    tb_ucs_pointer pointer = source->ucx->api->ucp_ep_close_nbx(source->ep, &param);
    if (pointer == NULL || tb_ucs_is_error(pointer)) {
        is_closed(source);
    }
}

/* UCX calls this in the midst of its own work: the end point is closed later. */
static void failed(void *argument, tb_ucp_ep ep, tb_ucs_status status) {
    (void)ep;
    tb_ucx_source *source = argument;
    source->failed = true;
    source->why = source->why == TB_UCS_OK ? status : source->why;
}

static int32_t connect_to(tb_ucx_source *source, tb_error *err) {
    tb_ucp_ep_params params = {.field_mask = TB_UCP_EP_ADDRESS | TB_UCP_EP_ERROR_MODE | TB_UCP_EP_ERROR_HANDLER,
                               .address = source->address,
                               .error_mode = TB_UCP_ERRORS_OF_PEERS,
                               .error_handler = {failed, source}};
    tb_ucs_status status = source->ucx->api->ucp_ep_create(source->ucx->workers[TB_UCX_READS], &params, &source->ep);
    if (status == TB_UCS_OK) {
        source->why = TB_UCS_OK;
        source->code = TB_OK;
        return TB_OK;
    }
    source->ep = NULL;
    return tb_ucx_fail(source->ucx->api, status, TB_EUNSUPPORTED, source->rank, err,
                       "UCX has no transport between this rank and rank %d (UCX_TLS, UCX_NET_DEVICES)", source->rank);
}

enum tb_ucx_reached tb_ucx_reach(tb_ucx_source *source, tb_error *err) {
    if (source->failed) {
        tb_ucx_cut(source);
    }
    if (source->closing || (source->ep == NULL && source->gets > 0)) {
        return TB_UCX_NOT_YET;
    }
    return source->ep != NULL || connect_to(source, err) == TB_OK ? TB_UCX_REACHED : TB_UCX_UNREACHED;
}

bool tb_ucx_get(tb_ucx_source *source, const tb_ucx_region *region, uint64_t at, tb_ucx_place to, uint64_t bytes,
                void (*came)(void *request, tb_ucs_status status, void *user_data),
                void *user_data, tb_ucs_status *status) {
    tb_ucx *ucx = source->ucx;
    tb_ucx_region *own = &source->regions[region - source->regions];
    if (own->key == NULL) {
        *status = ucx->api->ucp_ep_rkey_unpack(source->ep, own->packed, &own->key);
        if (*status != TB_UCS_OK) {
            own->key = NULL;
            return false;
        }
    }
    tb_ucp_request_param param = {.op_mask = TB_UCP_OP_CALLBACK | TB_UCP_OP_USER_DATA | TB_UCP_OP_MEMORY_TYPE
                                             | (to.memory == NULL ? 0 : TB_UCP_OP_MEMORY),
                                  .call = came,
                                  .user_data = user_data,
                                  .memory_type = to.type,
                                  .memory = to.memory};
    tb_ucs_pointer pointer = ucx->api->ucp_get_nbx(source->ep, to.at, bytes, at, own->key, &param);
    if (pointer == NULL || tb_ucs_is_error(pointer)) {
        *status = tb_ucs_status_of(pointer);
        return false;
    }
    source->gets++;
    ucx->gets++;
    return true;
}

void tb_ucx_got(tb_ucx_source *source) {
    source->gets--;
    source->ucx->gets--;
    settle(source);
}

/* ---- opening --------------------------------------------------------------------------------------------- */

static void probe_ends(tb_ucx_source *source, int32_t code, const tb_error *error) {
    pthread_mutex_lock(&source->ucx->lock);
    source->probe.over = true;
    source->probe.code = code;
    if (error != NULL) {
        source->probe.error = *error;
    }
    pthread_cond_broadcast(&source->ucx->done);
    pthread_mutex_unlock(&source->ucx->lock);
}

static void probe_came(tb_ucx_source *source, tb_ucs_status status) {
    tb_error error;
    int32_t code = status == TB_UCS_OK ? TB_OK
                                       : tb_ucx_fail(source->ucx->api, status, TB_EUNSUPPORTED, source->rank, &error,
                                                     "UCX cannot read memory of rank %d", source->rank);
    probe_ends(source, code, code == TB_OK ? NULL : &error);
}

static void probe_got(void *request, tb_ucs_status status, void *user_data) {
    tb_ucx_source *source = user_data;
    source->ucx->api->ucp_request_free(request);
    probe_came(source, status);
    tb_ucx_got(source);
}

/* Finds out before a round whether the source can be read at all, into such memory: it is asked for one byte. */
static void probe(tb_ucx *ucx, tb_ucx_task *task) {
    tb_ucx_source *source = (tb_ucx_source *)task;
    tb_error error;
    if (tb_ucx_reach(source, &error) != TB_UCX_REACHED) {
        probe_ends(source, error.code, &error);
        return;
    }
    if (source->probed == TB_NONE) {
        probe_ends(source, TB_OK, NULL);
        return;
    }
    const tb_ucx_region *region = &source->regions[source->probed];
    tb_ucx_place to = {ucx->slots + (size_t)TB_UCX_SLOTS * TB_UCX_SLOT_BYTES, ucx->slots_memory, TB_UCS_MEMORY_HOST};
    if (source->unpack != NULL) {
        to = (tb_ucx_place){(void *)(uintptr_t)ucx->device_probe, ucx->device_probe_memory, TB_UCS_MEMORY_CUDA};
    }
    tb_ucs_status status;
    if (!tb_ucx_get(source, region, region->base, to, 1, probe_got, source, &status)) {
        probe_came(source, status);
    }
}

/* Empty memory has no blob; in front of a key stands an address. */
static bool says_well(const tb_wire_region *region) {
    return region->bytes == 0 ? region->blob_bytes == 0
                              : region->blob_bytes > sizeof(uint64_t) && region->blob_bytes <= TB_BLOB_BYTES;
}

static int32_t copy_said(tb_ucx_source *source, const tb_import *import, tb_error *err) {
    size_t bytes = (import->session_bytes + 7) & ~(size_t)7;
    for (uint32_t i = 0; i < import->region_count; i++) {
        const tb_wire_region *region = &import->regions[i];
        if (import->session_bytes == 0 || !says_well(region)) {
            return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d does not say how UCX can read its memory",
                           import->rank);
        }
        bytes += (region->blob_bytes + 7) & ~(size_t)7;
    }
    source->said = calloc(1, bytes + TAIL_ZEROS + TAIL_ENDS);
    if (source->said == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for keys of %u regions of rank %d", import->region_count,
                       import->rank);
    }
    memset(source->said + bytes + TAIL_ZEROS, 0xff, TAIL_ENDS);
    memcpy(source->said, import->session_blob, import->session_bytes);
    source->address = source->said;
    size_t at = (import->session_bytes + 7) & ~(size_t)7;
    source->probed = TB_NONE;
    for (uint32_t i = 0; i < import->region_count; i++) {
        const tb_wire_region *region = &import->regions[i];
        if (region->blob_bytes == 0) {
            continue;
        }
        const uint8_t *blob = tb_import_blob(import, i);
        memcpy(&source->regions[i].base, blob, sizeof(uint64_t));
        memcpy(source->said + at, blob + sizeof(uint64_t), region->blob_bytes - sizeof(uint64_t));
        source->regions[i].packed = source->said + at;
        source->probed = source->probed == TB_NONE ? i : source->probed;
        at += (region->blob_bytes + 7) & ~(size_t)7;
    }
    return TB_OK;
}

/*
 * In what of this rank's registered memory its tensors lie: they stay registered for as long as the transfer is there.
 */
static int32_t find_buffers(tb_ucx_source *source, const tb_exchange *exchange, tb_error *err) {
    const tb_transfer *transfer = exchange->transfer;
    tb_session *session = transfer->session;
    uint32_t count = transfer->program.header->buffer_count;
    source->buffers = calloc((size_t)count + 1, sizeof *source->buffers);
    if (source->buffers == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for a table of %u tensors", count);
    }
    pthread_mutex_lock(&session->lock);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = transfer->regions[i];
        void **states = number == TB_NONE ? NULL : session->regions[number].carrier_state;
        source->buffers[i] = states == NULL ? NULL : states[TB_CARRIER_UCX];
    }
    pthread_mutex_unlock(&session->lock);
    return TB_OK;
}

static bool is_wanted(tb_import *import) {
    pthread_mutex_lock(&import->session->lock);
    bool wanted = import->exchange != NULL && !import->session->closing;
    pthread_mutex_unlock(&import->session->lock);
    return wanted;
}

/* This thread serves connections, too: it waits less long than what a peer takes for the end. */
static int32_t await_probe(tb_import *import, tb_ucx_source *source, tb_error *err) {
    tb_ucx *ucx = source->ucx;
    uint64_t until = tb_deadline((uint64_t)import->session->options.peer_timeout_ms * 1000000 * 2 / 3);
    bool wanted = true, late = false;
    pthread_mutex_lock(&ucx->lock);
    while (!source->probe.over && wanted && !late) {
        struct timespec limit = tb_timespec(tb_deadline((uint64_t)LOOK_MS * 1000000));
        pthread_cond_timedwait(&ucx->done, &ucx->lock, &limit);
        pthread_mutex_unlock(&ucx->lock);
        wanted = is_wanted(import);
        late = tb_now() >= until;
        pthread_mutex_lock(&ucx->lock);
    }
    bool over = source->probe.over;
    int32_t code = source->probe.code;
    tb_error error = source->probe.error;
    pthread_mutex_unlock(&ucx->lock);
    if (!over) {
        return tb_fail(err, TB_EUNSUPPORTED, import->rank, 0, "UCX got no answer from rank %d", import->rank);
    }
    return code == TB_OK ? TB_OK : tb_fail(err, code, import->rank, 0, "%s", error.message);
}

int32_t tb_ucx_open(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    tb_ucx_source *source = calloc(1, sizeof *source + import->region_count * sizeof *source->regions);
    if (source == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u regions of rank %d", import->region_count,
                       import->rank);
    }
    import->opened = source;
    source->ucx = tb_ucx_of(import->session);
    source->rank = import->rank;
    source->region_count = import->region_count;
    int32_t code = copy_said(source, import, err);
    if (code == TB_OK) {
        code = find_buffers(source, exchange, err);
    }
    if (code == TB_OK && exchange->transfer->device != NULL) {
        code = tb_ucx_unpack_make(source, import, exchange, err);
    }
    if (code != TB_OK) {
        return code;
    }
    source->task.run = probe;
    tb_ucx_post(source->ucx, &source->task);
    return await_probe(import, source, err);
}

/* ---- closing --------------------------------------------------------------------------------------------- */

typedef struct leaving {
    tb_ucx_task task; /* first */
    tb_ucx_source *source;
} leaving;

static void leave(tb_ucx *ucx, tb_ucx_task *task) {
    (void)ucx;
    tb_ucx_source *source = ((leaving *)task)->source;
    free(task);
    source->leaving = true;
    if (source->ep == NULL) {
        settle(source);
    } else {
        tb_ucx_cut(source);
    }
}

void tb_ucx_close(tb_import *import) {
    tb_ucx_source *source = import->opened;
    import->opened = NULL;
    if (source == NULL) {
        return;
    }
    leaving *task = malloc(sizeof *task);
    if (task != NULL) { /* else its end point stays until the session ends */
        *task = (leaving){.task.run = leave, .source = source};
        tb_ucx_post(source->ucx, &task->task);
    }
}
