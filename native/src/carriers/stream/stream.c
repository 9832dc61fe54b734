/*
 * The stream: buckets travel as frames over the connections of the two ranks, which wire/ moves. There is nothing more
 * to it than its facts. No lock is needed.
 */
#include "carriers/registry.h"
#include "round/carrier.h"

const tb_carrier tb_carrier_stream = {
    .number = TB_CARRIER_STREAM,
    .name = "stream",
    .way = TB_WAY_STREAM,
    .memory = TB_MEMORY_HOST | TB_MEMORY_SHARED,
    .checksums = true,
};
