/* The functions of libucp, and contexts of it. The loader has its own lock. */
#include "carriers/ucx/ucx_api.h"

#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/dynamic_library.h"
#include "base/error.h"

enum { API_MAJOR = 1, API_MINOR = 13, LEAST_VERSION = 11300, OWN_CACHE_UNTIL = 11600, CUDA_FROM = 11600 };

_Static_assert(sizeof(tb_ucp_params) == 88 && offsetof(tb_ucp_params, mt_workers_shared) == 48, "ucp_params_t");
_Static_assert(offsetof(tb_ucp_context_attr, memory_types) == 24, "ucp_context_attr_t");
_Static_assert(offsetof(tb_ucp_worker_params, events) == 144, "ucp_worker_params_t");
_Static_assert(offsetof(tb_ucp_ep_params, error_handler) == 24 && sizeof(tb_ucp_ep_params) == 104, "ucp_ep_params_t");
_Static_assert(offsetof(tb_ucp_map_params, memory_type) == 32, "ucp_mem_map_params_t");
_Static_assert(offsetof(tb_ucp_request_param, call) == 16 && offsetof(tb_ucp_request_param, memory) == 64,
               "ucp_request_param_t");

int32_t tb_ucx_fail(const tb_ucx_api *api, tb_ucs_status status, int32_t code, int32_t rank, tb_error *err,
                    const char *fmt, ...) {
    char what[160];
    va_list arguments;
    va_start(arguments, fmt);
    vsnprintf(what, sizeof what, fmt, arguments);
    va_end(arguments);
    const char *words = api->ucs_status_string(status);
    return tb_fail(err, code, rank, 0, "%s: %s (%d)", what, words == NULL ? "an unknown status" : words, status);
}

/* ---- the library --------------------------------------------------------------------------------------- */

static int32_t find(void *table, const char *path, void *library, tb_error *err) {
    tb_ucx_api *api = table;
    unsigned major = 0, minor = 0, patch = 0;
    api->path = path;
#define FIND(result, name, arguments)                                                                                  \
    if (!tb_library_find(library, #name, &api->name)) {                                                                \
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is not UCX 1.13 or newer: it does not have %s", path, #name);      \
    }
    TB_UCX_FIRST_FUNCTIONS(FIND)
    api->ucp_get_version(&major, &minor, &patch);
    api->version = major * 10000 + minor * 100 + patch;
    if (major != API_MAJOR || api->version < LEAST_VERSION) {
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is UCX %u.%u.%u; 1.13 or newer is needed", path, major, minor,
                       patch);
    }
    TB_UCX_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

/*
 * As it is loaded, the library takes SIGSEGV and others for itself, gives this thread a stack for them, and patches
 * mmap and its kin in libc, to see memory come and go, while other threads run. Signals belong to the program, whose
 * virtual machine lives by SIGSEGV, and are put back; only the environment keeps it from the rest. The loader's lock
 * guards this.
 */
static struct {
    struct sigaction actions[NSIG];
    bool known[NSIG];
    stack_t stack;
    bool said;
} kept;
static const char *const memory_events = "UCX_MEM_EVENTS";

static bool is_said(const char *variable) {
    const char *said = getenv(variable);
    return said != NULL && said[0] != '\0';
}

static void before(void) {
    for (int i = 1; i < NSIG; i++) {
        kept.known[i] = sigaction(i, NULL, &kept.actions[i]) == 0;
    }
    sigaltstack(NULL, &kept.stack);
    kept.said = is_said(memory_events);
    if (!kept.said) {
        setenv(memory_events, "n", 1);
    }
}

static void after(void) {
    if (!kept.said) {
        unsetenv(memory_events);
    }
    for (int i = 1; i < NSIG; i++) {
        struct sigaction now;
        if (kept.known[i] && sigaction(i, NULL, &now) == 0 && now.sa_sigaction != kept.actions[i].sa_sigaction) {
            sigaction(i, &kept.actions[i], NULL);
        }
    }
    sigaltstack(&kept.stack, NULL);
}

static tb_library ucx_library = {
    .what = "UCX",
    .variable = "TENSOR_BUS_LIBUCP",
    .file = "libucp.so.0",
    .table_bytes = sizeof(tb_ucx_api),
    .find = find,
    .before = before,
    .after = after,
    .lock = PTHREAD_MUTEX_INITIALIZER,
};

int32_t tb_ucx_load(const char *path, const tb_ucx_api **api, tb_error *err) {
    const void *table = NULL;
    int32_t code = tb_library_load(&ucx_library, path, &table, err);
    *api = table;
    return code;
}

/* ---- contexts ------------------------------------------------------------------------------------------ */

/*
 * What the library would do by default and a host program must not find: it keeps registrations, which we do, and would
 * have to see memory go; it takes no notice of the end of a peer on the same host; and it writes to the standard
 * output.
 */
static tb_ucs_status configure(const tb_ucx_api *api, tb_ucp_config config, const char *transports) {
    /* Names of transports' own settings are kept until one knows them; older versions leave out the transport. */
    static const struct {
        const char *name, *value;
        uint32_t until;
    } settings[] = {
        {"RCACHE_ENABLE", "n", UINT32_MAX},
        {"MM_ERROR_HANDLING", "y", UINT32_MAX},
        {"POSIX_ERROR_HANDLING", "y", UINT32_MAX},
        {"SYSV_ERROR_HANDLING", "y", UINT32_MAX},
        {"REG_METHODS", "direct", OWN_CACHE_UNTIL},
        {"IB_REG_METHODS", "direct", OWN_CACHE_UNTIL},
    };
    tb_ucs_status status = TB_UCS_OK;
    for (size_t i = 0; i < sizeof settings / sizeof settings[0] && status == TB_UCS_OK; i++) {
        if (api->version < settings[i].until) {
            status = api->ucp_config_modify(config, settings[i].name, settings[i].value);
        }
    }
    if (status == TB_UCS_OK && !is_said("UCX_LOG_LEVEL")) {
        status = api->ucp_config_modify(config, "LOG_LEVEL", "fatal");
    }
    bool named = transports != NULL && transports[0] != '\0';
    if (status == TB_UCS_OK && (named || !is_said("UCX_TLS"))) {
        status = api->ucp_config_modify(config, "TLS", named ? transports : "^tcp");
    }
    return status;
}

/* The names of transports that read memory of other hosts by hardware. */
static bool is_rdma(const char *name) {
    static const char *const begins[] = {"rc_", "dc_", "gga_", "srd", "ugni_rdma"};
    for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++) {
        if (strncmp(name, begins[i], strlen(begins[i])) == 0) {
            return true;
        }
    }
    return false;
}

/*
 * There is no call that says which transports a context has taken; there is one that prints them, a line each:
 * "#      resource 3  :  md 2  dev 1  flags -- rc_mlx5/mlx5_0:1". An 'a' for a flag is one that only sets others up.
 */
static bool has_rdma(const tb_ucx_api *api, tb_ucp_context context) {
    char *text = NULL;
    size_t bytes = 0;
    bool found = false;
    FILE *stream = open_memstream(&text, &bytes);
    if (stream == NULL) {
        return false;
    }
    api->ucp_context_print_info(context, stream);
    fclose(stream);
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL && !found; line = strtok_r(NULL, "\n", &rest)) {
        const char *flags = strstr(line, "resource ") == NULL ? NULL : strstr(line, " flags ");
        const char *name = flags == NULL ? NULL : strchr(flags + 7, ' ');
        found = name != NULL && flags[7] != 'a' && is_rdma(name + 1);
    }
    free(text);
    return found;
}

