/*
 * The table of cuda_api.h against NVIDIA's own header, if there is one: names, types of all arguments, sizes and
 * numbers. With -idirafter it is found below CUDA_HOME; without a toolkit this says so, and checks nothing.
 */
#if defined(__has_include)
#if __has_include(<cudaTypedefs.h>)
#define HAVE_CUDA 1
#endif
#endif

#ifdef HAVE_CUDA
#define TB_CUDA_REAL_TYPES
#endif
#include "cuda/cuda_api.h"

#include "check.h"

#ifdef HAVE_CUDA
/* A pointer to each function of the header must be what the table holds for it. */
#define SAME_TYPE(name, arguments)                                                                           \
    _Static_assert(__builtin_types_compatible_p(__typeof__(((tb_cuda_api *)0)->name), __typeof__(&name)), #name);
TB_CUDA_FIRST_FUNCTIONS(SAME_TYPE)
TB_CUDA_FUNCTIONS(SAME_TYPE)

#define SAME_NUMBER(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME_NUMBER(TB_CU_SUCCESS, CUDA_SUCCESS);
SAME_NUMBER(TB_CU_INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME_NUMBER(TB_CU_OUT_OF_MEMORY, CUDA_ERROR_OUT_OF_MEMORY);
SAME_NUMBER(TB_CU_NO_DEVICE, CUDA_ERROR_NO_DEVICE);
SAME_NUMBER(TB_CU_UNSUPPORTED_PTX, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
SAME_NUMBER(TB_CU_NOT_READY, CUDA_ERROR_NOT_READY);
SAME_NUMBER(TB_CU_STREAM_NON_BLOCKING, CU_STREAM_NON_BLOCKING);
SAME_NUMBER(TB_CU_EVENT_DISABLE_TIMING, CU_EVENT_DISABLE_TIMING);
SAME_NUMBER(TB_CU_EVENT_INTERPROCESS, CU_EVENT_INTERPROCESS);
SAME_NUMBER(TB_CU_IPC_LAZY_PEER_ACCESS, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
SAME_NUMBER(TB_CU_DEVICE_MULTIPROCESSORS, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_NUMBER(TB_CU_DEVICE_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_NUMBER(TB_CU_DEVICE_MINOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_NUMBER(TB_CU_POINTER_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
SAME_NUMBER(TB_CU_POINTER_ORDINAL, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
SAME_NUMBER(TB_CU_POINTER_LEGACY_IPC, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE);
SAME_NUMBER(TB_CU_MEMORY_DEVICE, CU_MEMORYTYPE_DEVICE);
SAME_NUMBER(TB_CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_BUFFER);
SAME_NUMBER(TB_CU_JIT_ERROR_LOG_BYTES, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
_Static_assert(CU_LAUNCH_PARAM_END_AS_INT == 0 && CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT == 1
                   && CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT == 2,
               "the marks of a launch");
#endif

_Static_assert(sizeof(tb_cu_uuid) == 16 && sizeof(tb_cu_ipc_memory) == 64 && sizeof(tb_cu_ipc_event) == 64,
               "what is passed by value");
_Static_assert(sizeof(tb_cu_pointer) == 8 && sizeof(tb_cu_device) == 4 && sizeof(tb_cu_result) == 4,
               "handles and numbers");

int main(void) {
#ifdef HAVE_CUDA
    printf("held against the header of CUDA %d.%d\n", CUDA_VERSION / 1000, CUDA_VERSION % 1000 / 10);
#else
    puts("no cuda.h here: the table was held against nothing but its own sizes");
#endif
    return 0;
}
