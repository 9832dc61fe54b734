/*
 * UCX, libucp.so.0: never linked, loaded when a session is to use it. Every function that is used stands in one table,
 * under the name that the library exports. Its structs are read by their field masks: what a library knows beyond the
 * fields that we name, it does not look at, so one form serves 1.13 and what came after it. docs/ucx.md says how each
 * fact is known.
 *
 * A worker, and everything that was made with it, is used by one thread alone: that of its session (ucx_thread.c).
 */
#ifndef TB_UCX_API_H
#define TB_UCX_API_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "tensorbus.h"

typedef struct tb_ucp_config_st *tb_ucp_config;
typedef struct tb_ucp_context_st *tb_ucp_context;
typedef struct tb_ucp_worker_st *tb_ucp_worker;
typedef struct tb_ucp_ep_st *tb_ucp_ep;
typedef struct tb_ucp_memory_st *tb_ucp_memory;
typedef struct tb_ucp_key_st *tb_ucp_key;
typedef int8_t tb_ucs_status;
/* NULL: done; a status if it is one of the last 100 addresses; else a request. */
typedef void *tb_ucs_pointer;

enum {
    TB_UCS_OK = 0,
    TB_UCS_NO_MEMORY = -4,
    TB_UCS_BUSY = -15,
    TB_UCS_CANCELED = -16,
    TB_UCS_LAST = -100,
};

enum { TB_UCP_FEATURE_RMA = 1 << 1, TB_UCP_FEATURE_WAKEUP = 1 << 4 };
enum { TB_UCP_PARAM_FEATURES = 1 << 0 };
typedef struct tb_ucp_params {
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    void *request_init, *request_cleanup;
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps, estimated_num_ppn;
    const char *name;
    size_t node_local_id;
} tb_ucp_params;

enum { TB_UCP_CONTEXT_MEMORY_TYPES = 1 << 2 };
enum { TB_UCS_MEMORY_HOST = 0, TB_UCS_MEMORY_CUDA = 1 };
typedef struct tb_ucp_context_attr {
    uint64_t field_mask;
    size_t request_size;
    int thread_mode;
    uint64_t memory_types; /* bits */
    char name[32];
    size_t device_counter_size;
} tb_ucp_context_attr;

/* The worker is made by one thread and used by another, never by two at once. */
enum { TB_UCP_WORKER_THREAD_MODE = 1 << 0, TB_UCS_THREADS_IN_TURN = 1 };
typedef struct tb_ucp_worker_params {
    uint64_t field_mask;
    int thread_mode;
    uint64_t cpu_mask[16];
    unsigned events;
    void *user_data;
    int event_fd;
    uint64_t flags;
    const char *name;
    size_t am_alignment;
    uint64_t client_id;
} tb_ucp_worker_params;

enum { TB_UCP_EP_ADDRESS = 1 << 0, TB_UCP_EP_ERROR_MODE = 1 << 1, TB_UCP_EP_ERROR_HANDLER = 1 << 2 };
enum { TB_UCP_ERRORS_OF_PEERS = 1 };
typedef struct tb_ucp_ep_params {
    uint64_t field_mask;
    const void *address;
    int error_mode;
    struct {
        void (*call)(void *argument, tb_ucp_ep ep, tb_ucs_status status);
        void *argument;
    } error_handler;
    void *user_data;
    unsigned flags;
    struct {
        const void *at;
        uint32_t bytes;
    } socket;
    void *request;
    const char *name;
    struct {
        const void *at;
        uint32_t bytes;
    } local_socket;
} tb_ucp_ep_params;

enum {
    TB_UCP_MAP_ADDRESS = 1 << 0,
    TB_UCP_MAP_LENGTH = 1 << 1,
    TB_UCP_MAP_PROTECTION = 1 << 3,
    TB_UCP_MAP_MEMORY_TYPE = 1 << 4,
};
enum { TB_UCP_LOCAL_READ = 1 << 0, TB_UCP_LOCAL_WRITE = 1 << 1, TB_UCP_REMOTE_READ = 1 << 8 };
typedef struct tb_ucp_map_params {
    uint64_t field_mask;
    void *address;
    size_t length;
    unsigned flags, protection;
    int memory_type;
    const void *exported;
} tb_ucp_map_params;

enum {
    TB_UCP_OP_CALLBACK = 1 << 1,
    TB_UCP_OP_USER_DATA = 1 << 2,
    TB_UCP_OP_FLAGS = 1 << 4,
    TB_UCP_OP_MEMORY_TYPE = 1 << 6,
    TB_UCP_OP_MEMORY = 1 << 8,
};
enum { TB_UCP_CLOSE_BY_FORCE = 1 };
typedef struct tb_ucp_request_param {
    uint32_t op_mask;
    uint32_t flags;
    void *request;
    void (*call)(void *request, tb_ucs_status status, void *user_data);
    uint64_t datatype;
    void *user_data;
    void *reply_buffer;
    int memory_type;
    void *received;
    tb_ucp_memory memory;
    uint64_t remote_datatype; /* from 1.22 on */
    const void *remote;
    size_t remote_count;
} tb_ucp_request_param;

