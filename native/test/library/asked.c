/* What the tests' own library says beside the library: nothing that moves tensors depends on it. */
#include "base/error.h"
#include "base/handle.h"
#include "round/select.h"
#include "round/transfer.h"

TB_API int32_t test_transfer_asked(uint64_t session, uint64_t transfer, uint8_t *stages, int32_t *ranks,
                                   uint32_t capacity, uint32_t *count, tb_error *err);

/* Buckets that are asked for all at once, and those that nobody asks for, take no turns. */
static bool takes_turns(const tb_transfer *transfer, uint32_t channel) {
    return tb_way_of(transfer, channel) != TB_WAY_JOINT && !transfer->channels[channel].exchange->pooled;
}

/* The buckets that have had their turn in the round under way, or the last one; *count is how many they are. */
static void list(const tb_transfer *transfer, uint8_t *stages, int32_t *ranks, uint32_t capacity, uint32_t *count) {
    const tb_program *program = &transfer->program;
    *count = 0;
    for (uint8_t stage = 1; stage < TB_STAGES; stage++) {
        for (uint32_t i = 0; i < transfer->turns[stage].next; i++) {
            uint32_t channel = program->turns[stage][i];
            if (!takes_turns(transfer, channel)) {
                continue;
            }
            if (*count < capacity) {
                stages[*count] = stage;
                ranks[*count] = (int32_t)program->channels[channel].peer;
            }
            ++*count;
        }
    }
}

/* The buckets that channels which take turns may send: as many as have had their turn. */
static uint32_t granted(const tb_transfer *transfer) {
    const tb_program *program = &transfer->program;
    uint32_t sum = 0;
    for (uint32_t i = 0; i < program->header->channel_count; i++) {
        const tb_channel *channel = &program->channels[i];
        bool counts = channel->direction == TB_RECEIVE && channel->stage > 0 && takes_turns(transfer, i);
        sum += counts ? transfer->channels[i].granted : 0;
    }
    return sum;
}

/*
 * What this rank asked for in turns: for each bucket, stage by stage and in the order of the turns, the stage and the rank
 * that it comes from, at most `capacity` of them. *count is how many there are; TB_EPROTOCOL if others were granted.
 */
int32_t test_transfer_asked(uint64_t handle, uint64_t transfer_handle, uint8_t *stages, int32_t *ranks,
                            uint32_t capacity, uint32_t *count, tb_error *err) {
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    pthread_mutex_lock(&session->lock);
    const tb_transfer *transfer = tb_transfer_find(session, transfer_handle, err);
    int32_t code = transfer == NULL ? TB_ECLOSED : TB_OK;
    if (code == TB_OK) {
        list(transfer, stages, ranks, capacity, count);
        if (granted(transfer) != *count) {
            code = tb_fail(err, TB_EPROTOCOL, -1, 0, "%u buckets had their turn, %u were granted", *count,
                           granted(transfer));
        }
    }
    pthread_mutex_unlock(&session->lock);
    tb_handle_put(handle);
    return code;
}
