/*
 * The CUDA driver, libcuda.so.1: never linked, loaded when a device is first asked for. Every function that
 * is used stands in one table, with the name under which the driver exports it; native/test/cuda_abi_test.c
 * holds the table against NVIDIA's header if there is one.
 */
#ifndef TB_CUDA_API_H
#define TB_CUDA_API_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "tensorbus.h"

#ifdef TB_CUDA_REAL_TYPES
#include <cuda.h>
typedef CUresult tb_cu_result;
typedef CUdevice tb_cu_device;
typedef CUdeviceptr tb_cu_pointer;
typedef CUcontext tb_cu_context;
typedef CUstream tb_cu_stream;
typedef CUevent tb_cu_event;
typedef CUmodule tb_cu_module;
typedef CUfunction tb_cu_function;
typedef CUuuid tb_cu_uuid;
typedef CUipcMemHandle tb_cu_ipc_memory;
typedef CUipcEventHandle tb_cu_ipc_event;
typedef CUdevice_attribute tb_cu_device_attribute;
typedef CUpointer_attribute tb_cu_pointer_attribute;
typedef CUjit_option tb_cu_jit_option;
#else
typedef int tb_cu_result;
typedef int tb_cu_device;
typedef unsigned long long tb_cu_pointer;
typedef struct tb_cu_context_st *tb_cu_context;
typedef struct tb_cu_stream_st *tb_cu_stream;
typedef struct tb_cu_event_st *tb_cu_event;
typedef struct tb_cu_module_st *tb_cu_module;
typedef struct tb_cu_function_st *tb_cu_function;
typedef struct tb_cu_uuid {
    char bytes[16];
} tb_cu_uuid;
/* Both are passed by value. */
typedef struct tb_cu_ipc_memory {
    char reserved[64];
} tb_cu_ipc_memory;
typedef struct tb_cu_ipc_event {
    char reserved[64];
} tb_cu_ipc_event;
typedef int tb_cu_device_attribute;
typedef int tb_cu_pointer_attribute;
typedef int tb_cu_jit_option;
#endif

/* Results that are more than a failure to us. */
enum {
    TB_CU_SUCCESS = 0,
    TB_CU_INVALID_VALUE = 1,
    TB_CU_OUT_OF_MEMORY = 2,
    TB_CU_NO_DEVICE = 100,
    TB_CU_PEER_ACCESS_UNSUPPORTED = 217,
    TB_CU_UNSUPPORTED_PTX = 222,
    TB_CU_NOT_READY = 600,
};

enum { TB_CU_STREAM_NON_BLOCKING = 1 };
enum { TB_CU_EVENT_DISABLE_TIMING = 2, TB_CU_EVENT_INTERPROCESS = 4 };
enum { TB_CU_IPC_LAZY_PEER_ACCESS = 1 };
enum { TB_CU_DEVICE_MULTIPROCESSORS = 16, TB_CU_DEVICE_MAJOR = 75, TB_CU_DEVICE_MINOR = 76 };
enum { TB_CU_POINTER_MEMORY_TYPE = 2, TB_CU_POINTER_ORDINAL = 9, TB_CU_POINTER_LEGACY_IPC = 10 };
enum { TB_CU_MEMORY_DEVICE = 2 };
enum { TB_CU_JIT_ERROR_LOG = 5, TB_CU_JIT_ERROR_LOG_BYTES = 6 };