/* clang-format off */
#define TB_UCX_FUNCTIONS(F)                                                                                            \
    F(tb_ucs_status, ucp_config_read, (const char *, const char *, tb_ucp_config *))                                   \
    F(tb_ucs_status, ucp_config_modify, (tb_ucp_config, const char *, const char *))                                   \
    F(void, ucp_config_release, (tb_ucp_config))                                                                       \
    F(tb_ucs_status, ucp_init_version, (unsigned, unsigned, const tb_ucp_params *, tb_ucp_config, tb_ucp_context *))   \
    F(tb_ucs_status, ucp_context_query, (tb_ucp_context, tb_ucp_context_attr *))                                       \
    F(void, ucp_context_print_info, (tb_ucp_context, FILE *))                                                          \
    F(void, ucp_cleanup, (tb_ucp_context))                                                                             \
    F(tb_ucs_status, ucp_worker_create, (tb_ucp_context, const tb_ucp_worker_params *, tb_ucp_worker *))               \
    F(tb_ucs_status, ucp_worker_get_address, (tb_ucp_worker, void **, size_t *))                                       \
    F(void, ucp_worker_release_address, (tb_ucp_worker, void *))                                                       \
    F(tb_ucs_status, ucp_worker_get_efd, (tb_ucp_worker, int *))                                                       \
    F(tb_ucs_status, ucp_worker_arm, (tb_ucp_worker))                                                                  \
    F(unsigned, ucp_worker_progress, (tb_ucp_worker))                                                                  \
    F(void, ucp_worker_destroy, (tb_ucp_worker))                                                                       \
    F(tb_ucs_status, ucp_ep_create, (tb_ucp_worker, const tb_ucp_ep_params *, tb_ucp_ep *))                            \
    F(tb_ucs_pointer, ucp_ep_close_nbx, (tb_ucp_ep, const tb_ucp_request_param *))                                     \
    F(tb_ucs_status, ucp_mem_map, (tb_ucp_context, const tb_ucp_map_params *, tb_ucp_memory *))                        \
    F(tb_ucs_status, ucp_mem_unmap, (tb_ucp_context, tb_ucp_memory))                                                   \
    F(tb_ucs_status, ucp_rkey_pack, (tb_ucp_context, tb_ucp_memory, void **, size_t *))                                \
    F(void, ucp_rkey_buffer_release, (void *))                                                                         \
    F(tb_ucs_status, ucp_ep_rkey_unpack, (tb_ucp_ep, const void *, tb_ucp_key *))                                      \
    F(void, ucp_rkey_destroy, (tb_ucp_key))                                                                            \
    F(tb_ucs_pointer, ucp_get_nbx, (tb_ucp_ep, void *, size_t, uint64_t, tb_ucp_key, const tb_ucp_request_param *))    \
    F(void, ucp_request_free, (void *))                                                                                \
    F(const char *, ucs_status_string, (tb_ucs_status))
/* Called before the others are looked for: an old library lacks some, and is to be called old. */
#define TB_UCX_FIRST_FUNCTIONS(F)                                                                                      \
    F(void, ucp_get_version, (unsigned *, unsigned *, unsigned *))
/* clang-format on */

typedef struct tb_ucx_api {
#define TB_UCX_MEMBER(result, name, arguments) result(*name) arguments;
    TB_UCX_FIRST_FUNCTIONS(TB_UCX_MEMBER)
    TB_UCX_FUNCTIONS(TB_UCX_MEMBER)
#undef TB_UCX_MEMBER
    uint32_t version; /* 10000 * major + 100 * minor + patch */
    const char *path;
} tb_ucx_api;

/*
 * Loads the library, once for each path, and for good. NULL is $TENSOR_BUS_LIBUCP, else libucp.so.0. TB_ELIBRARY if it
 * is missing or too old. What it does to the process as it is loaded, handlers of signals, is undone.
 */
int32_t tb_ucx_load(const char *path, const tb_ucx_api **api, tb_error *err);

/*
 * A context that takes what `transports` names of UCX's transports (UCX_TLS); NULL or "": what the environment says,
 * and else all but TCP, by which UCX lets everybody who reaches its port read and write this process. *speaks: see
 * tb_ucx_speaks.
 */
int32_t tb_ucx_context_make(const tb_ucx_api *api, const char *transports, tb_ucp_context *context, uint32_t *speaks,
                            tb_error *err);

static inline tb_ucs_status tb_ucs_status_of(tb_ucs_pointer pointer) {
    return pointer == NULL ? TB_UCS_OK : (tb_ucs_status)(intptr_t)pointer;
}

static inline int tb_ucs_is_error(tb_ucs_pointer pointer) {
    return (uintptr_t)pointer >= (uintptr_t)TB_UCS_LAST;
}

/* The failure of a call, with the library's words for it. */
int32_t tb_ucx_fail(const tb_ucx_api *api, tb_ucs_status status, int32_t code, int32_t rank, tb_error *err,
                    const char *fmt, ...) __attribute__((format(printf, 6, 7)));

#endif
