/* Whatever a source exports: what is accepted never makes its target read outside of the source's region. */
#include <unistd.h>

#include "carriers/shm/book.h"
#include "carriers/registry.h"
#include "identity/identity.h"
#include "kernels/cursor.h"
#include "kernels/dtype.h"
#include "round/thread.h"
#include "world_kit.h"
#include "kernels/pack.h"
#include "round/carrier.h"
#include "round/transfer_meet.h"

enum { COLUMNS = 5, ROWS = 6, CHUNKS = 3, REGION = 512 };

/* A session that was never opened, with one exchange that receives. */
typedef struct fake {
    tb_session session;
    tb_peer peer;
    tb_transfer transfer;
    tb_exchange exchange;
    kit_program program;
    uint8_t target[REGION];
    tb_binding binding;
} fake;

static void make_kit(kit *k) {
    kit_start(k, 1, 1);
    kit_tensor(k, 0, TB_FLOAT32, REGION, TB_FLOAT32, REGION);
    for (int i = 0; i < CHUNKS; i++) {
        kit_copy(k, kit_bucket_add(k, 1, 0, 1, 0), 0, COLUMNS * ROWS, kit_rows(0, ROWS, 40, COLUMNS * 4),
                 kit_run(0, COLUMNS * ROWS * 4));
    }
}

static void fake_start(fake *f, const kit *k, const uint8_t *memory) {
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->session.lock, NULL);
    f->program = kit_build(k, 1, 0);
    f->binding = (tb_binding){(uint64_t)(uintptr_t)f->target, REGION};
    CHECK(tb_program_load(&f->transfer.program, f->program.bytes, f->program.byte_count, &f->binding, 1, 1, 2, NULL)
          == TB_OK);
    f->session.options.rank = 1;
    f->session.options.world = 2;
    f->session.options.carriers = TB_CARRY_SHM | TB_CARRY_APART;
    f->session.carriers = tb_carriers;
    f->session.identity = (tb_wire_identity){.pid = getpid(), .user = geteuid(), .carriers = TB_CARRY_SHM, .book = -1};
    CHECK(tb_identity_fill(&f->session.identity, NULL) == TB_OK);
    CHECK(tb_carrier_shm.session_open(&f->session, NULL) == TB_OK);
    f->peer.net = &f->session.net;
    f->transfer.session = &f->session;
    f->transfer.state = TB_TRANSFER_PREPARING;
    f->transfer.exchanges = &f->exchange;
    f->transfer.exchange_count = 1;
    f->exchange.transfer = &f->transfer;
    f->exchange.peer = &f->peer;
    f->peer.nonce[0] = 1;
    /* The source is this process, too: its answer and its notes stand in the same book. */
    tb_book *book = f->session.carrier_state[TB_CARRIER_SHM];
    tb_book_answer(book, 0, 1, f->peer.nonce);
    CHECK(tb_book_note(book, 0, (uint64_t)(uintptr_t)memory));
    f->exchange.carrier = &tb_carrier_shm;
    f->exchange.identity = f->session.identity;
    memset(f->exchange.send, 0xff, sizeof f->exchange.send);
    memset(f->exchange.receive, 0xff, sizeof f->exchange.receive);
    f->exchange.receive[1] = 0;
    f->exchange.said_match = true;
}

static void fake_end(fake *f) {
    tb_program_free(&f->transfer.program);
    tb_carrier_shm.session_free(&f->session, NULL);
    free(f->program.bytes);
    pthread_mutex_destroy(&f->session.lock);
}

/* What an honest source would say. */
static uint64_t honest(uint8_t *bytes) {
    const int64_t words[] = {0, 1, ROWS, 40, COLUMNS * 4};
    tb_wire_export header = {.words = 5, .regions = 1, .ends = CHUNKS};
    tb_wire_region region = {.memory = TB_MEMORY_HOST, .bytes = REGION};
    tb_wire_end end = {.region = 0, .descriptor = 0, .dtype = TB_FLOAT32};
    uint64_t at = sizeof header;
    memcpy(bytes + at, &region, sizeof region);
    at += sizeof region;
    for (int i = 0; i < CHUNKS; i++, at += sizeof end) {
        end.at = (uint64_t)i * 8;
        memcpy(bytes + at, &end, sizeof end);
    }
    memcpy(bytes + at, words, sizeof words);
    header.bytes = at + sizeof words;
    memcpy(bytes, &header, sizeof header);
    return header.bytes;
}

