/*
 * NCCL, libnccl.so.2: never linked, loaded when a device first has peers on others. Every function that is used stands
 * in one table, under the name that the library exports; test/ffi/nccl-abi.test.ts holds it against the real library
 * if one is at hand.
 *
 * Calls that touch a communicator or a group are made by the one thread of its device (cuda_worker.h): the state of a
 * group belongs to the thread that began it, and an abort is safe only while nobody else is inside.
 */
#ifndef TB_NCCL_API_H
#define TB_NCCL_API_H

#include <stddef.h>
#include <stdint.h>

#include "tensorbus.h"

typedef struct tb_cu_stream_st *tb_cu_stream; /* as in cuda_api.h */
typedef int tb_nccl_result;
typedef int tb_nccl_type;
typedef struct tb_nccl_comm_st *tb_nccl_comm;
/* Passed by value. */
typedef struct tb_nccl_id {
    char internal[128];
} tb_nccl_id;

enum {
    TB_NCCL_SUCCESS = 0,
    TB_NCCL_CUDA_ERROR = 1,
    TB_NCCL_SYSTEM_ERROR = 2,
    TB_NCCL_INTERNAL_ERROR = 3,
    TB_NCCL_INVALID_ARGUMENT = 4,
    TB_NCCL_INVALID_USAGE = 5,
    TB_NCCL_REMOTE_ERROR = 6,
    TB_NCCL_IN_PROGRESS = 7,
    TB_NCCL_TIMEOUT = 8, /* from 2.30 on */
    TB_NCCL_RESULTS = 9,
};

enum { TB_NCCL_UINT8 = 1 };

/*
 * How a communicator is made, in the form of 2.28. A library copies as much of it as it knows, and gives what it knows
 * beyond it its default, since `version` says that nobody set it: the same 80 bytes serve older and newer ones.
 */
typedef struct tb_nccl_config {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
    int cga_cluster_size;
    int min_ctas;
    int max_ctas;
    const char *net_name;
    int split_share;
    int traffic_class;
    const char *comm_name;
    int collnet_enable;
    int cta_policy;
    int shrink_share;
    int nvls_ctas;
    int channels_per_net_peer;
    int nvlink_centric_sched;
} tb_nccl_config;

/* Every member unset but those that say what it is, and blocking: calls on its communicator return at once. */
void tb_nccl_config_init(tb_nccl_config *config);

/* clang-format off */
#define TB_NCCL_FUNCTIONS(F)                                                                                           \
    F(tb_nccl_result, ncclGetUniqueId, (tb_nccl_id *))                                                                 \
    F(tb_nccl_result, ncclCommInitRankConfig, (tb_nccl_comm *, int, tb_nccl_id, int, tb_nccl_config *))                \
    F(tb_nccl_result, ncclCommGetAsyncError, (tb_nccl_comm, tb_nccl_result *))                                         \
    F(tb_nccl_result, ncclCommFinalize, (tb_nccl_comm))                                                                \
    F(tb_nccl_result, ncclCommDestroy, (tb_nccl_comm))                                                                 \
    F(tb_nccl_result, ncclCommAbort, (tb_nccl_comm))                                                                   \
    F(tb_nccl_result, ncclSend, (const void *, size_t, tb_nccl_type, int, tb_nccl_comm, tb_cu_stream))                 \
    F(tb_nccl_result, ncclRecv, (void *, size_t, tb_nccl_type, int, tb_nccl_comm, tb_cu_stream))                       \
    F(tb_nccl_result, ncclGroupStart, (void))                                                                          \
    F(tb_nccl_result, ncclGroupEnd, (void))                                                                            \
    F(const char *, ncclGetErrorString, (tb_nccl_result))                                                              \
    F(const char *, ncclGetLastError, (tb_nccl_comm))
/* Called before the others are looked for: an old library lacks some, and is to be called old. */
#define TB_NCCL_FIRST_FUNCTIONS(F)                                                                                     \
    F(tb_nccl_result, ncclGetVersion, (int *))
/* clang-format on */

typedef struct tb_nccl_api {
#define TB_NCCL_MEMBER(result, name, arguments) result(*name) arguments;
    TB_NCCL_FIRST_FUNCTIONS(TB_NCCL_MEMBER)
    TB_NCCL_FUNCTIONS(TB_NCCL_MEMBER)
#undef TB_NCCL_MEMBER
    int version; /* 10000 * major + 100 * minor + patch */
    const char *path;
} tb_nccl_api;

/* Two ranks on one device are possible from this version on, and still an experiment there. */
enum { TB_NCCL_SHARED_DEVICE_VERSION = 23000 };

/*
 * Loads the library, once for each path, and for good: it has threads of its own. NULL is $TENSOR_BUS_LIBNCCL, else
 * libnccl.so.2. TB_ELIBRARY if it is missing or too old; the message has both versions.
 */
int32_t tb_nccl_load(const char *path, const tb_nccl_api **api, tb_error *err);

/*
 * The failure of a call, with what the library says of it: TB_EPEER_LOST if it was the other side's (remote), else
 * TB_ENCCL. comm may be NULL.
 */
int32_t tb_nccl_fail(const tb_nccl_api *api, tb_nccl_result result, tb_nccl_comm comm, tb_error *err,
                     const char *what);

#endif
