/* The carriers of this library: the one place that knows all of them. */
#ifndef TB_REGISTRY_H
#define TB_REGISTRY_H

#include "round/carrier.h"

/* The bits of tb_carrier_bits by number. */
enum tb_carrier_number {
    TB_CARRIER_STREAM = 0,
    TB_CARRIER_SHM = 1,
    TB_CARRIER_CUDA_IPC = 2,
    TB_CARRIER_NCCL = 3,
    TB_CARRIER_FILE = 4, /* in the library of the tests alone */
    TB_CARRIER_UCX = 5,
};

extern const tb_carrier tb_carrier_stream;
extern const tb_carrier tb_carrier_shm;
extern const tb_carrier tb_carrier_cuda_ipc;
extern const tb_carrier tb_carrier_nccl;
extern const tb_carrier tb_carrier_ucx;
extern const tb_carrier tb_carrier_file;

/* All of them, the one that is preferred first; NULL ends them. */
extern const tb_carrier *const tb_carriers[];

#endif
