/* Checks of strided descriptors that others have written. */
#ifndef TB_DESCRIPTOR_H
#define TB_DESCRIPTOR_H

#include <stdint.h>

#include "tensorbus.h"

/*
 * Checks one descriptor of at most `words` words: its form, that counts and run are positive and run a
 * multiple of item, that nothing overflows, and that it stays within [0, bytes). Gives its bytes in all and
 * its length in words.
 */
int32_t tb_descriptor_check(const int64_t *descriptor, uint64_t words, uint64_t item, uint64_t bytes,
                            uint64_t *total_bytes, uint32_t *used_words, tb_error *err);

#endif
