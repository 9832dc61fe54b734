/* Allocations, copies that block, and handles of memory. */
#include "double.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct allocation {
    struct allocation *next;
    uint8_t *data;
    uint64_t bytes;
    double_header *header;
    double_handle handle; /* of an imported one: what it was opened with */
    int fd;
    int device;
    bool expandable, imported;
    uint32_t uses;
} allocation;

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static allocation *all;
static _Atomic uint64_t allocated[MOST_DEVICES];
static _Atomic uint64_t serials;

/* ---- files of shared memory
 * ------------------------------------------------------------------------------------- */

double_header *double_file_create(uint64_t magic, uint64_t bytes, int *fd) {
    *fd = memfd_create("double of CUDA memory", MFD_CLOEXEC);
    if (*fd < 0 || ftruncate(*fd, (off_t)(HEADER_BYTES + bytes)) != 0) {
        return NULL;
    }
    double_header *header = mmap(NULL, HEADER_BYTES + bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (header == MAP_FAILED) {
        close(*fd);
        return NULL;
    }
    header->magic = magic;
    header->serial = (uint64_t)getpid() << 32 | ++serials;
    return header;
}

double_header *double_file_open(const double_handle *handle, uint64_t magic) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle->pid, handle->fd);
    struct stat file;
    int fd = handle->magic == magic ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) {
        return NULL;
    }
    double_header *header = MAP_FAILED;
    if (fstat(fd, &file) == 0 && (uint64_t)file.st_size == HEADER_BYTES + handle->bytes) {
        header = mmap(NULL, HEADER_BYTES + handle->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    if (header == MAP_FAILED) {
        return NULL;
    }
    if (header->magic != magic || header->serial != handle->serial) {
        munmap(header, HEADER_BYTES + handle->bytes);
        return NULL;
    }
    return header;
}

/* ---- allocations
 * -------------------------------------------------------------------------------------------------- */

static allocation *find(tb_cu_pointer address) {
    uint8_t *at = (uint8_t *)(uintptr_t)(address - DEVICE_BIT);
    for (allocation *one = all; one != NULL; one = one->next) {
        if (at >= one->data && at < one->data + one->bytes) {
            return one;
        }
    }
    return NULL;
}

/* The place where this thread looked last, as long as it holds the memory. */
enum { RECENT = 4 };
static _Thread_local bool holds;
static _Thread_local allocation *recent[RECENT];
static _Thread_local unsigned next_recent;

void double_hold_memory(void) {
    pthread_rwlock_rdlock(&lock);
    holds = true;
    memset(recent, 0, sizeof recent);
}

void double_release_memory(void) {
    holds = false;
    pthread_rwlock_unlock(&lock);
}

static allocation *find_held(tb_cu_pointer address) {
    uint8_t *at = (uint8_t *)(uintptr_t)(address - DEVICE_BIT);
    for (int i = 0; i < RECENT; i++) {
        if (recent[i] != NULL && at >= recent[i]->data && at < recent[i]->data + recent[i]->bytes) {
            return recent[i];
        }
    }
    allocation *one = find(address);
    recent[next_recent++ % RECENT] = one;
    return one;
}

static void *reach(tb_cu_pointer address, uint64_t bytes, char *why, size_t why_bytes) {
    allocation *one = find_held(address);
    uint8_t *at = (uint8_t *)(uintptr_t)(address - DEVICE_BIT);
    if (one == NULL) {
        snprintf(why, why_bytes, "0x%llx is in no allocation", address);
    } else if (bytes > (uint64_t)(one->data + one->bytes - at)) {
        snprintf(why, why_bytes, "0x%llx + %llu leaves its allocation of %llu bytes", address,
                 (unsigned long long)bytes, (unsigned long long)one->bytes);
    } else if (one->header->freed) {
        snprintf(why, why_bytes, "0x%llx was freed by the process that had allocated it", address);
    } else {
        return at;
    }
    return NULL;
}

void *double_reach(tb_cu_pointer address, uint64_t bytes, char *why, size_t why_bytes) {
    if (holds) {
        return reach(address, bytes, why, why_bytes);
    }
    double_hold_memory();
    void *at = reach(address, bytes, why, why_bytes);
    double_release_memory();
    return at;
}

static tb_cu_result allocate(tb_cu_pointer *pointer, size_t bytes, bool expandable) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS || bytes == 0) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    if (allocated[context->device] + bytes > double_number("CUDA_DOUBLE_MEMORY", 4ull << 30)) {
        return TB_CU_OUT_OF_MEMORY;
    }
    allocation *one = calloc(1, sizeof *one);
    if (one == NULL || (one->header = double_file_create(ALLOCATION_MAGIC, bytes, &one->fd)) == NULL) {
        free(one);
        return TB_CU_OUT_OF_MEMORY;
    }
    one->data = (uint8_t *)one->header + HEADER_BYTES;
    one->bytes = bytes;
    one->device = context->device;
    one->expandable = expandable;
    memset(one->data, 0xa5, bytes < 4096 ? bytes : 4096); /* memory of a device is not zero */
    allocated[context->device] += bytes;
    pthread_rwlock_wrlock(&lock);
    one->next = all;
    all = one;
    pthread_rwlock_unlock(&lock);
    *pointer = (uintptr_t)one->data + DEVICE_BIT;
    return TB_CU_SUCCESS;
}

