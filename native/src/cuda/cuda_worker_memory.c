/*
 * Memory that several processes of one device share by legacy IPC handles. It belongs to the worker's thread; no lock
 * is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda/cuda_worker.h"
#include "base/error.h"

int32_t tb_cuda_worker_open_memory(tb_cuda_worker *worker, const tb_cu_ipc_memory *handle,
                                   tb_cu_pointer *address, tb_error *err) {
    for (tb_cuda_opened *one = worker->opened; one != NULL; one = one->next) {
        if (memcmp(&one->handle, handle, sizeof *handle) == 0) {
            one->uses++;
            *address = one->address;
            return TB_OK;
        }
    }
    tb_cuda_opened *one = malloc(sizeof *one);
    if (one == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "no memory for an opened handle");
    }
    *one = (tb_cuda_opened){.next = worker->opened, .handle = *handle, .uses = 1};
    tb_cu_result result =
        worker->api->cuIpcOpenMemHandle_v2(&one->address, *handle, TB_CU_IPC_LAZY_PEER_ACCESS);
    if (result != TB_CU_SUCCESS) {
        free(one);
        return tb_cuda_fail(worker->api, result, err, "cuIpcOpenMemHandle");
    }
    tb_cu_pointer base = 0;
    size_t bytes = 0;
    result = worker->api->cuMemGetAddressRange_v2(&base, &bytes, one->address);
    if (result != TB_CU_SUCCESS) {
        worker->api->cuIpcCloseMemHandle(one->address);
        free(one);
        return tb_cuda_fail(worker->api, result, err, "cuMemGetAddressRange");
    }
    one->bytes = bytes;
    worker->opened = one;
    *address = one->address;
    return TB_OK;
}

int32_t tb_cuda_worker_close_memory(tb_cuda_worker *worker, tb_cu_pointer address, tb_error *err) {
    tb_cuda_opened **at = &worker->opened;
    while (*at != NULL && (*at)->address != address) {
        at = &(*at)->next;
    }
    tb_cuda_opened *one = *at;
    if (one == NULL) {
        return tb_fail(err, TB_EREGION, -1, 0, "the memory is not open");
    }
    if (--one->uses > 0) {
        return TB_OK;
    }
    *at = one->next;
    free(one);
    return tb_cuda_worker_unmap(worker, address, err);
}

static int32_t no_handle(tb_error *err) {
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "%s", TB_NO_IPC_HANDLE);
}

/* What was opened here is others': they reach it as we do, by its owner's handle. */
static const tb_cuda_opened *opened_at(const tb_cuda_worker *worker, tb_cu_pointer address, uint64_t bytes) {
    for (const tb_cuda_opened *one = worker->opened; one != NULL; one = one->next) {
        if (address >= one->address && address - one->address <= one->bytes
            && bytes <= one->bytes - (address - one->address)) {
            return one;
        }
    }
    return NULL;
}

int32_t tb_cuda_worker_export(tb_cuda_worker *worker, tb_cu_pointer address, uint64_t bytes,
                              tb_cu_ipc_memory *handle, uint64_t *offset, tb_error *err) {
    const tb_cuda_api *api = worker->api;
    const tb_cuda_opened *opened = opened_at(worker, address, bytes);
    if (opened != NULL) {
        *handle = opened->handle;
        *offset = address - opened->address;
        return TB_OK;
    }
    int capable = 0;
    int ordinal = -1;
    unsigned type = 0;
    tb_cu_pointer base = 0;
    size_t size = 0;
    if (api->cuPointerGetAttribute(&type, TB_CU_POINTER_MEMORY_TYPE, address) != TB_CU_SUCCESS
        || type != TB_CU_MEMORY_DEVICE) {
        return tb_fail(err, TB_EREGION, -1, 0, "0x%llx is not CUDA memory of this process",
                       (unsigned long long)address);
    }
    TB_CUDA_TRY(api, cuPointerGetAttribute(&ordinal, TB_CU_POINTER_ORDINAL, address), err);
    if (ordinal != worker->ordinal) {
        return tb_fail(err, TB_EREGION, -1, 0, "0x%llx lies on device %d, not on %d",
                       (unsigned long long)address, ordinal, worker->ordinal);
    }
    TB_CUDA_TRY(api, cuPointerGetAttribute(&capable, TB_CU_POINTER_LEGACY_IPC, address), err);
    if (!capable) {
        return no_handle(err);
    }
    TB_CUDA_TRY(api, cuMemGetAddressRange_v2(&base, &size, address), err);
    *offset = address - base;
    if (bytes > size - *offset) {
        return tb_fail(err, TB_EREGION, -1, 0, "%llu bytes from 0x%llx reach beyond their allocation",
                       (unsigned long long)bytes, (unsigned long long)address);
    }
    tb_cu_result result = api->cuIpcGetMemHandle(handle, base);
    return result == TB_CU_SUCCESS       ? TB_OK
         : result == TB_CU_INVALID_VALUE ? no_handle(err)
                                         : tb_cuda_fail(api, result, err, "cuIpcGetMemHandle");
}
