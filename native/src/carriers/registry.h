/* The carriers of this library: the one place that knows all of them. */
#ifndef TB_REGISTRY_H
#define TB_REGISTRY_H

#include "round/carrier.h"

/* The carrier of the tests, native/test/carriers/file, is in a library of its own; its bit is given to no other. */
enum { TB_CARRY_FILE = 16 };
#ifdef TB_TEST_CARRIERS
#define TB_CARRIERS_OF_TESTS(row) row(FILE, file)
#else
#define TB_CARRIERS_OF_TESTS(row)
#endif

/* Each by its bit in tb_carrier_bits, TB_CARRY_..., and its table, tb_carrier_...; the one that is preferred first. */
#define TB_CARRIERS(row)      \
    row(CUDA_IPC, cuda_ipc)   \
    row(SHM, shm)             \
    row(NCCL, nccl)           \
    row(UCX, ucx)             \
    TB_CARRIERS_OF_TESTS(row) \
    row(STREAM, stream)

/* The number of each, which is that of its bit: TB_CARRIER_.... */
#define TB_CARRIER_NUMBER(BIT, name) TB_CARRIER_##BIT = __builtin_ctz(TB_CARRY_##BIT),
enum tb_carrier_number { TB_CARRIERS(TB_CARRIER_NUMBER) };

#define TB_CARRIER_DECLARED(BIT, name) extern const tb_carrier tb_carrier_##name;
TB_CARRIERS(TB_CARRIER_DECLARED)

/* All of them, in the order of preference; NULL ends them. */
extern const tb_carrier *const tb_carriers[];

#endif