tb_cu_result cuMemAlloc_v2(tb_cu_pointer *pointer, size_t bytes) {
    return allocate(pointer, bytes, false);
}

tb_cu_result cuda_double_allocate_expandable(tb_cu_pointer *pointer, size_t bytes) {
    return allocate(pointer, bytes, true);
}

/* Takes it out of the list, with the lock held for writing. */
static void take_out(allocation *one) {
    allocation **at = &all;
    while (*at != one) {
        at = &(*at)->next;
    }
    *at = one->next;
}

static void destroy(allocation *one) {
    munmap(one->header, HEADER_BYTES + one->bytes);
    if (one->fd >= 0) {
        close(one->fd);
    }
    free(one);
}

tb_cu_result cuMemFree_v2(tb_cu_pointer pointer) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    double_drain(context); /* as cuMemFree waits for the device */
    pthread_rwlock_wrlock(&lock);
    allocation *one = find(pointer);
    bool ours = one != NULL && !one->imported && pointer == (uintptr_t)one->data + DEVICE_BIT;
    if (ours) {
        take_out(one);
    }
    pthread_rwlock_unlock(&lock);
    if (!ours) {
        return TB_CU_INVALID_VALUE;
    }
    one->header->freed = true;
    allocated[one->device] -= one->bytes;
    destroy(one);
    return TB_CU_SUCCESS;
}

uint64_t cuda_double_allocated(int device) {
    return allocated[device];
}

tb_cu_result cuMemGetInfo_v2(size_t *left, size_t *total) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result == TB_CU_SUCCESS) {
        *total = double_number("CUDA_DOUBLE_MEMORY", 4ull << 30);
        *left = *total - allocated[context->device];
    }
    return result;
}

tb_cu_result cuMemGetAddressRange_v2(tb_cu_pointer *base, size_t *bytes, tb_cu_pointer pointer) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    pthread_rwlock_rdlock(&lock);
    allocation *one = find(pointer);
    if (result == TB_CU_SUCCESS && one != NULL) {
        *base = (uintptr_t)one->data + DEVICE_BIT;
        *bytes = one->bytes;
    }
    pthread_rwlock_unlock(&lock);
    return result != TB_CU_SUCCESS ? result : one == NULL ? NOT_FOUND : TB_CU_SUCCESS;
}

tb_cu_result cuPointerGetAttribute(void *value, tb_cu_pointer_attribute attribute, tb_cu_pointer pointer) {
    tb_cu_result result = TB_CU_SUCCESS;
    pthread_rwlock_rdlock(&lock);
    allocation *one = find(pointer);
    if (one == NULL) {
        result = TB_CU_INVALID_VALUE;
    } else if ((int)attribute == TB_CU_POINTER_MEMORY_TYPE) {
        *(unsigned *)value = TB_CU_MEMORY_DEVICE;
    } else if ((int)attribute == TB_CU_POINTER_ORDINAL) {
        *(int *)value = one->device;
    } else if ((int)attribute == TB_CU_POINTER_LEGACY_IPC) {
        *(int *)value = !one->expandable && !one->imported;
    } else {
        result = TB_CU_INVALID_VALUE;
    }
    pthread_rwlock_unlock(&lock);
    return result;
}

/* ---- copies that block
 * --------------------------------------------------------------------------------------------- */