/* Reads every element that the import would; the sanitizer watches over the region. */
static uint64_t read_all(const tb_import *import, const uint8_t *memory) {
    uint8_t out[COLUMNS * ROWS * 8];
    uint64_t bytes = 0;
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++) {
        const tb_wire_end *end = tb_import_end(import, 1, chunk);
        if (end->descriptor == TB_NONE) {
            CHECK(end->at < import->regions[end->region].pieces);
            continue;
        }
        tb_cursor cursor;
        CHECK(import->regions[end->region].bytes <= REGION);
        tb_cursor_start(&cursor, (void *)(uintptr_t)(memory + end->at), import->words + end->descriptor);
        CHECK(cursor.left == COLUMNS * ROWS * 4);
        bytes += (uint64_t)cursor.left;
        tb_cursor_pack(&cursor, end->dtype, out, end->dtype, COLUMNS * ROWS);
    }
    return bytes;
}

/*
 * Gives the export in parts, and whether it was accepted. The region itself may be claimed larger than it is: that is
 * for `open` to find, so such claims are left out.
 */
static bool offer(const kit *k, uint8_t *bytes, uint64_t count, uint64_t part, const uint8_t *memory) {
    fake f;
    tb_error error;
    fake_start(&f, k, memory);
    tb_import *import = tb_import_create(&f.exchange);
    CHECK(import != NULL);
    f.exchange.import = import;
    int32_t code = TB_OK;
    for (uint64_t at = 0; at < count && code == TB_OK; at += part) {
        uint64_t length = count - at < part ? count - at : part;
        code = tb_import_take(import, bytes + at, length, &error);
    }
    bool accepted = false;
    if (code == TB_OK && f.session.imports != NULL) {
        tb_import_serve(&f.session);
        accepted = f.exchange.import != NULL && f.exchange.import->state == TB_IMPORT_OPEN;
        CHECK(accepted || f.transfer.state == TB_TRANSFER_DEAD);
    }
    if (accepted && import->regions[0].bytes <= REGION) {
        read_all(import, memory);
    }
    if (f.exchange.import != NULL) {
        tb_import_free(f.exchange.import);
    }
    fake_end(&f);
    return accepted;
}

static void test_honest(const kit *k, const uint8_t *memory) {
    uint8_t bytes[1024];
    uint64_t count = honest(bytes);
    CHECK(offer(k, bytes, count, count, memory));
    CHECK(offer(k, bytes, count, sizeof(tb_wire_export), memory));
    CHECK(!offer(k, bytes, count - 1, count, memory)); /* not all of it came */
    CHECK(!offer(k, bytes, count, sizeof(tb_wire_export) - 1, memory));
}

/* Each word in turn becomes each of what breaks checks. */
static void test_lies(const kit *k, const uint8_t *memory) {
    static const uint64_t values[] = {0,          1,          2,         3,          4,         7,
                                      8,          40,         511,       512,        513,       1u << 31,
                                      UINT32_MAX, 1ull << 32, 1ull << 62, INT64_MAX, 1ull << 63, UINT64_MAX};
    uint8_t bytes[1024];
    int accepted = 0;
    int refused = 0;
    uint64_t count = honest(bytes);
    for (uint64_t at = 0; at + 4 <= count; at += 4) {
        for (size_t v = 0; v < 2 * sizeof values / sizeof values[0]; v++) {
            honest(bytes);
            size_t width = v % 2 == 0 || at + 8 > count ? 4 : 8;
            memcpy(bytes + at, &values[v / 2], width);
            bool taken = offer(k, bytes, count, count, memory);
            if (at >= sizeof(tb_wire_export) + sizeof(tb_wire_region)) {
                accepted += taken;
                refused += !taken;
            }
        }
    }
    /* A start that is elsewhere in the region is no lie that could be told. */
    CHECK(accepted > 0 && refused > 2 * accepted);
}

