/*
 * What those who move a transfer's bytes may touch of it without its session's lock: connections, jobs and carriers.
 *
 * Whoever moves has been counted by the round before (tb_transfer's `active`), and looks at `stop` before it touches
 * memory. Staging memory has a lock of its own, which is the last to be taken.
 */
#ifndef TB_STREAM_H
#define TB_STREAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "flow/staging.h"

typedef struct tb_stream {
    atomic_bool stop; /* memory of the round may not be touched any more */
    tb_staging staging;
    atomic_uint_fast64_t bytes_sent, bytes_received, bytes_copied;
} tb_stream;

#endif
