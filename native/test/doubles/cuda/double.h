/*
 * A test double of libcuda.so.1: the part of the driver's interface that native/src/cuda/cuda_api.h lists, on host
 * memory, for machines without a GPU. It is no emulator. It keeps the rules: a context must be current,
 * addresses must lie in live allocations and be aligned, what is put into a stream happens later and in
 * order, handles mean something in other processes only. What a driver would refuse is refused with its code;
 * what a GPU would die of (an access outside of memory) makes the context fail from then on, as there, and
 * says so on stderr. Addresses of device memory are no addresses of the host: code that touches one ends with
 * SIGSEGV.
 *
 * Kernels are those of native/cuda, run one thread after the other; it knows no others.
 *
 * CUDA_DOUBLE_DEVICES (1), CUDA_DOUBLE_VERSION (13000), CUDA_DOUBLE_DELAY_US (0, before everything in a
 * stream) and CUDA_DOUBLE_MEMORY (bytes of a device, 4 GiB) say what it pretends to be.
 */
#ifndef CUDA_DOUBLE_H
#define CUDA_DOUBLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cuda/cuda_api.h"

#define EXPORT __attribute__((visibility("default")))

#define DECLARE(name, arguments) EXPORT tb_cu_result name arguments;
TB_CUDA_FIRST_FUNCTIONS(DECLARE)
TB_CUDA_FUNCTIONS(DECLARE)
#undef DECLARE

/* Only Python asks for it: its threads have contexts of their own. */
EXPORT tb_cu_result cuCtxGetCurrent(tb_cu_context *context);

/* What is no part of the driver's interface: memory as cuMemCreate and cuMemMap make it, of which there is no
 * handle. */
EXPORT tb_cu_result cuda_double_allocate_expandable(tb_cu_pointer *pointer, size_t bytes);
/* Bytes that are allocated on a device by this process. */
EXPORT uint64_t cuda_double_allocated(int device);
/* Mappings of other processes' memory that are open here. */
EXPORT uint32_t cuda_double_mapped(void);

enum {
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    MISALIGNED_ADDRESS = 716,
};

/* Added to where the bytes of device memory lie: beyond what a process of the host can address. */
#define DEVICE_BIT (1ull << 50)
enum { MOST_DEVICES = 16 };

struct tb_cu_context_st {
    int device;
    uint32_t users;
    _Atomic int failure; /* what every call gives from here on */
};

/* What the double of NCCL is made of as well is exported. */

/* driver.c */
/* The calling thread's context; 0, or what the call is to give instead. */
EXPORT tb_cu_result double_context(tb_cu_context *context);
int double_device_count(void);
EXPORT uint64_t double_number(const char *variable, uint64_t otherwise);
/* A failure that no call can undo: says so, and stays. */
EXPORT void double_fail(tb_cu_context context, tb_cu_result result, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* memory.c */
/* The place of these bytes of the device. NULL, and why, if the context's kernels may not touch them. */
EXPORT void *double_reach(tb_cu_pointer address, uint64_t bytes, char *why, size_t why_bytes);
/* Between the two no memory comes or goes, and the caller's double_reach takes no lock. */
void double_hold_memory(void);
void double_release_memory(void);

/* stream.c */
/* Waits until nothing of a context is under way. */
void double_drain(tb_cu_context context);
/* Puts a call into a stream; the argument is copied. */
EXPORT tb_cu_result double_enqueue(tb_cu_stream stream, void (*run)(tb_cu_context, void *), const void *argument,
                            size_t bytes);

/* A file of shared memory under another process's descriptor: what its handles stand for. */
typedef struct double_handle {
    uint64_t magic, serial, bytes;
    int32_t pid, fd, device;
    uint32_t zero[5];
    uint64_t zeros[1];
} double_handle;
_Static_assert(sizeof(double_handle) <= sizeof(tb_cu_ipc_memory), "handle");

/* The first page of such a file. */
typedef struct double_header {
    uint64_t magic, serial;
    atomic_bool freed;
    _Atomic uint64_t recorded, completed; /* of an event */
} double_header;
enum { HEADER_BYTES = 4096 };
#define ALLOCATION_MAGIC 0x6d656d2d61647563ull
#define EVENT_MAGIC 0x7476652d61647563ull

/* Makes such a file, or maps another process's, header first. NULL if there is none. */
double_header *double_file_create(uint64_t magic, uint64_t bytes, int *fd);
double_header *double_file_open(const double_handle *handle, uint64_t magic);

#endif
