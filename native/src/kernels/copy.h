/* Copies of equally long rows. Any alignment; the two sides do not overlap. */
#ifndef TB_COPY_H
#define TB_COPY_H

#include <stdint.h>

/* Copies `rows` rows of `run` bytes, whose starts lie the given bytes apart. */
void tb_copy_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t rows,
                  int64_t run);

/*
 * The same past the cache, for memory that nobody reads soon. Whole lines are written without being read
 * first: long rows become twice as fast, short ones several times. Before another thread is told of the rows,
 * tb_stream_end must be called.
 */
void tb_stream_rows(uint8_t *to, int64_t to_stride, const uint8_t *from, int64_t from_stride, int64_t rows,
                    int64_t run);
void tb_stream_end(void);

/* From this many bytes on it is taken for certain that a tensor does not lie in the cache. */
#define TB_STREAM_BYTES (256 << 10)

#endif
