#include "cuda/cuda_api.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* cuDeviceGetUuid_v2 is of 11.4; the kernels need no newer one. */
enum { LEAST_VERSION = 11040 };
#define LIBRARY_VARIABLE "TENSOR_BUS_LIBCUDA"
#define LIBRARY "libcuda.so.1"

typedef struct loaded {
    struct loaded *next;
    tb_cuda_api api;
    char path[];
} loaded;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static loaded *all;

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
    /* Of "cuMemAlloc_v2(&pointer, bytes)" the name is enough. */
    return tb_fail(err, code, -1, 0, "%.*s: %s (%d), %s", (int)strcspn(what, "("), what, name, (int)result,
                   text);
}

void tb_cuda_uuid_text(const uint8_t uuid[16], char text[TB_UUID_TEXT]) {
    char *at = text + sprintf(text, "GPU-");
    for (int i = 0; i < 16; i++) {
        at += sprintf(at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
}

/* Function pointers come out of dlsym as objects, which C cannot cast. */
static bool find(void *library, const char *name, void *function) {
    void *found = dlsym(library, name);
    memcpy(function, &found, sizeof found);
    return found != NULL;
}

static int32_t too_old(const tb_cuda_api *api, tb_error *err, const char *lacks) {
    return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is a driver for CUDA %d.%d%s%s; %d.%d or newer is needed",
                   api->path, api->version / 1000, api->version % 1000 / 10,
                   lacks == NULL ? "" : ", which lacks ", lacks == NULL ? "" : lacks, LEAST_VERSION / 1000,
                   LEAST_VERSION % 1000 / 10);
}

static int32_t find_first(tb_cuda_api *api, void *library, tb_error *err) {
#define FIND(name, arguments)                                                                                \
    if (!find(library, #name, &api->name)) {                                                                 \
        return tb_fail(err, TB_ELIBRARY, -1, 0, "%s is no CUDA driver: it lacks %s", api->path, #name);      \
    }
    TB_CUDA_FIRST_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t find_others(tb_cuda_api *api, void *library, tb_error *err) {
#define FIND(name, arguments)                                                                                \
    if (!find(library, #name, &api->name)) {                                                                 \
        return too_old(api, err, #name);                                                                     \
    }
    TB_CUDA_FUNCTIONS(FIND)
#undef FIND
    return TB_OK;
}

static int32_t load(tb_cuda_api *api, tb_error *err) {
    void *library = dlopen(api->path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        const char *why = dlerror();
        return tb_fail(err, TB_ELIBRARY, -1, 0, "the CUDA driver does not load: %s",
                       why == NULL ? api->path : why);
    }
    int32_t code = find_first(api, library, err);
    if (code == TB_OK
        && (api->cuDriverGetVersion(&api->version) != TB_CU_SUCCESS || api->version < LEAST_VERSION)) {
        code = too_old(api, err, NULL);
    }
    if (code == TB_OK) {
        code = find_others(api, library, err);
    }
    if (code != TB_OK) {
        dlclose(library);
        return code;
    }
    tb_cu_result result = api->cuInit(0);
    if (result == TB_CU_NO_DEVICE) {
        return tb_fail(err, TB_EDEVICE, -1, 0, "%s finds no GPU", api->path);
    }
    return result == TB_CU_SUCCESS ? TB_OK : tb_cuda_fail(api, result, err, "cuInit");
}

static int32_t load_once(const char *path, const tb_cuda_api **api, tb_error *err) {
    for (loaded *one = all; one != NULL; one = one->next) {
        if (strcmp(one->path, path) == 0) {
            *api = &one->api;
            return TB_OK;
        }
    }
    loaded *one = calloc(1, sizeof *one + strlen(path) + 1);
    if (one == NULL) {
        return tb_fail(err, TB_ENO_MEMORY, -1, 0, "the functions of %.200s", path);
    }
    strcpy(one->path, path);
    one->api.path = one->path;
    int32_t code = load(&one->api, err);
    if (code != TB_OK) {
        free(one);
        return code;
    }
    one->next = all;
    all = one;
    *api = &one->api;
    return TB_OK;
}

int32_t tb_cuda_load(const char *path, const tb_cuda_api **api, tb_error *err) {
    const char *variable = getenv(LIBRARY_VARIABLE);
    if (path == NULL) {
        path = variable != NULL && variable[0] != '\0' ? variable : LIBRARY;
    }
    pthread_mutex_lock(&lock);
    int32_t code = load_once(path, api, err);
    pthread_mutex_unlock(&lock);
    return code;
}
