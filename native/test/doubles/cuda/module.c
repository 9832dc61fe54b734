/* Modules, and the kernels of native/cuda as a processor runs them. */
#include "double.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The kernel that runs in this thread, and how it ends if it touches what it must not. */
static _Thread_local jmp_buf trap;
static _Thread_local tb_cu_context running;
static _Thread_local const char *running_name;

static void *reach(tb_cu_pointer address, uint64_t bytes) {
    char why[160];
    if (address % bytes != 0) {
        double_fail(running, MISALIGNED_ADDRESS, "%s: 0x%llx is no multiple of %llu", running_name, address,
                    (unsigned long long)bytes);
        longjmp(trap, 1);
    }
    void *at = double_reach(address, bytes, why, sizeof why);
    if (at == NULL) {
        double_fail(running, ILLEGAL_ADDRESS, "%s: %s", running_name, why);
        longjmp(trap, 1);
    }
    return at;
}

/* A row of the table is read as its aligned words. */
#define TB_DEVICE_ADDRESS(address, bytes) reach(address, (bytes) > 16 ? 8 : (bytes) == 12 ? 4 : (bytes))
#include "../../../cuda/bodies.h"

typedef void (*kernel)(const tb_cuda_launch *launch, uint32_t block, uint32_t blocks, uint32_t thread);

#define KERNEL(name, tile_of)                                                                                \
    static void name(const tb_cuda_launch *given, uint32_t block, uint32_t blocks, uint32_t thread) {        \
        tb_cuda_launch launch = *given;                                                                      \
        TB_TILES_OF_BLOCK(&launch, block, blocks, thread, tile_of)                                           \
    }
KERNEL(run_copy, tb_copy_tile(&move, launch.loops, first))
KERNEL(run_fold, tb_fold_tile(&move, launch.loops, first))
KERNEL(run_cast, tb_cast_any_tile(&move, launch.loops, first))
#define CAST_KERNEL(to, to_type, from, from_type)                                                            \
    KERNEL(run_cast_##to##_of_##from, tb_cast_tile(&move, launch.loops, first, to_type, from_type))
TB_CUDA_CASTS(CAST_KERNEL)

#define CAST_ENTRY(to, to_type, from, from_type) run_cast_##to##_of_##from,
static const kernel kernels[] = {run_copy, run_fold, run_cast, TB_CUDA_CASTS(CAST_ENTRY)};
static const char *const names[] = {TB_CUDA_KERNEL_NAMES};

struct tb_cu_function_st {
    tb_cu_context context;
    uint32_t kernel;
    uint32_t parameter_bytes;
    bool there;
};

struct tb_cu_module_st {
    struct tb_cu_function_st functions[TB_CUDA_KERNEL_COUNT];
};

/* ---- modules
 * ------------------------------------------------------------------------------------------------------ */

/* CUDA 10.0 brought PTX 6.3, 11.0 7.0, 12.0 8.0 and 13.0 9.0. */
static bool too_new(double ptx) {
    int version = 0;
    cuDriverGetVersion(&version);
    double newest = version >= 13000 ? 9.0 : version >= 12000 ? 8.0 : version >= 11000 ? 7.0 : 6.3;
    return ptx > newest + 0.95;
}

/* Finds an entry and the bytes of its one parameter in PTX text. */
static bool find_entry(const char *text, const char *name, uint32_t *bytes) {
    char entry[96];
    int length = snprintf(entry, sizeof entry, ".entry %s", name);
    for (const char *at = strstr(text, entry); at != NULL; at = strstr(at + 1, entry)) {
        const char *open = at + length;
        if (isalnum((unsigned char)*open) || *open == '_') {
            continue;
        }
        const char *bracket = strchr(open, '[');
        return bracket != NULL && sscanf(bracket, "[%u]", bytes) == 1;
    }
    return false;
}

tb_cu_result cuModuleLoadDataEx(tb_cu_module *made, const void *image, unsigned options,
                                tb_cu_jit_option *names_of, void **values) {
    (void)options;
    (void)names_of;
    (void)values;
    tb_cu_context context;
    double version;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    const char *line = strstr(image, ".version ");
    if (line == NULL || sscanf(line, ".version %lf", &version) != 1 || strstr(image, ".target sm_") == NULL) {
        return INVALID_IMAGE;
    }
    if (too_new(version)) {
        return TB_CU_UNSUPPORTED_PTX;
    }
    tb_cu_module module = calloc(1, sizeof *module);
    if (module == NULL) {
        return TB_CU_OUT_OF_MEMORY;
    }
    for (uint32_t i = 0; i < TB_CUDA_KERNEL_COUNT; i++) {
        module->functions[i] = (struct tb_cu_function_st){.context = context, .kernel = i};
        module->functions[i].there = find_entry(image, names[i], &module->functions[i].parameter_bytes);
    }
    *made = module;
    return TB_CU_SUCCESS;
}

tb_cu_result cuModuleGetFunction(tb_cu_function *function, tb_cu_module module, const char *name) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    for (uint32_t i = 0; i < TB_CUDA_KERNEL_COUNT && result == TB_CU_SUCCESS; i++) {
        if (strcmp(names[i], name) == 0 && module->functions[i].there) {
            *function = &module->functions[i];
            return TB_CU_SUCCESS;
        }
    }
    return result != TB_CU_SUCCESS ? result : NOT_FOUND;
}

tb_cu_result cuModuleUnload(tb_cu_module module) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result == INVALID_CONTEXT || result == NOT_INITIALIZED) {
        return result;
    }
    double_drain(context);
    free(module);
    return result;
}

/* ---- launches
 * -------------------------------------------------------------------------------------------------------- */

typedef struct launching {
    uint32_t kernel, blocks;
    tb_cuda_launch launch;
} launching;

static void run_launch(tb_cu_context context, void *argument) {
    launching *given = argument;
    running = context;
    running_name = names[given->kernel];
    double_hold_memory();
    if (setjmp(trap) == 0) {
        for (uint32_t block = 0; block < given->blocks; block++) {
            for (uint32_t thread = 0; thread < TB_CUDA_THREADS; thread++) {
                kernels[given->kernel](&given->launch, block, given->blocks, thread);
            }
        }
    }
    double_release_memory();
}

tb_cu_result cuLaunchKernel(tb_cu_function function, unsigned x, unsigned y, unsigned z, unsigned threads,
                            unsigned ty, unsigned tz, unsigned shared, tb_cu_stream stream, void **parameters,
                            void **extra) {
    launching given = {.kernel = function->kernel, .blocks = x};
    /* The driver, too, checks the size of a buffer: that is how the kernels are called. */
    bool buffer = parameters == NULL && extra != NULL && extra[0] == (void *)1 && extra[2] == (void *)2
               && extra[4] == NULL;
    if (!buffer || *(size_t *)extra[3] != function->parameter_bytes
        || function->parameter_bytes != sizeof given.launch) {
        return TB_CU_INVALID_VALUE;
    }
    if (x == 0 || y != 1 || z != 1 || threads != TB_CUDA_THREADS || ty != 1 || tz != 1 || shared != 0) {
        return TB_CU_INVALID_VALUE;
    }
    memcpy(&given.launch, extra[1], sizeof given.launch);
    return double_enqueue(stream, run_launch, &given, sizeof given);
}
