/*
 * UCX in a session: its context and workers, and the memory that it registers. What calls the library runs in the
 * thread of the workers, or before there is one; no lock is needed, unless carrier.h says that the session's is held.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/handle.h"
#include "carriers/ucx/ucx.h"

/* What a target has to know of a region: where it lies, and behind that the packed key. */
enum { MOST_KEY_BYTES = TB_BLOB_BYTES - sizeof(uint64_t), LAST_POLLS = 64 };

/* ---- memory: in the thread ------------------------------------------------------------------------------- */

static void unmap(tb_ucx *ucx, tb_ucx_memory *memory) {
    if (memory->key != NULL) {
        ucx->api->ucp_rkey_buffer_release(memory->key);
    }
    if (memory->handle != NULL) {
        ucx->api->ucp_mem_unmap(ucx->context, memory->handle);
    }
    free(memory);
}

/* Others are to read, and not to write; but UCX's keys open memory for both (docs/ucx.md). */
tb_ucs_status tb_ucx_map(tb_ucx *ucx, uint64_t address, uint64_t bytes, int type, tb_ucp_memory *handle) {
    tb_ucp_map_params params = {.field_mask = TB_UCP_MAP_ADDRESS | TB_UCP_MAP_LENGTH | TB_UCP_MAP_PROTECTION
                                              | TB_UCP_MAP_MEMORY_TYPE,
                                .address = (void *)(uintptr_t)address,
                                .length = bytes,
                                .protection = TB_UCP_LOCAL_READ | TB_UCP_LOCAL_WRITE | TB_UCP_REMOTE_READ,
                                .memory_type = type};
    return ucx->api->ucp_mem_map(ucx->context, &params, handle);
}

static int32_t do_map(tb_ucx *ucx, void *argument, tb_error *err) {
    tb_ucx_memory *memory = argument;
    if (err == NULL) {
        return TB_OK; /* nobody waits any more: the memory may be gone */
    }
    tb_ucs_status status = tb_ucx_map(ucx, memory->address, memory->bytes, memory->type, &memory->handle);
    if (status == TB_UCS_OK) {
        status = ucx->api->ucp_rkey_pack(ucx->context, memory->handle, &memory->key, &memory->key_bytes);
    }
    if (status != TB_UCS_OK) {
        bool host = memory->type == TB_UCS_MEMORY_HOST;
        return tb_ucx_fail(ucx->api, status, TB_EUNSUPPORTED, ucx->rank, err, "UCX cannot register %llu bytes%s",
                           (unsigned long long)memory->bytes,
                           host ? " (is the limit of locked memory, ulimit -l, high enough?)"
                                : " of CUDA memory (does the driver let adapters reach it: nvidia_peermem, dma-buf?)");
    }
    if (memory->key_bytes > MOST_KEY_BYTES) {
        return tb_fail(err, TB_EUNSUPPORTED, ucx->rank, 0,
                       "a remote key of UCX takes %zu bytes, more than %zu: name fewer devices in UCX_NET_DEVICES",
                       memory->key_bytes, (size_t)MOST_KEY_BYTES);
    }
    return TB_OK;
}

/*
 * A peer that gave up reads no more, but what it had asked our worker for may wait to be answered: that is done while
 * the memory is there, a turn at a time, between which other rounds go on.
 */
static int32_t do_unmap(tb_ucx *ucx, void *argument, tb_error *err) {
    (void)err;
    tb_ucx_memory *memory = argument;
    memory->polls++;
    if (ucx->api->ucp_worker_progress(ucx->workers[TB_UCX_SERVES]) != 0 && memory->polls < LAST_POLLS) {
        return TB_UCX_AGAIN;
    }
    unmap(ucx, memory);
    return TB_OK;
}

static int32_t region_add(tb_session *session, const tb_region *region, void **state, tb_error *err) {
    tb_ucx *ucx = tb_ucx_of(session);
    bool on_device = region->memory == TB_MEMORY_CUDA;
    if (ucx == NULL || region->bytes == 0 || (on_device && ucx->device == NULL)) {
        return TB_OK;
    }
    tb_ucx_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, session->options.rank, 0, "no memory for a region of UCX");
    }
    memory->address = region->address;
    memory->bytes = region->bytes;
    memory->type = on_device ? TB_UCS_MEMORY_CUDA : TB_UCS_MEMORY_HOST;
    int32_t code = tb_ucx_call(ucx, do_map, memory, err);
    if (code != TB_OK) {
        tb_ucx_call(ucx, do_unmap, memory, NULL);
        return code;
    }
    *state = memory;
    return TB_OK;
}

