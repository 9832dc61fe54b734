/*
 * The one part of the library that knows Node.js, which loads it as an addon beside what calls it through its C
 * interface: ArrayBuffers on memory that JavaScript does not own, and word of their end. The end is that of the pages'
 * last use, in whatever thread an ArrayBuffer was transferred to; an object of JavaScript alone would not tell.
 *
 * Node-API is a stable interface of C. What is used of it is declared here, and weak: other processes load the library
 * too. It runs in the thread of JavaScript that calls it; no lock is needed.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "tensorbus.h"

typedef struct napi_env_part *napi_env;
typedef struct napi_value_part *napi_value;
typedef struct napi_ref_part *napi_ref;
typedef struct napi_scope_part *napi_handle_scope;
typedef struct napi_info_part *napi_callback_info;
typedef int napi_status; /* 0: done */
typedef napi_value (*napi_callback)(napi_env env, napi_callback_info info);
typedef void (*napi_finalize)(napi_env env, void *data, void *hint);

#define NODE_API __attribute__((weak)) extern napi_status
NODE_API napi_get_cb_info(napi_env, napi_callback_info, size_t *, napi_value *, napi_value *, void **);
NODE_API napi_get_value_bigint_uint64(napi_env, napi_value, uint64_t *, bool *);
NODE_API napi_get_value_double(napi_env, napi_value, double *);
NODE_API napi_create_reference(napi_env, napi_value, uint32_t, napi_ref *);
NODE_API napi_get_reference_value(napi_env, napi_ref, napi_value *);
NODE_API napi_delete_reference(napi_env, napi_ref);
NODE_API napi_create_external_arraybuffer(napi_env, void *, size_t, napi_finalize, void *, napi_value *);
NODE_API napi_create_function(napi_env, const char *, size_t, napi_callback, void *, napi_value *);
NODE_API napi_open_handle_scope(napi_env, napi_handle_scope *);
NODE_API napi_close_handle_scope(napi_env, napi_handle_scope);
NODE_API napi_get_undefined(napi_env, napi_value *);
NODE_API napi_call_function(napi_env, napi_value, napi_value, size_t, const napi_value *, napi_value *);
NODE_API napi_throw_error(napi_env, const char *, const char *);

/* At the end of an environment JavaScript runs no more, and the call is refused: its memory ends with the process. */
static void tell_end(napi_env env, void *data, void *hint) {
    (void)data;
    napi_ref gone = hint;
    napi_handle_scope scope;
    if (napi_open_handle_scope(env, &scope) != 0) {
        return;
    }
    napi_value function, nothing, result;
    if (napi_get_reference_value(env, gone, &function) == 0 && napi_get_undefined(env, &nothing) == 0) {
        napi_call_function(env, nothing, function, 0, NULL, &result);
    }
    napi_delete_reference(env, gone);
    napi_close_handle_scope(env, scope);
}

/* (address: bigint, bytes: number, gone: () => void): ArrayBuffer. Its callers have checked the range. */
static napi_value make_view(napi_env env, napi_callback_info info) {
    napi_value arguments[3], view = NULL;
    size_t count = 3;
    uint64_t address;
    double bytes;
    bool exact;
    napi_ref gone = NULL;
    if (napi_get_cb_info(env, info, &count, arguments, NULL, NULL) != 0 || count < 3
        || napi_get_value_bigint_uint64(env, arguments[0], &address, &exact) != 0
        || napi_get_value_double(env, arguments[1], &bytes) != 0
        || napi_create_reference(env, arguments[2], 1, &gone) != 0
        || napi_create_external_arraybuffer(env, (void *)(uintptr_t)address, (size_t)bytes, tell_end, gone, &view)
               != 0) {
        if (gone != NULL) {
            napi_delete_reference(env, gone);
        }
        napi_throw_error(env, NULL, "a view of foreign memory cannot be made");
        return NULL;
    }
    return view;
}

/* Node.js looks for this name when it loads an addon; what it gives is `exports`. */
TB_API napi_value napi_register_module_v1(napi_env env, napi_value exports);
napi_value napi_register_module_v1(napi_env env, napi_value exports) {
    napi_value function;
    return napi_create_function(env, "view", 4, make_view, NULL, &function) == 0 ? function : exports;
}