static tb_cu_result copy(tb_cu_pointer device, void *host, size_t bytes, bool to_device) {
    tb_cu_context context;
    char why[160];
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS || bytes == 0) {
        return result;
    }
    void *at = double_reach(device, bytes, why, sizeof why);
    if (at == NULL) {
        return TB_CU_INVALID_VALUE;
    }
    memcpy(to_device ? at : host, to_device ? host : at, bytes);
    return TB_CU_SUCCESS;
}

tb_cu_result cuMemcpyHtoD_v2(tb_cu_pointer to, const void *from, size_t bytes) {
    return copy(to, (void *)(uintptr_t)from, bytes, true);
}

tb_cu_result cuMemcpyDtoH_v2(void *to, tb_cu_pointer from, size_t bytes) {
    return copy(from, to, bytes, false);
}

/* ---- handles
 * -----------------------------------------------------------------------------------------------------------
 */

tb_cu_result cuIpcGetMemHandle(tb_cu_ipc_memory *handle, tb_cu_pointer pointer) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    pthread_rwlock_rdlock(&lock);
    allocation *one = find(pointer);
    bool base = one != NULL && pointer == (uintptr_t)one->data + DEVICE_BIT;
    if (base && !one->expandable && !one->imported) {
        double_handle filled = {ALLOCATION_MAGIC, one->header->serial, one->bytes, getpid(),
                                one->fd,          one->device,         {0},        {0}};
        memset(handle, 0, sizeof *handle);
        memcpy(handle, &filled, sizeof filled);
    } else {
        result = TB_CU_INVALID_VALUE;
    }
    pthread_rwlock_unlock(&lock);
    return result;
}

static tb_cu_result import(tb_cu_pointer *pointer, const double_handle *handle) {
    for (allocation *one = all; one != NULL; one = one->next) {
        if (one->imported && memcmp(&one->handle, handle, sizeof *handle) == 0) {
            one->uses++;
            *pointer = (uintptr_t)one->data + DEVICE_BIT;
            return TB_CU_SUCCESS;
        }
    }
    double_header *header = double_file_open(handle, ALLOCATION_MAGIC);
    allocation *one = header == NULL ? NULL : calloc(1, sizeof *one);
    if (one == NULL) {
        return INVALID_HANDLE;
    }
    *one = (allocation){.next = all,
                        .data = (uint8_t *)header + HEADER_BYTES,
                        .bytes = handle->bytes,
                        .header = header,
                        .handle = *handle,
                        .fd = -1,
                        .device = handle->device,
                        .imported = true,
                        .uses = 1};
    all = one;
    *pointer = (uintptr_t)one->data + DEVICE_BIT;
    return TB_CU_SUCCESS;
}

tb_cu_result cuIpcOpenMemHandle_v2(tb_cu_pointer *pointer, tb_cu_ipc_memory given, unsigned flags) {
    tb_cu_context context;
    double_handle handle;
    tb_cu_result result = double_context(&context);
    memcpy(&handle, &given, sizeof handle);
    if (result != TB_CU_SUCCESS || flags != TB_CU_IPC_LAZY_PEER_ACCESS || handle.magic != ALLOCATION_MAGIC) {
        return result != TB_CU_SUCCESS ? result : TB_CU_INVALID_VALUE;
    }
    if (handle.pid == getpid()) {
        return INVALID_CONTEXT; /* a process cannot open its own */
    }
    if (handle.device != context->device) {
        return TB_CU_PEER_ACCESS_UNSUPPORTED;
    }
    pthread_rwlock_wrlock(&lock);
    result = import(pointer, &handle);
    pthread_rwlock_unlock(&lock);
    return result;
}

tb_cu_result cuIpcCloseMemHandle(tb_cu_pointer pointer) {
    tb_cu_context context;
    tb_cu_result result = double_context(&context);
    if (result != TB_CU_SUCCESS) {
        return result;
    }
    double_drain(context);
    pthread_rwlock_wrlock(&lock);
    allocation *one = find(pointer);
    bool open = one != NULL && one->imported && pointer == (uintptr_t)one->data + DEVICE_BIT;
    bool last = open && --one->uses == 0;
    if (last) {
        take_out(one);
    }
    pthread_rwlock_unlock(&lock);
    if (last) {
        destroy(one);
    }
    return open ? TB_CU_SUCCESS : TB_CU_INVALID_VALUE;
}

uint32_t cuda_double_mapped(void) {
    uint32_t count = 0;
    pthread_rwlock_rdlock(&lock);
    for (allocation *one = all; one != NULL; one = one->next) {
        count += one->imported;
    }
    pthread_rwlock_unlock(&lock);
    return count;
}