/*
 * The protocols that are usual from 1.16 on know of what type memory is at either end. Those before, which the
 * environment can ask for, copy small reads and emulated ones by memcpy: of CUDA memory the process would die.
 */
static bool reads_by_type(const tb_ucx_api *api) {
    static const char *const yes[] = {"y", "yes", "Y", "YES", "on", "1"};
    const char *said = getenv("UCX_PROTO_ENABLE");
    bool enabled = said == NULL || said[0] == '\0';
    for (size_t i = 0; i < sizeof yes / sizeof yes[0] && !enabled; i++) {
        enabled = strcmp(said, yes[i]) == 0;
    }
    return api->version >= CUDA_FROM && enabled;
}

int32_t tb_ucx_context_make(const tb_ucx_api *api, const char *transports, tb_ucp_context *context, uint32_t *speaks,
                            tb_error *err) {
    tb_ucp_config config = NULL;
    tb_ucp_params params = {.field_mask = TB_UCP_PARAM_FEATURES,
                            .features = TB_UCP_FEATURE_RMA | TB_UCP_FEATURE_WAKEUP};
    tb_ucp_context_attr attr = {.field_mask = TB_UCP_CONTEXT_MEMORY_TYPES};
    tb_ucs_status status = api->ucp_config_read(NULL, NULL, &config);
    if (status == TB_UCS_OK) {
        status = configure(api, config, transports);
    }
    if (status == TB_UCS_OK) {
        status = api->ucp_init_version(API_MAJOR, API_MINOR, &params, config, context);
    }
    if (config != NULL) {
        api->ucp_config_release(config);
    }
    if (status != TB_UCS_OK) {
        return tb_ucx_fail(api, status, TB_EUNSUPPORTED, -1, err,
                           "UCX has no context with these transports and devices");
    }
    *speaks = TB_UCX_SPOKEN | (has_rdma(api, *context) ? TB_UCX_RDMA : 0);
    if (reads_by_type(api) && api->ucp_context_query(*context, &attr) == TB_UCS_OK
        && (attr.memory_types >> TB_UCS_MEMORY_CUDA & 1) != 0) {
        *speaks |= TB_UCX_CUDA;
    }
    return TB_OK;
}

/* ---- what a caller may know of it without a session ---------------------------------------------------- */

int32_t tb_ucx_query(const char *path, const char *transports, uint32_t *version, uint32_t *speaks, tb_error *err) {
    const tb_ucx_api *api;
    tb_ucp_context context;
    int32_t code = tb_ucx_load(path, &api, err);
    if (code == TB_OK) {
        *version = api->version;
        code = tb_ucx_context_make(api, transports, &context, speaks, err);
    }
    if (code == TB_OK) {
        api->ucp_cleanup(context);
    }
    return code;
}
