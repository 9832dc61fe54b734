/* The functions of libnccl, and what a caller may know of it without a device. The loader has its own lock. */
#include "carriers/nccl/nccl_api.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/dynamic_library.h"
#include "base/error.h"

/* 2.18: non-blocking communicators (2.14) whose sends and receives return at once as well, and can be aborted. */
enum { LEAST_VERSION = 21800, CONFIG_VERSION = 22809, MAGIC = (int)0xcafebeef };

_Static_assert(sizeof(tb_nccl_id) == 128, "ncclUniqueId");
_Static_assert(sizeof(tb_nccl_config) == 80, "ncclConfig_t of 2.28");
_Static_assert(offsetof(tb_nccl_config, magic) == 8 && offsetof(tb_nccl_config, blocking) == 16, "ncclConfig_t");
_Static_assert(offsetof(tb_nccl_config, net_name) == 32 && offsetof(tb_nccl_config, comm_name) == 48, "ncclConfig_t");
_Static_assert(offsetof(tb_nccl_config, nvlink_centric_sched) == 76, "ncclConfig_t");

void tb_nccl_config_init(tb_nccl_config *config) {
    *config = (tb_nccl_config){
        .size = sizeof *config,
        .magic = (unsigned)MAGIC,
        .version = CONFIG_VERSION,
        .blocking = 0,
        .cga_cluster_size = INT_MIN,
        .min_ctas = INT_MIN,
        .max_ctas = INT_MIN,
        .split_share = INT_MIN,
        .traffic_class = INT_MIN,
        .collnet_enable = INT_MIN,
        .cta_policy = INT_MIN,
        .shrink_share = INT_MIN,
        .nvls_ctas = INT_MIN,
        .channels_per_net_peer = INT_MIN,
        .nvlink_centric_sched = INT_MIN,
    };
}

int32_t tb_nccl_fail(const tb_nccl_api *api, tb_nccl_result result, tb_nccl_comm comm, tb_error *err,
                     const char *what) {
    const char *name = api->ncclGetErrorString(result);
    const char *last = api->ncclGetLastError(comm);
    int32_t code = result == TB_NCCL_REMOTE_ERROR ? TB_EPEER_LOST : TB_ENCCL;
    bool more = last != NULL && last[0] != '\0';
    return tb_fail(err, code, -1, 0, "%s: %s (%d)%s%.300s", what, name == NULL ? "an unknown result" : name, result,
                   more ? "; " : "", more ? last : "");
}

static int32_t too_old(const tb_nccl_api *api, tb_error *err, const char *lacks) {
    /* Up to 2.8 a version was written with one digit less. */
    bool early = api->version < 10000;
    int major = early ? api->version / 1000 : api->version / 10000;
    int minor = early ? api->version % 1000 / 100 : api->version % 10000 / 100;
    return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is NCCL %d.%d.%d%s%s; %d.%d or newer is needed", api->path, major,
                   minor, api->version % 100, lacks == NULL ? "" : ", which does not have ", lacks == NULL ? "" : lacks,
                   LEAST_VERSION / 10000, LEAST_VERSION % 10000 / 100);
}

static int32_t find_first(tb_nccl_api *api, void *library, tb_error *err) {
#define FIND(result, name, arguments)                                                                                  \
    if (!tb_library_find(library, #name, &api->name)) {                                                                \
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is not NCCL: it does not have %s", api->path, #name);              \
    }
    TB_NCCL_FIRST_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t find_others(tb_nccl_api *api, void *library, tb_error *err) {
#define FIND(result, name, arguments)                                                                                  \
    if (!tb_library_find(library, #name, &api->name)) {                                                                \
        return too_old(api, err, #name);                                                                               \
    }
    TB_NCCL_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t find(void *table, const char *path, void *library, tb_error *err) {
    tb_nccl_api *api = table;
    api->path = path;
    int32_t code = find_first(api, library, err);
    if (code == TB_OK
        && (api->ncclGetVersion(&api->version) != TB_NCCL_SUCCESS || api->version < LEAST_VERSION)) {
        code = too_old(api, err, NULL);
    }
    return code == TB_OK ? find_others(api, library, err) : code;
}

static tb_library nccl_library = {
    .what = "NCCL",
    .variable = "TENSOR_BUS_LIBNCCL",
    .file = "libnccl.so.2",
    .table_bytes = sizeof(tb_nccl_api),
    .find = find,
    .lock = PTHREAD_MUTEX_INITIALIZER,
};

int32_t tb_nccl_load(const char *path, const tb_nccl_api **api, tb_error *err) {
    const void *table = NULL;
    int32_t code = tb_library_load(&nccl_library, path, &table, err);
    *api = table;
    return code;
}

/* ---- what a caller may know of it without a device ----------------------------------------------------- */

int32_t tb_nccl_version(const char *path, uint32_t *version, tb_error *err) {
    const tb_nccl_api *api;
    int32_t code = tb_nccl_load(path, &api, err);
    if (code == TB_OK) {
        *version = (uint32_t)api->version;
    }
    return code;
}

int32_t tb_nccl_unique_id(const char *path, uint8_t id[128], tb_error *err) {
    const tb_nccl_api *api;
    tb_nccl_id made;
    int32_t code = tb_nccl_load(path, &api, err);
    if (code != TB_OK) {
        return code;
    }
    tb_nccl_result result = api->ncclGetUniqueId(&made);
    if (result != TB_NCCL_SUCCESS) {
        return tb_nccl_fail(api, result, NULL, err, "ncclGetUniqueId");
    }
    memcpy(id, made.internal, sizeof made.internal);
    return TB_OK;
}