static void region_remove(tb_session *session, const tb_region *region, void *state) {
    (void)region;
    if (state != NULL) {
        tb_ucx_call(tb_ucx_of(session), do_unmap, state, NULL);
    }
}

static int32_t describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                        tb_error *err) {
    (void)session;
    (void)number;
    (void)err;
    const tb_ucx_memory *memory = region->carrier_state == NULL ? NULL : region->carrier_state[TB_CARRIER_UCX];
    *bytes = 0;
    if (memory != NULL) {
        memcpy(blob, &region->address, sizeof region->address);
        memcpy((uint8_t *)blob + sizeof region->address, memory->key, memory->key_bytes);
        *bytes = (uint32_t)(sizeof region->address + memory->key_bytes);
    }
    return TB_OK;
}

static int32_t describe_session(tb_session *session, void *blob, uint32_t *bytes, tb_error *err) {
    const tb_ucx *ucx = tb_ucx_of(session);
    if (ucx == NULL || ucx->address_bytes > TB_SESSION_BLOB_BYTES) {
        return tb_fail(err, TB_EUNSUPPORTED, session->options.rank, 0,
                       "the address of a worker of UCX takes more than %d bytes: name fewer devices in UCX_NET_DEVICES",
                       TB_SESSION_BLOB_BYTES);
    }
    memcpy(blob, ucx->address, ucx->address_bytes);
    *bytes = (uint32_t)ucx->address_bytes;
    return TB_OK;
}

/* ---- the session ----------------------------------------------------------------------------------------- */

static tb_ucs_status make_workers(tb_ucx *ucx) {
    tb_ucp_worker_params params = {.field_mask = TB_UCP_WORKER_THREAD_MODE, .thread_mode = TB_UCS_THREADS_IN_TURN};
    void *address = NULL;
    tb_ucs_status status = TB_UCS_OK;
    for (int i = 0; i < TB_UCX_WORKERS && status == TB_UCS_OK; i++) {
        status = ucx->api->ucp_worker_create(ucx->context, &params, &ucx->workers[i]);
        if (status == TB_UCS_OK) {
            status = ucx->api->ucp_worker_get_efd(ucx->workers[i], &ucx->progress_fds[i]);
        }
    }
    if (status == TB_UCS_OK) {
        status = ucx->api->ucp_worker_get_address(ucx->workers[TB_UCX_SERVES], &address, &ucx->address_bytes);
    }
    if (status == TB_UCS_OK) {
        ucx->address = malloc(ucx->address_bytes);
        if (ucx->address != NULL) {
            memcpy(ucx->address, address, ucx->address_bytes);
        }
        ucx->api->ucp_worker_release_address(ucx->workers[TB_UCX_SERVES], address);
        status = ucx->address == NULL ? TB_UCS_NO_MEMORY : TB_UCS_OK;
    }
    return status;
}

static int32_t make_slots(tb_ucx *ucx, tb_error *err) {
    const size_t bytes = (size_t)TB_UCX_SLOTS * TB_UCX_SLOT_BYTES + TB_UCX_PROBE_BYTES;
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %zu bytes to read through", bytes);
    }
    ucx->slots = mapped;
    for (int i = 0; i < TB_UCX_SLOTS; i++) {
        ucx->free_slots[ucx->free_slot_count++] = ucx->slots + (size_t)i * TB_UCX_SLOT_BYTES;
    }
    tb_ucs_status status =
        tb_ucx_map(ucx, (uint64_t)(uintptr_t)mapped, bytes, TB_UCS_MEMORY_HOST, &ucx->slots_memory);
    return status == TB_UCS_OK
               ? TB_OK
               : tb_ucx_fail(ucx->api, status, TB_EUNSUPPORTED, -1, err, "UCX cannot register memory");
}

