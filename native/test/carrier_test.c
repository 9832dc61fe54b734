/* What a carrier's table lacks is said when a session opens, by name: else the first round would call what is not there. */
#include <string.h>

#include "carriers/registry.h"
#include "check.h"
#include "round/select.h"

static int32_t open_import(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    (void)import;
    (void)exchange;
    (void)err;
    return TB_OK;
}
static int32_t describe(tb_session *session, const tb_region *region, uint32_t number, void *blob, uint32_t *bytes,
                        tb_error *err) {
    (void)session;
    (void)region;
    (void)number;
    (void)blob;
    (void)bytes;
    (void)err;
    return TB_OK;
}
static void close_import(tb_import *import) {
    (void)import;
}
static void submit(tb_pull *pull) {
    (void)pull;
}
static enum tb_moved move(tb_job *job, uint64_t limit, tb_error *err) {
    (void)job;
    (void)limit;
    (void)err;
    return TB_MOVED_ALL;
}

static const tb_carrier whole = {
    .number = 7,
    .name = "seven",
    .way = TB_WAY_PULL,
    .memory = TB_MEMORY_HOST,
    .describe = describe,
    .open = open_import,
    .close = close_import,
    .submit = submit,
};

static void refused(tb_carrier carrier, const char *why) {
    const tb_carrier *const table[] = {&tb_carrier_stream, &carrier, NULL};
    tb_error error = {0};
    CHECK(tb_carriers_check(table, &error) == TB_EUNSUPPORTED, "%s: it was taken", why);
    CHECK(strstr(error.message, why) != NULL, "%s: %s", why, error.message);
}

#define WITHOUT(member, why)                                                                                             \
    do {                                                                                                                 \
        tb_carrier carrier = whole;                                                                                      \
        memset(&carrier.member, 0, sizeof carrier.member);                                                               \
        refused(carrier, why);                                                                                           \
    } while (0)

static void test_what_is_missing(void) {
    const tb_carrier *const good[] = {&whole, &tb_carrier_stream, NULL};
    CHECK(tb_carriers_check(good, NULL) == TB_OK, "a whole one was refused");
    WITHOUT(name, "without a name");
    WITHOUT(way, "seven has to have one way");
    WITHOUT(memory, "seven has to have memory");
    WITHOUT(describe, "seven has to have describe");
    WITHOUT(open, "seven has to have open");
    WITHOUT(close, "seven has to have close");
    WITHOUT(submit, "seven has to have either move or submit");
    WITHOUT(number, "seven has the number 0"); /* the stream's */
    tb_carrier both = whole;
    both.move = move;
    refused(both, "either move or submit");
    tb_carrier beyond = whole;
    beyond.number = TB_CARRIER_NUMBERS;
    refused(beyond, "the number 16");
    tb_carrier jointly = tb_carrier_nccl;
    jointly.peer_gone = NULL;
    refused(jointly, "nccl has to have peer_gone");
}

static void test_the_library(void) {
    tb_error error = {0};
    CHECK(tb_carriers_check(tb_carriers, &error) == TB_OK, "%s", error.message);
}

static void test_a_session_says_it(void) {
    tb_carrier broken = whole;
    broken.open = NULL;
    const tb_carrier *const table[] = {&broken, &tb_carrier_stream, NULL};
    tb_session_options options = {.struct_bytes = sizeof options,
                                  .kind = TB_BACKEND_TCP,
                                  .world = 1,
                                  .connections = 1,
                                  .io_threads = 1,
                                  .peer_timeout_ms = 1000,
                                  .quiesce_ms = 1000};
    uint64_t session;
    int32_t event_fd;
    tb_error error = {0};
    CHECK(tb_session_open_with(&options, table, NULL, &session, &event_fd, &error) == TB_EUNSUPPORTED, "it opened");
    CHECK(strstr(error.message, "seven has to have open") != NULL, "%s", error.message);
}

int main(void) {
    test_the_library();
    test_what_is_missing();
    test_a_session_says_it();
    return 0;
}
