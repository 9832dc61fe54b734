/* Walks over strided memory, element by element or run by run. No lock is needed. */
#include "kernels/cursor.h"

#include <string.h>

#include "kernels/copy.h"
#include "kernels/cursor_span.h"

void tb_cursor_start(tb_cursor *cursor, void *first_element, const int64_t *descriptor) {
    int64_t dims = descriptor[1];
    cursor->base = (uint8_t *)first_element + descriptor[0];
    cursor->run_start = cursor->base;
    cursor->run_bytes = descriptor[2 + 2 * dims];
    cursor->in_run = 0;
    cursor->left = cursor->run_bytes;
    cursor->dims = (int32_t)dims;
    cursor->loops = descriptor + 2;
    for (int64_t dim = 0; dim < dims; dim++) {
        cursor->left *= cursor->loops[2 * dim];
        cursor->index[dim] = 0;
    }
    cursor->cold = cursor->left >= TB_STREAM_BYTES;
}

void tb_cursor_start_row(tb_cursor *cursor, uint8_t *at, uint64_t bytes) {
    cursor->base = at;
    cursor->run_start = at;
    cursor->run_bytes = (int64_t)bytes;
    cursor->in_run = 0;
    cursor->left = (int64_t)bytes;
    cursor->dims = 0;
    cursor->cold = 0;
    cursor->loops = NULL;
}

/* Goes on by whole runs. Past the last run every index is 0 again, and nothing is left. */
static void step_runs(const int64_t *loops, int32_t dims, int64_t *index, uint8_t **run_start, int64_t runs) {
    for (int32_t dim = dims - 1; dim >= 0 && runs > 0; dim--) {
        int64_t count = loops[2 * dim];
        int64_t stride = loops[2 * dim + 1];
        int64_t was = index[dim];
        int64_t now = was + runs;
        runs = 0;
        if (now >= count) {
            /* One carry is by far the most frequent, and a division is slow. */
            runs = now < 2 * count ? 1 : now / count;
            now -= runs * count;
        }
        index[dim] = now;
        *run_start += (now - was) * stride;
    }
}

void tb_cursor_advance(tb_cursor *cursor, uint64_t bytes) {
    int64_t in_run = cursor->in_run + (int64_t)bytes;
    cursor->left -= (int64_t)bytes;
    if (in_run >= cursor->run_bytes) {
        int64_t runs = in_run < 2 * cursor->run_bytes ? 1 : in_run / cursor->run_bytes;
        in_run -= runs * cursor->run_bytes;
        step_runs(cursor->loops, cursor->dims, cursor->index, &cursor->run_start, runs);
    }
    cursor->in_run = in_run;
}

int tb_cursor_iov(const tb_cursor *cursor, struct iovec *iov, int max, uint64_t max_bytes, uint64_t *bytes) {
    int64_t index[TB_MAX_DIMS];
    memcpy(index, cursor->index, (size_t)cursor->dims * sizeof index[0]);
    uint8_t *run_start = cursor->run_start;
    int64_t in_run = cursor->in_run;
    uint64_t want = (uint64_t)cursor->left < max_bytes ? (uint64_t)cursor->left : max_bytes;
    uint64_t given = 0;
    int entries = 0;
    while (entries < max && given < want) {
        uint64_t length = (uint64_t)(cursor->run_bytes - in_run);
        if (length > want - given) {
            length = want - given;
        }
        iov[entries].iov_base = run_start + in_run;
        iov[entries].iov_len = length;
        entries++;
        given += length;
        in_run = 0;
        step_runs(cursor->loops, cursor->dims, index, &run_start, 1);
    }
    *bytes = given;
    return entries;
}

tb_span tb_cursor_take(tb_cursor *cursor, int64_t bytes) {
    int64_t run = cursor->run_bytes;
    if (cursor->in_run != 0 || bytes < run || cursor->dims == 0) {
        int64_t rest = run - cursor->in_run;
        tb_span part = {cursor->run_start + cursor->in_run, 0, 1, rest < bytes ? rest : bytes};
        tb_cursor_advance(cursor, (uint64_t)part.run);
        return part;
    }
    int32_t inner = cursor->dims - 1;
    int64_t rows = cursor->loops[2 * inner] - cursor->index[inner];
    if (rows * run > bytes) {
        rows = bytes / run;
    }
    tb_span whole = {cursor->run_start, cursor->loops[2 * inner + 1], rows, run};
    cursor->left -= rows * run;
    step_runs(cursor->loops, cursor->dims, cursor->index, &cursor->run_start, rows);
    return whole;
}
