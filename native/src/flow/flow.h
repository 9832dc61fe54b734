/*
 * The payload of one bucket as a stream of bytes, and where it comes from or goes to in this rank's memory. A
 * chunk whose bytes are the same on the wire and in memory, in runs that are worth an iovec, is moved there
 * by the system call (runs); others pass through a small buffer (elements), or are folded out of it (fold).
 */
#ifndef TB_FLOW_H
#define TB_FLOW_H

#include "kernels/cursor.h"
#include "program/program.h"

/* Says where a program's ends lie. */
typedef struct tb_places {
    const tb_program *program;
    const tb_binding *bindings;
    uint8_t *pool;
    const uint64_t *piece_at; /* offset in the pool of each piece that has its place */
} tb_places;

enum tb_flow_mode { TB_FLOW_RUNS, TB_FLOW_ELEMENTS, TB_FLOW_FOLD };

typedef struct tb_flow {
    const tb_places *places; /* NULL: all bytes lie in one row, at the cursor */
    uint32_t bucket;
    uint32_t chunk;
    uint32_t padding; /* bytes of padding before the chunk's next byte */
    uint8_t mode;
    uint8_t item;    /* bytes of an element on the wire */
    uint8_t carried; /* bytes of an element of which not all have come */
    bool receiving;
    uint64_t left;       /* bytes of the payload, padding included */
    uint64_t chunk_left; /* bytes of the chunk */
    tb_cursor cursor;
    uint8_t *accumulator; /* for a fold: the memory of the piece; `folded` elements are in it */
    uint64_t folded;
    uint8_t carry[8];
} tb_flow;

/*
 * What a system call is to send. bounce holds what was copied or packed; iov what lies there and in tensors.
 */
typedef struct tb_gather {
    struct iovec *iov;
    int count;
    int max;
    uint8_t *bounce;
    uint64_t used;
    uint64_t size;
    uint64_t bytes;
    uint64_t limit;    /* at this many bytes no further run is added */
    uint64_t may_pack; /* payload bytes that may still be packed */
} tb_gather;

/* The sending or the receiving end of a bucket. */
void tb_flow_start(tb_flow *flow, const tb_places *places, uint32_t bucket, bool receiving);
/* The bytes of a bucket as they are, in one row. */
void tb_flow_start_row(tb_flow *flow, uint8_t *at, uint64_t bytes);

/* Adds what fits of the payload's next bytes, and passes them. Gives their number. */
uint64_t tb_flow_gather(tb_flow *flow, tb_gather *gather);
/* Bytes that are copied now; there must be room for them. */
void tb_gather_copy(tb_gather *gather, const void *bytes, uint64_t count);
bool tb_gather_has_room(const tb_gather *gather, uint64_t bytes);

/* The places of the next bytes as far as they are runs, and passes them. sink takes padding: 16 bytes. */
int tb_flow_scatter(tb_flow *flow, struct iovec *iov, int max, uint8_t *sink, uint64_t max_bytes,
                    uint64_t *bytes);
/* The next bytes, which came in a buffer. */
void tb_flow_put(tb_flow *flow, const uint8_t *bytes, uint64_t count);
/* Passes bytes that a system call has moved. */
void tb_flow_skip(tb_flow *flow, uint64_t count);
/* The same, and goes on with the checksum of what goes out. */
uint32_t tb_flow_crc(tb_flow *flow, uint64_t count, uint32_t crc);

/* Moves elements of the chunk from a cursor at the source; true if the chunk is done. */
bool tb_flow_move(tb_flow *flow, tb_cursor *source, uint64_t elements);
/* The same for elements of a copy that somebody else has put there; the flow is asked for no place in that chunk. */
bool tb_flow_moved(tb_flow *flow, uint64_t elements);
/* Moves up to about `limit` bytes of a bucket from this rank to itself; false once there are no more. */
bool tb_flow_local(tb_flow *flow, tb_cursor *source, uint64_t limit);
void tb_flow_start_local(tb_flow *flow, tb_cursor *source, const tb_places *places, uint32_t bucket);

#endif
