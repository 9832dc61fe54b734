/*
 * The real libucp, but that it says it was built for CUDA: what is done with memory of a device is done with the host's memory
 * behind it that the double of libcuda keeps. It shows that our own code registers, names and waits for CUDA memory as UCX's
 * interface wants it; it shows nothing of how a UCX that was built for CUDA does it. It keeps the rules: an address of a device
 * must be said to be one, and none other; it must lie in a live allocation; and a context must be current in the calling thread.
 * What breaks a rule is refused with UCX's code for invalid parameters, and says so on stderr.
 *
 * UCX_DOUBLE_VERSION (11600) is what it says its version is: 10000 * major + 100 * minor + patch.
 *
 * All other functions are found in the library behind it, which it needs. No lock is needed.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "../cuda/double.h"
#include "carriers/ucx/ucx_api.h"

enum { INVALID_PARAMETER = -5 };

#define REAL(name) ((__typeof__(((tb_ucx_api *)0)->name))dlsym(RTLD_NEXT, #name))

EXPORT void ucp_get_version(unsigned *major, unsigned *minor, unsigned *patch);
EXPORT tb_ucs_status ucp_context_query(tb_ucp_context context, tb_ucp_context_attr *attr);
EXPORT tb_ucs_status ucp_mem_map(tb_ucp_context context, const tb_ucp_map_params *params, tb_ucp_memory *memory);
EXPORT tb_ucs_pointer ucp_get_nbx(tb_ucp_ep ep, void *buffer, size_t count, uint64_t remote, tb_ucp_key key,
                                  const tb_ucp_request_param *param);

/* The host's memory behind an address of that type; NULL if a rule is broken. */
static void *behind(void *address, uint64_t bytes, int type, const char *call) {
    uint64_t at = (uint64_t)(uintptr_t)address;
    bool on_device = (at & DEVICE_BIT) != 0;
    char why[160] = "the type of memory is not that of the address";
    tb_cu_context context;
    if (on_device != (type == TB_UCS_MEMORY_CUDA)) {
        address = NULL;
    } else if (on_device && double_context(&context) != TB_CU_SUCCESS) {
        snprintf(why, sizeof why, "no context is current in this thread");
        address = NULL;
    } else if (on_device) {
        address = double_reach(at, bytes, why, sizeof why);
    }
    if (address == NULL) {
        fprintf(stderr, "double of a UCX for CUDA: %s: %s\n", call, why);
    }
    return address;
}

void ucp_get_version(unsigned *major, unsigned *minor, unsigned *patch) {
    unsigned version = (unsigned)double_number("UCX_DOUBLE_VERSION", 11600);
    *major = version / 10000;
    *minor = version / 100 % 100;
    *patch = version % 100;
}

tb_ucs_status ucp_context_query(tb_ucp_context context, tb_ucp_context_attr *attr) {
    tb_ucs_status status = REAL(ucp_context_query)(context, attr);
    if (status == TB_UCS_OK && (attr->field_mask & TB_UCP_CONTEXT_MEMORY_TYPES) != 0) {
        attr->memory_types |= (uint64_t)1 << TB_UCS_MEMORY_CUDA;
    }
    return status;
}

tb_ucs_status ucp_mem_map(tb_ucp_context context, const tb_ucp_map_params *params, tb_ucp_memory *memory) {
    tb_ucp_map_params host = *params;
    host.address = behind(params->address, params->length, params->memory_type, "ucp_mem_map");
    host.memory_type = TB_UCS_MEMORY_HOST;
    return host.address == NULL ? INVALID_PARAMETER : REAL(ucp_mem_map)(context, &host, memory);
}

/* A peer's address of a device is one of its host, too. */
tb_ucs_pointer ucp_get_nbx(tb_ucp_ep ep, void *buffer, size_t count, uint64_t remote, tb_ucp_key key,
                           const tb_ucp_request_param *param) {
    tb_ucp_request_param host = *param;
    void *at = behind(buffer, count, param->memory_type, "ucp_get_nbx");
    host.memory_type = TB_UCS_MEMORY_HOST;
    return at == NULL ? (tb_ucs_pointer)(intptr_t)INVALID_PARAMETER
                      : REAL(ucp_get_nbx)(ep, at, count, remote & ~DEVICE_BIT, key, &host);
}
