/* Grants: which buckets a receiver asks for, in which order, and how many of them at a time. */
#include "evil_peer.h"

/* Rank 3 receives four buckets from rank 0, two from rank 1, one from rank 2, and two of stage 2 from rank 0. */
static void test_order(void) {
    static const struct {
        uint8_t stage;
        uint32_t source, wave, count;
    } sent[] = {{1, 0, 0, 4}, {1, 1, 0, 2}, {1, 2, 1, 1}, {2, 0, 2, 2}};
    static const uint32_t expected[] = {0, 1, 2, 0, 0, 1, 0};
    kit k;
    int64_t at = 0;
    kit_start(&k, 1, 1);
    kit_tensor(&k, 0, TB_UINT8, 9, TB_UINT8, 9);
    for (size_t i = 0; i < sizeof sent / sizeof sent[0]; i++) {
        for (uint32_t j = 0; j < sent[i].count; j++, at++) {
            kit_bucket *bucket = kit_bucket_add(&k, sent[i].stage, sent[i].source, 3, sent[i].wave);
            kit_copy(&k, bucket, 0, 1, kit_run(at, 1), kit_run(at, 1));
        }
    }
    uint8_t target[9];
    tb_binding binding = {.address = (uintptr_t)target, .bytes = sizeof target};
    kit_program bytes = kit_build(&k, 3, 0);
    tb_program program;
    CHECK(tb_program_load(&program, bytes.bytes, bytes.byte_count, &binding, 1, 3, 4, NULL) == TB_OK);
    CHECK(program.turn_count[0] == 0 && program.turn_count[1] == 7 && program.turn_count[2] == 2);
    for (int i = 0; i < 7; i++) {
        CHECK(program.channels[program.turns[1][i]].peer == expected[i]);
    }
    CHECK(program.channels[program.turns[2][1]].stage == 2);
    tb_program_free(&program);
    free(bytes.bytes);
    kit_free(&k);
}

/* Rank 3 hands on what it gets first of ranks 0, 1 and 2, to rank 4: that comes first, by the planner's turns. */
static void test_awaited(void) {
    static const uint32_t turns[] = {1, 2, 0};
    static const uint32_t expected[] = {2, 0, 1, 0, 0, 1, 2, 0, 1, 2}; /* two of rank 0 are awaited, one of each other */
    enum { EACH = 3, HANDED = 4, PARTS = 3 * EACH + 1 };
    kit k;
    int64_t at = 0;
    kit_start(&k, 1, 1);
    kit_tensor(&k, 0, TB_UINT8, PARTS, TB_UINT8, PARTS);
    int awaited[HANDED];
    int found = 0;
    for (uint32_t source = 0; source < 3; source++) {
        for (uint32_t i = 0; i < EACH + (source == 0); i++, at++) {
            kit_bucket *bucket = kit_bucket_add(&k, 1, source, 3, source);
            kit_copy(&k, bucket, 0, 1, kit_run(at, 1), kit_run(at, 1));
            if (i < 1 + (source == 0)) {
                awaited[found++] = k.bucket_count - 1;
            }
        }
    }
    kit_bucket *handed = kit_bucket_add(&k, 2, 3, 4, 3);
    for (int i = 0; i < HANDED; i++) {
        handed->dependencies[handed->dependency_count++] = awaited[i];
    }
    kit_copy(&k, handed, 0, 1, kit_run(0, 1), kit_run(0, 1));
    uint8_t target[PARTS];
    tb_binding binding = {.address = (uintptr_t)target, .bytes = sizeof target};
    kit_program bytes = kit_build(&k, 3, 0);
    const tb_program_header *header = (const tb_program_header *)bytes.bytes;
    tb_channel *channels = (tb_channel *)((uint8_t *)bytes.bytes + header->channels_at);
    for (uint32_t i = 0; i < header->channel_count; i++) {
        channels[i].turn = channels[i].direction == TB_RECEIVE ? turns[channels[i].peer] : 0;
    }
    tb_program program;
    CHECK(tb_program_load(&program, bytes.bytes, bytes.byte_count, &binding, 1, 3, 5, NULL) == TB_OK);
    CHECK(program.turn_count[1] == sizeof expected / sizeof expected[0]);
    for (uint32_t i = 0; i < program.turn_count[1]; i++) {
        CHECK(program.channels[program.turns[1][i]].peer == expected[i]);
    }
    tb_program_free(&program);
    free(bytes.bytes);
    kit_free(&k);
}

