/* The table of carriers, and what the public interface does with it. No lock is needed. */
#include "carriers/registry.h"

#include <string.h>

#include "device/device.h"
#include "round/carrier.h"
#include "round/select.h"

#define TB_CARRIER_ROW(NAME, name, bit) &tb_carrier_##name,
const tb_carrier *const tb_carriers[] = {TB_CARRIERS(TB_CARRIER_ROW) NULL};

int32_t tb_session_open(const tb_session_options *options, uint64_t *session, int32_t *event_fd, tb_error *err) {
    return tb_session_open_with(options, tb_carriers, &tb_devices_cuda, session, event_fd, err);
}

int32_t tb_carrier_between(const uint8_t one[TB_IDENTITY_BYTES], const uint8_t other[TB_IDENTITY_BYTES],
                           uint32_t memory, uint32_t flags, uint32_t *number, tb_error *err) {
    tb_wire_identity ends[2];
    const tb_carrier *carrier = &tb_carrier_stream;
    memcpy(&ends[0], one, sizeof ends[0]);
    memcpy(&ends[1], other, sizeof ends[1]);
    ends[0].memory = memory;
    ends[1].memory = memory;
    int32_t code = tb_carrier_select(tb_carriers, &ends[0], &ends[1], flags, &carrier, err);
    *number = carrier->number;
    return code;
}