/* clang-format off */
#define TB_CUDA_FUNCTIONS(F)                                                                                           \
    F(cuGetErrorName, (tb_cu_result, const char **))                                                                   \
    F(cuGetErrorString, (tb_cu_result, const char **))                                                                 \
    F(cuDeviceGetCount, (int *))                                                                                       \
    F(cuDeviceGet, (tb_cu_device *, int))                                                                              \
    F(cuDeviceGetUuid_v2, (tb_cu_uuid *, tb_cu_device))                                                                \
    F(cuDeviceGetName, (char *, int, tb_cu_device))                                                                    \
    F(cuDeviceGetAttribute, (int *, tb_cu_device_attribute, tb_cu_device))                                             \
    F(cuDevicePrimaryCtxRetain, (tb_cu_context *, tb_cu_device))                                                       \
    F(cuDevicePrimaryCtxRelease_v2, (tb_cu_device))                                                                    \
    F(cuCtxSetCurrent, (tb_cu_context))                                                                                \
    F(cuMemGetInfo_v2, (size_t *, size_t *))                                                                           \
    F(cuMemAlloc_v2, (tb_cu_pointer *, size_t))                                                                        \
    F(cuMemFree_v2, (tb_cu_pointer))                                                                                   \
    F(cuMemGetAddressRange_v2, (tb_cu_pointer *, size_t *, tb_cu_pointer))                                             \
    F(cuPointerGetAttribute, (void *, tb_cu_pointer_attribute, tb_cu_pointer))                                         \
    F(cuMemcpyHtoD_v2, (tb_cu_pointer, const void *, size_t))                                                          \
    F(cuMemcpyDtoH_v2, (void *, tb_cu_pointer, size_t))                                                                \
    F(cuMemcpyHtoDAsync_v2, (tb_cu_pointer, const void *, size_t, tb_cu_stream))                                       \
    F(cuMemcpyDtoDAsync_v2, (tb_cu_pointer, tb_cu_pointer, size_t, tb_cu_stream))                                      \
    F(cuMemsetD8Async, (tb_cu_pointer, unsigned char, size_t, tb_cu_stream))                                           \
    F(cuIpcGetMemHandle, (tb_cu_ipc_memory *, tb_cu_pointer))                                                          \
    F(cuIpcOpenMemHandle_v2, (tb_cu_pointer *, tb_cu_ipc_memory, unsigned))                                            \
    F(cuIpcCloseMemHandle, (tb_cu_pointer))                                                                            \
    F(cuIpcGetEventHandle, (tb_cu_ipc_event *, tb_cu_event))                                                           \
    F(cuIpcOpenEventHandle, (tb_cu_event *, tb_cu_ipc_event))                                                          \
    F(cuStreamCreate, (tb_cu_stream *, unsigned))                                                                      \
    F(cuStreamDestroy_v2, (tb_cu_stream))                                                                              \
    F(cuStreamQuery, (tb_cu_stream))                                                                                   \
    F(cuStreamSynchronize, (tb_cu_stream))                                                                             \
    F(cuStreamWaitEvent, (tb_cu_stream, tb_cu_event, unsigned))                                                        \
    F(cuEventCreate, (tb_cu_event *, unsigned))                                                                        \
    F(cuEventDestroy_v2, (tb_cu_event))                                                                                \
    F(cuEventRecord, (tb_cu_event, tb_cu_stream))                                                                      \
    F(cuEventQuery, (tb_cu_event))                                                                                     \
    F(cuModuleLoadDataEx, (tb_cu_module *, const void *, unsigned, tb_cu_jit_option *, void **))                       \
    F(cuModuleGetFunction, (tb_cu_function *, tb_cu_module, const char *))                                             \
    F(cuModuleUnload, (tb_cu_module))                                                                                  \
    F(cuLaunchKernel, (tb_cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,           \
                       tb_cu_stream, void **, void **))
/* Called before the others are looked for: an old driver lacks some, and is to be called old. */
#define TB_CUDA_FIRST_FUNCTIONS(F)                                                                                     \
    F(cuInit, (unsigned))                                                                                              \
    F(cuDriverGetVersion, (int *))
/* clang-format on */

typedef struct tb_cuda_api {
#define TB_CUDA_MEMBER(name, arguments) tb_cu_result(*name) arguments;
    TB_CUDA_FIRST_FUNCTIONS(TB_CUDA_MEMBER)
    TB_CUDA_FUNCTIONS(TB_CUDA_MEMBER)
#undef TB_CUDA_MEMBER
    int version; /* the version of the driver: 1000 * major + 10 * minor */
    const char *path;
} tb_cuda_api;

/*
 * Loads and initializes the driver, once for each path; NULL is $TENSOR_BUS_LIBCUDA, else libcuda.so.1. *api
 * stays for the life of the process. TB_ELIBRARY if it is missing or too old, TB_EDEVICE if it finds no
 * GPU.
 */
int32_t tb_cuda_load(const char *path, const tb_cuda_api **api, tb_error *err);

/* The errno of a failure after which no call of the driver succeeds in this process any more. */
enum { TB_CUDA_FOR_GOOD = ENOTRECOVERABLE };

/* TB_ENO_MEMORY for want of device memory, else TB_ECUDA; what: the call, or what it was for. */
int32_t tb_cuda_fail(const tb_cuda_api *api, tb_cu_result result, tb_error *err, const char *what);

/* Fails the enclosing function if the call fails. */
#define TB_CUDA_TRY(api, call, err)                                                                          \
    do {                                                                                                     \
        tb_cu_result tb_result_ = (api)->call;                                                               \
        if (tb_result_ != TB_CU_SUCCESS) {                                                                   \
            return tb_cuda_fail(api, tb_result_, err, #call);                                                \
        }                                                                                                    \
    } while (0)

/* "GPU-…" as nvidia-smi writes it, into 41 bytes; and back. */
enum { TB_UUID_TEXT = 41 };
void tb_cuda_uuid_text(const uint8_t uuid[16], char text[TB_UUID_TEXT]);

#endif