/* Nothing of it is used by a thread any more. */
static int32_t destroy(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)worker;
    (void)err;
    tb_ucx *ucx = argument;
    if (ucx->slots_memory != NULL) {
        ucx->api->ucp_mem_unmap(ucx->context, ucx->slots_memory);
    }
    if (ucx->device_probe_memory != NULL) {
        ucx->api->ucp_mem_unmap(ucx->context, ucx->device_probe_memory);
    }
    if (ucx->slots != NULL) {
        munmap(ucx->slots, (size_t)TB_UCX_SLOTS * TB_UCX_SLOT_BYTES + TB_UCX_PROBE_BYTES);
    }
    for (int i = 0; i < TB_UCX_WORKERS; i++) {
        if (ucx->workers[i] != NULL) {
            ucx->api->ucp_worker_destroy(ucx->workers[i]);
        }
    }
    if (ucx->context != NULL) {
        ucx->api->ucp_cleanup(ucx->context);
    }
    return TB_OK;
}

/* ---- with a GPU: what belongs to UCX is made and ended where the GPU's context is current ----------------- */

/* A session may have a GPU whose memory the library does not reach: others of its carriers do. */
static int32_t on_device_of(const tb_session *session, tb_cuda_function function, void *argument, tb_error *err) {
    return session->device == NULL ? function(NULL, argument, err)
                                   : tb_cuda_worker_call(tb_device_worker(session->device), function, argument, err);
}

static void give_back(const tb_session *session, tb_ucx *ucx) {
    on_device_of(session, destroy, ucx, NULL);
    if (ucx->device_probe != 0) {
        tb_device_free(ucx->device, ucx->device_probe);
    }
    if (ucx->wake_fd >= 0) {
        close(ucx->wake_fd);
    }
    pthread_cond_destroy(&ucx->done);
    pthread_mutex_destroy(&ucx->lock);
    free(ucx->address);
    free(ucx);
}

/* In the thread, whose CUDA memory UCX may move from here on. */
static int32_t do_begin(tb_ucx *ucx, void *argument, tb_error *err) {
    (void)argument;
    int32_t code = tb_device_make_current(ucx->device, err);
    if (code != TB_OK) {
        return code;
    }
    tb_ucs_status status = tb_ucx_map(ucx, ucx->device_probe, TB_UCX_PROBE_BYTES, TB_UCS_MEMORY_CUDA,
                                      &ucx->device_probe_memory);
    return status == TB_UCS_OK ? TB_OK
                               : tb_ucx_fail(ucx->api, status, TB_EUNSUPPORTED, ucx->rank, err,
                                             "UCX was built for CUDA, but cannot register memory of this GPU");
}

static int32_t begin_on_device(tb_ucx *ucx, tb_error *err) {
    int32_t code = tb_device_allocate(ucx->device, TB_UCX_PROBE_BYTES, &ucx->device_probe, err);
    return code == TB_OK ? tb_ucx_call(ucx, do_begin, NULL, err) : code;
}

/* ---- making ---------------------------------------------------------------------------------------------- */

typedef struct make_call {
    tb_ucx *ucx;
    const char *transports;
} make_call;

static int32_t do_make(tb_cuda_worker *worker, void *argument, tb_error *err) {
    (void)worker;
    const make_call *ask = argument;
    tb_ucx *ucx = ask->ucx;
    int32_t code = tb_ucx_context_make(ucx->api, ask->transports, &ucx->context, &ucx->speaks, err);
    if (code != TB_OK) {
        return code;
    }
    tb_ucs_status status = make_workers(ucx);
    return status == TB_UCS_OK ? make_slots(ucx, err)
                               : tb_ucx_fail(ucx->api, status, TB_EUNSUPPORTED, -1, err, "UCX cannot make a worker");
}

/* *runs: its thread does, which has to be stopped before it is given back. */
static int32_t make(tb_session *session, const char *library, const char *transports, tb_ucx *ucx, bool *runs,
                    tb_error *err) {
    make_call ask = {ucx, transports};
    pthread_mutex_init(&ucx->lock, NULL);
    tb_cond_init(&ucx->done);
    ucx->rank = session->options.rank;
    ucx->tasks_end = &ucx->tasks;
    ucx->moves_end = &ucx->moves;
    ucx->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int32_t code = tb_ucx_load(library, &ucx->api, err);
    if (code == TB_OK && ucx->wake_fd < 0) {
        code = tb_fail(err, TB_ESYSTEM, -1, 0, "an eventfd");
    }
    if (code == TB_OK) {
        code = on_device_of(session, do_make, &ask, err);
    }
    if (code == TB_OK) {
        ucx->device = (ucx->speaks & TB_UCX_CUDA) != 0 ? session->device : NULL;
        code = tb_ucx_start(ucx, err);
        *runs = code == TB_OK;
    }
    return code == TB_OK && ucx->device != NULL ? begin_on_device(ucx, err) : code;
}

