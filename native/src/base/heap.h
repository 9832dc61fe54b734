/* Numbers, the smallest first. The owner gives the memory, and room for as many as it pushes. */
#ifndef TB_HEAP_H
#define TB_HEAP_H

#include <stdint.h>

typedef struct tb_heap {
    uint32_t *items;
    uint32_t count;
} tb_heap;

void tb_heap_push(tb_heap *heap, uint32_t item);
/* The heap is not empty. */
uint32_t tb_heap_pop(tb_heap *heap);

#endif
