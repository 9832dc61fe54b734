/*
 * The carrier of one GPU, or of GPUs that reach each other: a target opens the allocations that its source's tensors
 * lie in by their IPC handles, and its own kernels move elements from there to where they belong, cast and fold
 * included. Within one process there is nothing to open: its addresses are ours. A source describes its memory with the
 * session's lock; all else runs without it, in a thread of the session or in the worker's.
 */
#include <stdlib.h>
#include <string.h>

#include "carriers/registry.h"
#include "device/device.h"
#include "base/error.h"
#include "round/own.h"
#include "round/carrier.h"

typedef struct ipc_region {
    uint64_t base;   /* the address of the region in this process */
    uint64_t opened; /* the address of the allocation, if it was opened */
} ipc_region;

typedef struct ipc_import {
    tb_cuda_moves moves;
    uint32_t first_group[TB_STAGES];
    uint32_t group_count;
    ipc_region regions[];
} ipc_import;

/* What a source says of a region: the allocation's handle, which device it lies on, and where the region lies in it. */
typedef struct ipc_blob {
    uint8_t handle[64];
    uint8_t uuid[16];
    uint64_t offset;
    uint32_t has_handle;
    uint32_t reserved;
} ipc_blob;

/* Memory without a handle is of use to ranks of this process alone; the target says so if it is another. */
static int32_t ipc_describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                            tb_error *err) {
    (void)err;
    (void)number;
    ipc_blob said = {.has_handle = region->device.has_handle, .offset = region->device.offset};
    memcpy(said.handle, region->device.handle, sizeof said.handle);
    memcpy(said.uuid, session->options.device, sizeof said.uuid);
    memcpy(blob, &said, sizeof said);
    *bytes = sizeof said;
    return TB_OK;
}

/* ---- prepare: the target
 * ------------------------------------------------------------------------------------ */

typedef struct open_call {
    tb_import *import;
    ipc_import *opened;
    const uint64_t *own; /* the addresses of its regions, if it is a session of this process */
} open_call;

static int32_t open_region(tb_cuda_worker *worker, const tb_import *import, uint32_t index, ipc_region *own,
                           tb_error *err) {
    const tb_wire_region *region = &import->regions[index];
    ipc_blob said;
    tb_cu_ipc_memory handle;
    tb_cu_pointer base = 0;
    size_t bytes = 0;
    if (region->blob_bytes != sizeof said) {
        return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d did not describe its CUDA memory", import->rank);
    }
    memcpy(&said, tb_import_blob(import, index), sizeof said);
    if (!said.has_handle) {
        return tb_fail(err, TB_EUNSUPPORTED, import->rank, 0, "rank %d: %s", import->rank, TB_NO_IPC_HANDLE);
    }
    memcpy(&handle, said.handle, sizeof handle);
    int32_t code = tb_cuda_worker_open_memory(worker, &handle, &base, err);
    if (code != TB_OK) {
        return code;
    }
    own->opened = base;
    own->base = base + said.offset;
    TB_CUDA_TRY(worker->api, cuMemGetAddressRange_v2(&base, &bytes, own->opened), err);
    if (said.offset > bytes || region->bytes > bytes - said.offset) {
        return tb_fail(err, TB_EPROTOCOL, import->rank, 0, "rank %d exports more than its CUDA memory has",
                       import->rank);
    }
    return TB_OK;
}

static int32_t do_open(tb_cuda_worker *worker, void *argument, tb_error *err) {
    open_call *ask = argument;
    int32_t code = TB_OK;
    for (uint32_t i = 0; i < ask->import->region_count && code == TB_OK; i++) {
        if (ask->own != NULL && ask->own[i] == 0) {
            code = tb_fail(err, TB_EPROTOCOL, ask->import->rank, 0, "rank %d has no region %u", ask->import->rank,
                           ask->import->regions[i].number);
        } else if (ask->own != NULL) {
            ask->opened->regions[i].base = ask->own[i];
        } else {
            code = open_region(worker, ask->import, i, &ask->opened->regions[i], err);
        }
    }
    return code;
}

