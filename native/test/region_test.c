/* Carriers that register memory: what they are shown, in which order, and that all of it is taken back. */
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "carriers/registry.h"
#include "check.h"
#include "round/carrier.h"

enum { BYTES = 4096, FIRST = 4, SECOND = 5 };

/* What each of the two holds, and what the second one answers. */
static uint64_t held[2];
static int32_t answer;

static int32_t add(int carrier, const tb_region *region, void **state) {
    CHECK(region->bytes == BYTES && region->memory == TB_MEMORY_HOST, "it is shown the region");
    CHECK(*state == NULL, "a region begins with nothing of the carrier's");
    *state = &held[carrier];
    held[carrier]++;
    return TB_OK;
}

static void take(int carrier, void *state) {
    CHECK(state == &held[carrier], "a carrier gets its own back");
    held[carrier]--;
}

static int32_t add_first(tb_session *session, const tb_region *region, void **state, tb_error *err) {
    (void)session;
    (void)err;
    return add(0, region, state);
}

static int32_t add_second(tb_session *session, const tb_region *region, void **state, tb_error *err) {
    (void)session;
    return answer == TB_OK ? add(1, region, state) : tb_fail(err, answer, -1, 0, "it is not to be pinned");
}

static void take_first(tb_session *session, const tb_region *region, void *state) {
    (void)session;
    (void)region;
    take(0, state);
}

static void take_second(tb_session *session, const tb_region *region, void *state) {
    (void)session;
    (void)region;
    take(1, state);
}

/* No pair is made: nothing of this is called, but a carrier that pulls has it. */
static int32_t describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                        tb_error *err) {
    (void)session, (void)region, (void)number, (void)blob, (void)bytes;
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this carrier moves nothing");
}

static int32_t open_import(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    (void)import, (void)exchange;
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this carrier moves nothing");
}

static void close_import(tb_import *import) {
    (void)import;
}

static enum tb_moved move(tb_job *job, uint64_t limit, tb_error *err) {
    (void)job, (void)limit;
    tb_fail(err, TB_EUNSUPPORTED, -1, 0, "this carrier moves nothing");
    return TB_MOVED_NOT;
}

static const tb_carrier first = {
    .number = FIRST,
    .name = "first",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST,
    .region_add = add_first,
    .region_remove = take_first,
    .describe = describe,
    .open = open_import,
    .close = close_import,
    .move = move,
};

static const tb_carrier second = {
    .number = SECOND,
    .name = "second",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST,
    .region_add = add_second,
    .region_remove = take_second,
    .describe = describe,
    .open = open_import,
    .close = close_import,
    .move = move,
};

static uint64_t open_session(uint32_t carriers, int32_t *event_fd) {
    static const tb_carrier *const table[] = {&first, &second, &tb_carrier_stream, NULL};
    uint64_t hub;
    CHECK(tb_hub_create(&hub, NULL) == TB_OK, "no hub");
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .world = 1,
                                  .connections = 1,
                                  .io_threads = 1,
                                  .kind = TB_BACKEND_MEMORY,
                                  .peer_timeout_ms = 1000,
                                  .quiesce_ms = 1000,
                                  .hub = hub,
                                  .carriers = carriers};
    uint64_t session;
    tb_error error;
    int32_t code = tb_session_open_with(&options, table, NULL, &session, event_fd, &error);
    CHECK(code == TB_OK, "%s", error.message);
    return session;
}

static void expect(uint64_t one, uint64_t other) {
    CHECK(held[0] == one && held[1] == other, "%d and %d are held", (int)held[0], (int)held[1]);
}

int main(void) {
    uint8_t *memory = mmap(NULL, 2 * BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t at = (uint64_t)(uintptr_t)memory;
    int32_t event_fd;
    tb_error error;
    CHECK(memory != MAP_FAILED, "no memory");

    uint64_t session = open_session(1u << FIRST | 1u << SECOND | TB_CARRY_STREAM, &event_fd);
    CHECK(tb_session_register(session, at, BYTES, &error) == TB_OK, "%s", error.message);
    expect(1, 1);
    CHECK(tb_session_register(session, at, BYTES, &error) == TB_EALIAS, "%s", error.message);
    expect(1, 1);
    answer = TB_ENO_MEMORY;
    CHECK(tb_session_register(session, at + BYTES, BYTES, &error) == TB_ENO_MEMORY, "%s", error.message);
    CHECK(strcmp(error.message, "it is not to be pinned") == 0, "%s", error.message);
    expect(1, 1);
    CHECK(tb_session_unregister(session, at + BYTES, BYTES, &error) == TB_EREGION, "what failed is not registered");
    answer = TB_OK;
    CHECK(tb_session_register(session, at + BYTES, BYTES, &error) == TB_OK, "%s", error.message);
    expect(2, 2);
    CHECK(tb_session_unregister(session, at, BYTES, &error) == TB_OK, "%s", error.message);
    expect(1, 1);
    CHECK(tb_session_register(session, at, BYTES, &error) == TB_OK, "the place of a region is used again");
    CHECK(tb_session_close(session, &error) == TB_OK, "%s", error.message);
    expect(0, 0);
    close(event_fd);

    /* A session that does not use a carrier shows it nothing. */
    session = open_session(1u << FIRST | TB_CARRY_STREAM, &event_fd);
    CHECK(tb_session_register(session, at, BYTES, &error) == TB_OK, "%s", error.message);
    expect(1, 0);
    CHECK(tb_session_close(session, &error) == TB_OK, "%s", error.message);
    expect(0, 0);
    close(event_fd);
    munmap(memory, 2 * BYTES);
    return 0;
}
