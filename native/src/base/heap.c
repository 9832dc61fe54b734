/* A binary heap. It needs the lock of whatever it is part of. */
#include "base/heap.h"

void tb_heap_push(tb_heap *heap, uint32_t item) {
    uint32_t at = heap->count++;
    while (at > 0 && heap->items[(at - 1) / 2] > item) {
        heap->items[at] = heap->items[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap->items[at] = item;
}

uint32_t tb_heap_pop(tb_heap *heap) {
    uint32_t smallest = heap->items[0];
    uint32_t item = heap->items[--heap->count];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= heap->count) {
            break;
        }
        if (child + 1 < heap->count && heap->items[child + 1] < heap->items[child]) {
            child++;
        }
        if (heap->items[child] >= item) {
            break;
        }
        heap->items[at] = heap->items[child];
        at = child;
    }
    heap->items[at] = item;
    return smallest;
}