static int32_t add_bucket(tb_import *import, const tb_transfer *transfer, uint8_t stage, uint32_t bucket,
                          tb_error *err) {
    ipc_import *opened = import->opened;
    const tb_bucket *row = &transfer->program.buckets[bucket];
    int32_t code = TB_OK;
    for (uint32_t c = row->first_chunk; c < row->first_chunk + row->chunk_count && code == TB_OK; c++) {
        const tb_wire_end *end = tb_import_end(import, stage, c);
        if (end->descriptor == TB_NONE) {
            return tb_fail(err, TB_EPROTOCOL, import->rank, 0,
                           "rank %d exports a piece without its descriptor", import->rank);
        }
        tb_cuda_place source = {opened->regions[end->region].base + end->at, import->words + end->descriptor,
                                end->dtype};
        code = tb_device_add_chunk(transfer, &opened->moves, opened->group_count, &transfer->program.chunks[c],
                                   &source, err);
    }
    opened->group_count++;
    return code;
}

/* One group a bucket, in the order of stages and sequences. */
static int32_t add_buckets(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    ipc_import *opened = import->opened;
    int32_t code = TB_OK;
    for (uint8_t stage = 0; stage < TB_STAGES; stage++) {
        opened->first_group[stage] = opened->group_count;
        if (exchange->receive[stage] == TB_NONE) {
            continue;
        }
        const tb_channel *channel = &exchange->transfer->program.channels[exchange->receive[stage]];
        for (uint32_t i = 0; i < channel->bucket_count && code == TB_OK; i++) {
            code = add_bucket(import, exchange->transfer, stage, channel->first_bucket + i, err);
        }
    }
    return code;
}

static int32_t ipc_open(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    tb_device *device = import->session->device;
    ipc_import *opened = calloc(1, sizeof *opened + import->region_count * sizeof *opened->regions);
    if (opened == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u regions of rank %d", import->region_count,
                       import->rank);
    }
    import->opened = opened;
    uint64_t *addresses = calloc((size_t)import->region_count + 1, sizeof *addresses);
    if (addresses == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for %u regions of rank %d", import->region_count,
                       import->rank);
    }
    open_call ask = {import, opened, tb_own_find(import, exchange, addresses) ? addresses : NULL};
    int32_t code = tb_cuda_worker_call(tb_device_worker(device), do_open, &ask, err);
    free(addresses);
    if (code == TB_OK) {
        code = add_buckets(import, exchange, err);
    }
    return code == TB_OK ? tb_device_load(device, &opened->moves, opened->group_count, err) : code;
}

static int32_t do_close(tb_cuda_worker *worker, void *argument, tb_error *err) {
    open_call *ask = argument;
    for (uint32_t i = 0; i < ask->import->region_count; i++) {
        if (ask->opened->regions[i].opened != 0) {
            tb_cuda_worker_close_memory(worker, ask->opened->regions[i].opened, err);
        }
    }
    return TB_OK;
}

static void ipc_close(tb_import *import) {
    ipc_import *opened = import->opened;
    if (opened == NULL) {
        return;
    }
    tb_device *device = import->session->device;
    open_call ask = {import, opened, NULL};
    tb_device_unload(device, &opened->moves);
    tb_cuda_worker_call(tb_device_worker(device), do_close, &ask, NULL);
    free(opened);
    import->opened = NULL;
}

/* ---- rounds
 * --------------------------------------------------------------------------------------------------- */

static void ipc_submit(tb_pull *pull) {
    const tb_program *program = &pull->transfer->program;
    const ipc_import *opened = pull->import->opened;
    uint8_t stage = tb_bucket_channel(program, pull->bucket)->stage;
    uint32_t group = opened->first_group[stage] + tb_bucket_sequence(program, pull->bucket);
    tb_device_submit(pull->transfer->session->device, pull, &opened->moves, group);
}

const tb_carrier tb_carrier_cuda_ipc = {
    .number = TB_CARRIER_CUDA_IPC,
    .name = "cuda-ipc",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_CUDA,
    .same_host = true,
    .describe = ipc_describe,
    .open = ipc_open,
    .close = ipc_close,
    .submit = ipc_submit,
};
