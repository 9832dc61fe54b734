/* Fingerprints of what two ranks have to agree on: FNV-1a, which finds mistakes and keeps nobody out. */
#ifndef TB_FINGERPRINT_H
#define TB_FINGERPRINT_H

#include <stdint.h>

#define TB_FINGERPRINT_START 0xcbf29ce484222325u

/* One step of it; a byte, unless all who compare agree on something wider. */
static inline uint64_t tb_fingerprint_step(uint64_t print, uint32_t value) {
    return (print ^ value) * 0x100000001b3u;
}

#endif