/* The next GRANT of a stage; other frames are passed over. */
static uint32_t take_grant(world *w, int fd, uint8_t stage) {
    uint8_t body[4096];
    tb_wire_header header;
    do {
        evil_hear(w, fd, &header, body, sizeof body);
    } while (header.kind != TB_FRAME_GRANT || header.stage != stage);
    return header.count;
}

static void send_bucket(int fd, uint64_t transfer, uint8_t stage, uint32_t sequence, uint64_t bytes) {
    static uint8_t body[2 * EVIL_BYTES];
    tb_wire_header header = {.kind = TB_FRAME_DATA,
                             .stage = stage,
                             .transfer = transfer,
                             .round = 1,
                             .body_bytes = bytes,
                             .sequence = sequence};
    tb_wire_trailer trailer = {.verdict = TB_TRAILER_GOOD};
    evil_say(fd, header, NULL);
    evil_send(fd, body, bytes);
    evil_send(fd, &trailer, sizeof trailer);
}

/* Rank 1 receives buckets of stage 1 and 2 from rank 0, two of each at a time: neither stage waits for the other. */
static void test_in_flight(void) {
    enum { PARTS = 4, BYTES = 2 * EVIL_BYTES }; /* more than counts as small */
    world w;
    kit k;
    kit_start(&k, 1, 2);
    kit_tensor(&k, 0, TB_UINT8, 2 * PARTS * BYTES, TB_UINT8, 2 * PARTS * BYTES);
    for (int i = 0; i < 2 * PARTS; i++) {
        kit_bucket *bucket = kit_bucket_add(&k, i < PARTS ? 1 : 2, 0, 1, i < PARTS ? 0 : 1);
        kit_end run = kit_run((int64_t)i * BYTES, BYTES);
        kit_copy(&k, bucket, 0, BYTES, run, run);
    }
    world_open(&w, &evil_options, 2);
    world_prepare_rank(&w, &k, 1, 0, 20 * SECOND);
    int fd = evil_join(&w, 1, 0);
    uint64_t transfer = evil_pair(&w, fd);
    world_post(&w, 1, 1, 20 * SECOND);
    CHECK(take_grant(&w, fd, 1) == 2);
    CHECK(take_grant(&w, fd, 2) == 2);
    for (uint32_t i = 0; i < PARTS; i++) {
        send_bucket(fd, transfer, 2, i, BYTES);
        CHECK(i + 3 > PARTS || take_grant(&w, fd, 2) == i + 3);
    }
    for (uint32_t i = 0; i < PARTS; i++) {
        send_bucket(fd, transfer, 1, i, BYTES);
        CHECK(i + 3 > PARTS || take_grant(&w, fd, 1) == i + 3);
    }
    world_expect(&w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
    close(fd);
    world_close(&w);
    kit_free(&k);
}

/* Small buckets do not wait for a turn each. */
static void test_small(void) {
    world w;
    kit k;
    kit_start(&k, 1, 1);
    kit_tensor(&k, 0, TB_UINT8, EVIL_PARTS * 4096, TB_UINT8, EVIL_PARTS * 4096);
    for (int i = 0; i < EVIL_PARTS; i++) {
        kit_bucket *bucket = kit_bucket_add(&k, 1, 0, 1, 0);
        kit_copy(&k, bucket, 0, 4096, kit_run(i * 4096, 4096), kit_run(i * 4096, 4096));
    }
    world_open(&w, &evil_options, 2);
    world_prepare_rank(&w, &k, 1, 0, 20 * SECOND);
    int fd = evil_join(&w, 1, 0);
    uint64_t transfer = evil_pair(&w, fd);
    world_post(&w, 1, 1, 20 * SECOND);
    CHECK(take_grant(&w, fd, 1) == EVIL_PARTS);
    for (uint32_t i = 0; i < EVIL_PARTS; i++) {
        send_bucket(fd, transfer, 1, i, 4096);
    }
    world_expect(&w, 1, TB_EVENT_ROUND, TB_OK, -1, NULL);
    close(fd);
    world_close(&w);
    kit_free(&k);
}

int main(void) {
    test_order();
    test_awaited();
    test_in_flight();
    test_small();
    return 0;
}
