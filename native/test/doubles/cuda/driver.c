/* Devices, contexts, results. */
#include "double.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_bool initialized;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct tb_cu_context_st contexts[MOST_DEVICES];
static _Thread_local tb_cu_context current;

uint64_t double_number(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text == NULL || *text == '\0' ? otherwise : strtoull(text, NULL, 10);
}

int double_device_count(void) {
    uint64_t count = double_number("CUDA_DOUBLE_DEVICES", 1);
    return count > MOST_DEVICES ? MOST_DEVICES : (int)count;
}

tb_cu_result double_context(tb_cu_context *context) {
    if (!initialized) {
        return NOT_INITIALIZED;
    }
    if (current == NULL || current->users == 0) {
        return INVALID_CONTEXT;
    }
    *context = current;
    return current->failure;
}

void double_fail(tb_cu_context context, tb_cu_result result, const char *format, ...) {
    int none = TB_CU_SUCCESS;
    if (!atomic_compare_exchange_strong(&context->failure, &none, result)) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    fputs("double of libcuda: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

tb_cu_result cuInit(unsigned flags) {
    if (flags != 0) {
        return TB_CU_INVALID_VALUE;
    }
    if (double_device_count() == 0) {
        return TB_CU_NO_DEVICE;
    }
    initialized = true;
    return TB_CU_SUCCESS;
}

tb_cu_result cuDriverGetVersion(int *version) {
    *version = (int)double_number("CUDA_DOUBLE_VERSION", 13000);
    return TB_CU_SUCCESS;
}

static const struct {
    tb_cu_result result;
    const char *name, *text;
} results[] = {
    {TB_CU_SUCCESS, "CUDA_SUCCESS", "no error"},
    {TB_CU_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {TB_CU_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {TB_CU_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {TB_CU_PEER_ACCESS_UNSUPPORTED, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
     "peer access is not supported between these two devices"},
    {TB_CU_UNSUPPORTED_PTX, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported "
     "toolchain"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {TB_CU_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
};

static tb_cu_result describe(tb_cu_result result, const char **to, bool name) {
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        if (results[i].result == result) {
            *to = name ? results[i].name : results[i].text;
            return TB_CU_SUCCESS;
        }
    }
    *to = NULL;
    return TB_CU_INVALID_VALUE;
}

tb_cu_result cuGetErrorName(tb_cu_result result, const char **name) {
    return describe(result, name, true);
}

tb_cu_result cuGetErrorString(tb_cu_result result, const char **text) {
    return describe(result, text, false);
}

/* ---- devices
 * ---------------------------------------------------------------------------------------------------- */

static tb_cu_result check_device(tb_cu_device device) {
    return !initialized                                  ? NOT_INITIALIZED
         : device < 0 || device >= double_device_count() ? INVALID_DEVICE
                                                         : TB_CU_SUCCESS;
}

tb_cu_result cuDeviceGetCount(int *count) {
    *count = double_device_count();
    return initialized ? TB_CU_SUCCESS : NOT_INITIALIZED;
}

tb_cu_result cuDeviceGet(tb_cu_device *device, int ordinal) {
    *device = ordinal;
    return check_device(ordinal);
}

/* The same in every process of a machine. */
tb_cu_result cuDeviceGetUuid_v2(tb_cu_uuid *uuid, tb_cu_device device) {
    memcpy(uuid->bytes, "cuda-double-dev", 15);
    uuid->bytes[15] = (char)(device < 10 ? '0' + device : 'a' + device - 10);
    return check_device(device);
}

tb_cu_result cuDeviceGetName(char *name, int bytes, tb_cu_device device) {
    snprintf(name, (size_t)bytes, "double of a GPU, no. %d", device);
    return check_device(device);
}

tb_cu_result cuDeviceGetAttribute(int *value, tb_cu_device_attribute attribute, tb_cu_device device) {
    switch ((int)attribute) {
    case TB_CU_DEVICE_MULTIPROCESSORS:
        *value = 2; /* so that blocks take several tiles */
        break;
    case TB_CU_DEVICE_MAJOR:
        *value = 7;
        break;
    case TB_CU_DEVICE_MINOR:
        *value = 5;
        break;
    default:
        return TB_CU_INVALID_VALUE;
    }
    return check_device(device);
}

/* ---- contexts
 * --------------------------------------------------------------------------------------------------- */

tb_cu_result cuDevicePrimaryCtxRetain(tb_cu_context *context, tb_cu_device device) {
    tb_cu_result result = check_device(device);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_mutex_lock(&lock);
    if (contexts[device].users++ == 0) {
        contexts[device].device = device;
        contexts[device].failure = TB_CU_SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    *context = &contexts[device];
    return TB_CU_SUCCESS;
}

tb_cu_result cuDevicePrimaryCtxRelease_v2(tb_cu_device device) {
    tb_cu_result result = check_device(device);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_mutex_lock(&lock);
    result = contexts[device].users == 0 ? INVALID_CONTEXT : TB_CU_SUCCESS;
    contexts[device].users -= contexts[device].users > 0;
    pthread_mutex_unlock(&lock);
    return result;
}

tb_cu_result cuCtxGetCurrent(tb_cu_context *context) {
    *context = current;
    return initialized ? TB_CU_SUCCESS : NOT_INITIALIZED;
}

tb_cu_result cuCtxSetCurrent(tb_cu_context context) {
    if (!initialized) {
        return NOT_INITIALIZED;
    }
    if (context != NULL && context->users == 0) {
        return INVALID_CONTEXT;
    }
    current = context;
    return TB_CU_SUCCESS;
}
