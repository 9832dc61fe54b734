/* The carriers of this library: the one place that knows all of them. */
#ifndef TB_REGISTRY_H
#define TB_REGISTRY_H

#include "round/carrier.h"

/* The carrier of the tests, native/test/carriers/file, is in a library of its own; its bit is given to no other. */
enum { TB_CARRY_FILE_BIT = 16 };
#ifdef TB_TEST_CARRIERS
#define TB_CARRIERS_OF_TESTS(row) row(FILE, file, TB_CARRY_FILE_BIT)
#else
#define TB_CARRIERS_OF_TESTS(row)
#endif

/*
 * A row registers a carrier: its name, twice, and its bit in the masks of carriers that sessions and identities have.
 * The one that is preferred stands first. Bits go over the wire: one that was given is given to no other.
 */
#define TB_CARRIERS(row)        \
    row(CUDA_IPC, cuda_ipc, 4)  \
    row(SHM, shm, 2)            \
    row(NCCL, nccl, 8)          \
    row(UCX, ucx, 32)           \
    TB_CARRIERS_OF_TESTS(row)   \
    row(STREAM, stream, 1)

/* What follows from a row: the bit, TB_CARRY_..., its number, TB_CARRIER_..., and its table, tb_carrier_.... */
#define TB_CARRIER_BIT(NAME, name, bit) TB_CARRY_##NAME = (bit),
enum tb_carrier_bits { TB_CARRIERS(TB_CARRIER_BIT) };

#define TB_CARRIER_NUMBER(NAME, name, bit) TB_CARRIER_##NAME = __builtin_ctz(bit),
enum tb_carrier_number { TB_CARRIERS(TB_CARRIER_NUMBER) };

#define TB_CARRIER_DECLARED(NAME, name, bit) extern const tb_carrier tb_carrier_##name;
TB_CARRIERS(TB_CARRIER_DECLARED)

/*
 * Which word of tb_wire_identity's facts is whose; what a word says is that carrier's own. They go over the wire as
 * well.
 */
enum tb_carrier_fact {
    TB_FACT_NCCL = 0, /* the version of its library, or 0 */
    TB_FACT_UCX = 1,  /* bits of tb_ucx_speaks */
};

/* All of them, in the order of preference; NULL ends them. */
extern const tb_carrier *const tb_carriers[];

#endif
