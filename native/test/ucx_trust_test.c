/* What a peer says of how UCX reads its memory is measured before it is copied; no library is needed for that. */
#include "carriers/ucx/ucx.h"
#include "check.h"

enum { REGIONS = 2 };

static int32_t open_with(uint64_t bytes, uint32_t blob_bytes, uint32_t session_bytes) {
    static uint8_t blobs[2 * TB_BLOB_BYTES], address[64];
    static tb_session session;
    tb_wire_region regions[REGIONS] = {{.bytes = 64, .blob_bytes = 40},
                                       {.bytes = bytes, .blob_at = 40, .blob_bytes = blob_bytes}};
    tb_import import = {.session = &session,
                        .rank = 1,
                        .regions = regions,
                        .region_count = REGIONS,
                        .blobs = blobs,
                        .blob_bytes = sizeof blobs,
                        .session_blob = address,
                        .session_bytes = session_bytes};
    tb_error error = {0};
    int32_t code = tb_ucx_open(&import, NULL, &error);
    free(import.opened);
    return code;
}

int main(void) {
    CHECK(open_with(64, 40, 0) == TB_EPROTOCOL, "no address of a worker");
    for (uint32_t blob_bytes = 0; blob_bytes <= sizeof(uint64_t); blob_bytes++) {
        CHECK(open_with(64, blob_bytes, 64) == TB_EPROTOCOL, "blob of %u bytes", blob_bytes);
        CHECK(blob_bytes == 0 || open_with(0, blob_bytes, 64) == TB_EPROTOCOL, "blob of %u bytes", blob_bytes);
    }
    CHECK(open_with(0, sizeof(uint64_t) + 1, 64) == TB_EPROTOCOL, "a key of empty memory");
    CHECK(open_with(64, TB_BLOB_BYTES + 1, 64) == TB_EPROTOCOL, "too long a blob");
    return 0;
}