/* With the session's lock. What was registered before is not registered with UCX. */
static int32_t may_use(const tb_session *session, tb_error *err) {
    if ((session->identity.carriers & TB_CARRY_UCX) == 0 || tb_ucx_of(session) != NULL || session->region_count > 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0,
                       "the session does not use ucx, has its library already, or has registered memory already");
    }
    return TB_OK;
}

int32_t tb_session_use_ucx(uint64_t handle, const char *library, const char *transports, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    tb_ucx *ucx = NULL;
    pthread_mutex_lock(&session->lock);
    int32_t code = may_use(session, err);
    pthread_mutex_unlock(&session->lock);
    if (code != TB_OK) {
        tb_handle_put(handle);
        return code;
    }
    if ((ucx = calloc(1, sizeof *ucx)) == NULL) {
        code = tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for UCX");
    } else {
        bool runs = false;
        code = make(session, library, transports, ucx, &runs, err);
        if (code == TB_OK) {
            pthread_mutex_lock(&session->lock);
            code = may_use(session, err); /* another thread may have been faster */
            if (code == TB_OK) {
                session->carrier_state[TB_CARRIER_UCX] = ucx;
                session->identity.facts[TB_FACT_UCX] = ucx->speaks;
            }
            pthread_mutex_unlock(&session->lock);
        }
        if (code != TB_OK && (!runs || tb_ucx_stop(ucx))) {
            give_back(session, ucx);
        }
    }
    tb_handle_put(handle);
    return code;
}

/* If the thread does not come back, or an end point does not let itself be closed, all stays as it is. */
static int32_t session_free(tb_session *session, tb_error *err) {
    tb_ucx *ucx = tb_ucx_of(session);
    if (ucx == NULL) {
        return TB_OK;
    }
    if (!tb_ucx_stop(ucx)) {
        return tb_fail(
            err, TB_EQUARANTINED, session->options.rank, 0,
            "the thread of UCX was left behind: a call did not return, or the process is ending. UCX may still "
            "touch what was registered with it");
    }
    give_back(session, ucx);
    return TB_OK;
}

/* ---- the table ------------------------------------------------------------------------------------------- */

static bool streams(const tb_wire_identity *identity) {
    return (identity->carriers >> TB_CARRIER_STREAM & 1) != 0;
}

/*
 * CUDA memory needs a library that was built for it at both ends. Without an RDMA device it is no faster than a stream,
 * and only those take it who have nothing else: for memory of the host.
 */
static const char *lacks(const tb_wire_identity *a, const tb_wire_identity *b, char *words, size_t size,
                         int32_t *code) {
    (void)words;
    (void)size;
    (void)code;
    uint32_t both = a->facts[TB_FACT_UCX] & b->facts[TB_FACT_UCX];
    if ((both & TB_UCX_SPOKEN) == 0) {
        return "one of the two has no UCX";
    }
    bool cuda = ((a->memory | b->memory) & TB_MEMORY_CUDA) != 0;
    if (cuda && (both & TB_UCX_CUDA) == 0) {
        return "UCX at one of the two does not move CUDA memory";
    }
    bool rdma = (both & TB_UCX_RDMA) != 0;
    return rdma || cuda || !streams(a) || !streams(b) ? NULL : "UCX finds no RDMA device at one of the two";
}

const tb_carrier tb_carrier_ucx = {
    .number = TB_CARRIER_UCX,
    .name = "ucx",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED | TB_MEMORY_CUDA,
    .lacks = lacks,
    .session_free = session_free,
    .region_add = region_add,
    .region_remove = region_remove,
    .describe = describe,
    .describe_session = describe_session,
    .open = tb_ucx_open,
    .close = tb_ucx_close,
    .submit = tb_ucx_submit,
};
