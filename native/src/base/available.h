#ifndef TB_AVAILABLE_H
#define TB_AVAILABLE_H

#include <stdint.h>

/*
 * Bytes that this process can take without driving the machine or one of its control groups out of memory, as
 * far as the kernel tells; UINT64_MAX if it does not.
 */
uint64_t tb_memory_available(void);

#endif
