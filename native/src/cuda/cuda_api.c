/* The functions of libcuda. The loader has its own lock. */
#include "cuda/cuda_api.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dynamic_library.h"
#include "base/error.h"

/* cuDeviceGetUuid_v2 is of 11.4; the kernels need no newer one. */
enum { LEAST_VERSION = 11040 };

/* What CUDA gives from then on for every call of the process: only its end helps. */
static bool is_for_good(tb_cu_result result) {
    switch ((int)result) {
    case 214: /* ECC_UNCORRECTABLE */
    case 220: /* NVLINK_UNCORRECTABLE */
    case 226: /* CONTAINED */
    case 700: /* ILLEGAL_ADDRESS */
    case 702: /* LAUNCH_TIMEOUT */
    case 710: /* ASSERT */
    case 714: /* HARDWARE_STACK_ERROR */
    case 715: /* ILLEGAL_INSTRUCTION */
    case 716: /* MISALIGNED_ADDRESS */
    case 717: /* INVALID_ADDRESS_SPACE */
    case 718: /* INVALID_PC */
    case 719: /* LAUNCH_FAILED */
        return true;
    default:
        return false;
    }
}

int32_t tb_cuda_fail(const tb_cuda_api *api, tb_cu_result result, tb_error *err, const char *what) {
    const char *name = NULL;
    const char *text = NULL;
    if (api->cuGetErrorName(result, &name) != TB_CU_SUCCESS || name == NULL) {
        name = "an unknown result";
    }
    if (api->cuGetErrorString(result, &text) != TB_CU_SUCCESS || text == NULL) {
        text = "no description";
    }
    int32_t code = result == TB_CU_OUT_OF_MEMORY           ? TB_ENO_MEMORY
                 : result == TB_CU_UNSUPPORTED_PTX         ? TB_ELIBRARY
                 : result == TB_CU_PEER_ACCESS_UNSUPPORTED ? TB_EUNSUPPORTED
                                                           : TB_ECUDA;
    /* The name alone is taken from "cuMemAlloc_v2(&pointer, bytes)". */
    tb_fail(err, code, -1, 0, "%.*s: %s (%d), %s", (int)strcspn(what, "("), what, name, (int)result, text);
    if (err != NULL && is_for_good(result)) {
        err->os_errno = TB_CUDA_FOR_GOOD;
    }
    return code;
}

void tb_cuda_uuid_text(const uint8_t uuid[16], char text[TB_UUID_TEXT]) {
    char *at = text + sprintf(text, "GPU-");
    for (int i = 0; i < 16; i++) {
        at += sprintf(at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
}

static int32_t too_old(const tb_cuda_api *api, tb_error *err, const char *lacks) {
    return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is a driver for CUDA %d.%d%s%s; %d.%d or newer is needed",
                   api->path, api->version / 1000, api->version % 1000 / 10,
                   lacks == NULL ? "" : ", which does not have ", lacks == NULL ? "" : lacks, LEAST_VERSION / 1000,
                   LEAST_VERSION % 1000 / 10);
}

static int32_t find_first(tb_cuda_api *api, void *library, tb_error *err) {
#define FIND(name, arguments)                                                                                          \
    if (!tb_library_find(library, #name, &api->name)) {                                                                \
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is not a CUDA driver: it does not have %s", api->path, #name);     \
    }
    TB_CUDA_FIRST_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t find_others(tb_cuda_api *api, void *library, tb_error *err) {
#define FIND(name, arguments)                                                                                          \
    if (!tb_library_find(library, #name, &api->name)) {                                                                \
        return too_old(api, err, #name);                                                                               \
    }
    TB_CUDA_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t find(void *table, const char *path, void *library, tb_error *err) {
    tb_cuda_api *api = table;
    api->path = path;
    int32_t code = find_first(api, library, err);
    if (code == TB_OK && (api->cuDriverGetVersion(&api->version) != TB_CU_SUCCESS || api->version < LEAST_VERSION)) {
        code = too_old(api, err, NULL);
    }
    return code == TB_OK ? find_others(api, library, err) : code;
}

static int32_t start(void *table, tb_error *err) {
    const tb_cuda_api *api = table;
    tb_cu_result result = api->cuInit(0);
    if (result == TB_CU_NO_DEVICE) {
        return tb_fail(err, TB_EDEVICE, -1, 0, "%s finds no GPU", api->path);
    }
    return result == TB_CU_SUCCESS ? TB_OK : tb_cuda_fail(api, result, err, "cuInit");
}

static tb_library driver = {
    .what = "the CUDA driver",
    .variable = "TENSOR_BUS_LIBCUDA",
    .file = "libcuda.so.1",
    .table_bytes = sizeof(tb_cuda_api),
    .find = find,
    .start = start,
    .lock = PTHREAD_MUTEX_INITIALIZER,
};

int32_t tb_cuda_load(const char *path, const tb_cuda_api **api, tb_error *err) {
    const void *table = NULL;
    int32_t code = tb_library_load(&driver, path, &table, err);
    *api = table;
    return code;
}