/* A few bytes become anything; the frames are cut anywhere. */
static void test_damage(const kit *k, const uint8_t *memory, uint64_t seconds, uint64_t seed) {
    enum { TRIES = 3000 };
    uint64_t state = 0x9e3779b97f4a7c15u * (seed + 1);
    uint64_t until = test_now() + seconds * SECOND;
    for (int i = 0; seconds == 0 ? i < TRIES : test_now() < until; i++) {
        uint8_t bytes[1024];
        uint64_t count = honest(bytes);
        for (int changes = 0; changes < 1 + i % 4; changes++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes[state % count] = (uint8_t)(state >> 32);
        }
        offer(k, bytes, count, 1 + (state >> 40) % count, memory);
    }
}

/* ---- what comes while an import is being opened -------------------------------------------------------- */

/* Shared memory, but that the thread which opens an import is overtaken by a frame. */
static tb_carrier overtaken;
static void (*overtake)(tb_exchange *exchange);

static int32_t open_late(tb_import *import, const tb_exchange *exchange, tb_error *err) {
    void (*now)(tb_exchange *) = overtake;
    overtake = NULL;
    if (now != NULL) {
        now(import->exchange);
    }
    return tb_carrier_shm.open(import, exchange, err);
}

static void take_import(tb_exchange *exchange) {
    uint8_t bytes[1024];
    uint64_t count = honest(bytes);
    exchange->carrier = &overtaken;
    exchange->import = tb_import_create(exchange);
    CHECK(exchange->import != NULL && tb_import_take(exchange->import, bytes, count, NULL) == TB_OK);
}

static void match(tb_exchange *exchange, const tb_carrier *carrier) {
    const tb_wire_header header = {.kind = TB_FRAME_MATCH, .count = carrier->number, .round = exchange->remote};
    CHECK(tb_transfer_on_match(exchange, &header, NULL) == TB_OK);
}

/* The peer found that the carrier does not reach this rank. */
static void fall_back(tb_exchange *exchange) {
    pthread_mutex_lock(&exchange->transfer->session->lock);
    match(exchange, &tb_carrier_stream);
    CHECK(exchange->import == NULL && exchange->carrier == &tb_carrier_stream);
    pthread_mutex_unlock(&exchange->transfer->session->lock);
}

/* The peer gave up its prepare, and another thread opens what its next one exports. */
static void begin_anew(tb_exchange *exchange) {
    tb_session *session = exchange->transfer->session;
    pthread_mutex_lock(&session->lock);
    tb_transfer_forget_attempt(exchange);
    exchange->remote = 8;
    take_import(exchange);
    match(exchange, &overtaken);
    pthread_mutex_unlock(&session->lock);
    CHECK(tb_import_serve(session));
    CHECK(exchange->import != NULL && exchange->import->state == TB_IMPORT_OPEN && exchange->said_match);
}

/* A transfer is not prepared while a thread still reaches for memory for it, and is as soon as that thread is done. */
static void test_overtaken(const kit *k, const uint8_t *memory, void (*by)(tb_exchange *exchange)) {
    fake f;
    fake_start(&f, k, memory);
    overtaken = tb_carrier_shm;
    overtaken.open = open_late;
    overtake = by;
    f.session.identity.carriers |= TB_CARRY_STREAM;
    f.exchange.identity.carriers |= TB_CARRY_STREAM;
    f.exchange.remote = 7;
    f.exchange.said_match = false;
    take_import(&f.exchange);
    CHECK(tb_import_serve(&f.session));
    CHECK(overtake == NULL && f.transfer.state == TB_TRANSFER_READY && f.transfer.active == 0);
    if (f.exchange.import != NULL) {
        tb_import_free(f.exchange.import);
    }
    fake_end(&f);
}

/* import_test [SECONDS [SEED]]: tries damaged exports for that many seconds. */
int main(int argc, char **argv) {
    kit k;
    make_kit(&k);
    uint8_t *memory = malloc(REGION);
    memset(memory, 1, REGION);
    test_honest(&k, memory);
    test_overtaken(&k, memory, fall_back);
    test_overtaken(&k, memory, begin_anew);
    test_lies(&k, memory);
    test_damage(&k, memory, argc > 1 ? strtoull(argv[1], NULL, 10) : 0, argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    free(memory);
    kit_free(&k);
    return 0;
}
