/*
 * A peer that knows the secret and lies about its memory: it is rank 0 on a socket, and is to be read by rank 1. It
 * gets nothing of this process read, whatever it names, and rank 1 moves nothing otherwise than it was allowed to.
 */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "carriers/shm/book.h"
#include "carriers/registry.h"
#include "carriers/shm/shm_map.h"
#include "evil_peer.h"
#include "round/carrier.h"

enum { BYTES = 4096 };

/* Rank 0 sends one chunk to rank 1. */
static void plan(kit *k) {
    kit_start(k, 2, 4);
    kit_tensor(k, 0, TB_UINT8, BYTES, TB_UINT8, BYTES);
    kit_copy(k, kit_bucket_add(k, 1, 0, 1, 0), 0, BYTES, kit_run(0, BYTES), kit_run(0, BYTES));
}

typedef struct liar {
    world w;
    kit k;
    int fd;
    uint64_t transfer;         /* rank 1's number of it */
    uint64_t named;            /* the number that rank 0 says is its own */
    tb_wire_prepare prepare;   /* what rank 1 said */
    tb_wire_channel channel;
    char key[TB_KEY_BYTES];
} liar;

static void start(liar *l, uint32_t carriers) {
    world_options options = {.kind = TB_BACKEND_TCP, .threads = 1, .connections = 1, .carriers = carriers};
    uint8_t body[4096];
    tb_wire_header header;
    memset(l, 0, sizeof *l);
    plan(&l->k);
    world_open(&l->w, &options, 2);
    l->fd = evil_join(&l->w, 1, 0);
    world_prepare_rank(&l->w, &l->k, 1, 0, 20 * SECOND);
    evil_hear(&l->w, l->fd, &header, body, sizeof body);
    CHECK(header.kind == TB_FRAME_PREPARE);
    memcpy(&l->prepare, body, sizeof l->prepare);
    memcpy(&l->channel, body + sizeof l->prepare, sizeof l->channel);
    memcpy(l->key, body + sizeof l->prepare + sizeof l->channel, l->prepare.key_bytes);
    CHECK(l->prepare.channels == 1 && !l->channel.sends);
    l->transfer = l->prepare.transfer;
    l->named = EVIL_GRAPH;
}

/* Nothing of this process is found in what it says to a peer. */
static void check_no_address(const liar *l) {
    const uint8_t *said = (const uint8_t *)&l->prepare;
    uint64_t session = (uint64_t)(uintptr_t)l->w.memory[1][0][1] >> 24;
    for (size_t at = sizeof(uint64_t); at + sizeof session <= sizeof l->prepare; at++) {
        uint64_t word;
        memcpy(&word, said + at, sizeof word);
        CHECK(word >> 24 != session);
    }
}

/* Says PREPARE, as `identity`, then exports one region; file: what its blob says, or NULL. */
static void say_file(liar *l, const tb_wire_identity *identity, const tb_wire_region *region, const tb_shm_file *file) {
    tb_wire_prepare prepare = l->prepare;
    tb_wire_channel channel = l->channel;
    uint8_t body[4096];
    uint64_t at = sizeof prepare;
    prepare.transfer = l->named;
    prepare.identity = *identity;
    channel.sends = 1;
    memcpy(body, &prepare, sizeof prepare);
    memcpy(body + at, &channel, sizeof channel);
    at += sizeof channel;
    memcpy(body + at, l->key, prepare.key_bytes);
    at += prepare.key_bytes;
    evil_say(l->fd, (tb_wire_header){.kind = TB_FRAME_PREPARE, .body_bytes = at}, body);
    if (region == NULL) {
        return;
    }
    const int64_t words[] = {0, 0, BYTES};
    tb_wire_export header = {.words = 3, .regions = 1, .ends = 1};
    tb_wire_end end = {.dtype = TB_UINT8};
    tb_wire_region row = *region;
    row.blob_bytes = header.blob_bytes = file == NULL ? 0 : sizeof *file;
    header.bytes = sizeof header + sizeof row + sizeof end + sizeof words + header.blob_bytes;
    tb_wire_header frame = {.kind = TB_FRAME_EXPORT,
                            .transfer = l->transfer,
                            .round = l->named,
                            .body_bytes = header.bytes};
    uint8_t *into = body;
    into = mempcpy(into, &header, sizeof header);
    into = mempcpy(into, &row, sizeof row);
    into = mempcpy(into, &end, sizeof end);
    into = mempcpy(into, words, sizeof words);
    if (file != NULL) {
        memcpy(into, file, sizeof *file);
    }
    evil_say(l->fd, frame, body);
}

static void say(liar *l, const tb_wire_identity *identity, const tb_wire_region *region) {
    say_file(l, identity, region, NULL);
}

static void end(liar *l) {
    close(l->fd);
    world_close(&l->w);
    kit_free(&l->k);
}

enum { AS_SAID = -2 };

/* It says that it is this process: what rank 1 has said of itself comes back, with any file of this process. */
static void test_echo(int32_t book, const tb_wire_region *region, const tb_shm_file *file) {
    liar l;
    start(&l, TB_CARRY_SHM);
    check_no_address(&l);
    tb_wire_identity identity = l.prepare.identity;
    identity.memory = region->memory;
    if (book != AS_SAID) {
        identity.book = book;
    }
    say_file(&l, &identity, region, file);
    world_expect(&l.w, 1, TB_EVENT_PREPARED, TB_EAUTH, 0, NULL);
    end(&l);
}

/* One that says that it is this process, with the book of a session of its own to answer in. */
static tb_book *start_with_book(liar *l, tb_wire_identity *identity) {
    tb_book *book;
    start(l, TB_CARRY_SHM);
    CHECK(tb_book_create(2, &book, NULL) == TB_OK);
    *identity = l->prepare.identity;
    identity->memory = TB_MEMORY_HOST;
    identity->book = tb_book_file(book);
    return book;
}

/* Says what it has to say of that region of its book, which is refused by that code. */
static void end_refused(liar *l, tb_book *book, const tb_wire_identity *identity, uint32_t number, int32_t code) {
    say(l, identity, &(tb_wire_region){.memory = TB_MEMORY_HOST, .number = number, .bytes = BYTES});
    world_expect(&l->w, 1, TB_EVENT_PREPARED, code, 0, NULL);
    tb_book_free(book);
    end(l);
}

/* It answers for every rank but the right one. */
static void test_other_answers(void) {
    liar l;
    tb_wire_identity identity;
    tb_book *book = start_with_book(&l, &identity);
    tb_book_answer(book, 1, 0, identity.nonce);
    tb_book_answer(book, 1, 1, identity.nonce);
    end_refused(&l, book, &identity, 0, TB_EAUTH);
}

/* It answers another challenge: an earlier one, say. */
static void test_other_nonce(void) {
    liar l;
    tb_wire_identity identity;
    tb_book *book = start_with_book(&l, &identity);
    uint8_t nonce[sizeof identity.nonce];
    memcpy(nonce, identity.nonce, sizeof nonce);
    nonce[sizeof nonce - 1] ^= 1;
    tb_book_answer(book, 0, 1, nonce);
    CHECK(tb_book_note(book, 0, (uint64_t)(uintptr_t)&l));
    end_refused(&l, book, &identity, 0, TB_EAUTH);
}

/*
 * It names a transfer and a region of rank 0 as it really is in this process, which is connected to somebody else as rank
 * 1: whose memory is ours is told by the connection that a session has, not by numbers.
 */
static void test_other_session(void) {
    liar l;
    tb_hello hellos[2];
    uint8_t body[4096];
    tb_wire_header header;
    start(&l, TB_CARRY_SHM);
    int listener = evil_listen(&l.w);
    world_prepare_rank(&l.w, &l.k, 0, 0, 60 * SECOND);
    int fd = evil_accept(&l.w, listener);
    CHECK(fd >= 0);
    evil_answer(&l.w, fd, 0, hellos);
    evil_prove(&l.w, fd, 1, hellos);
    evil_hear(&l.w, fd, &header, body, sizeof body);
    CHECK(header.kind == TB_FRAME_PREPARE);
    memcpy(&l.named, body + offsetof(tb_wire_prepare, transfer), sizeof l.named);
    tb_wire_identity identity = l.prepare.identity;
    identity.memory = TB_MEMORY_HOST;
    say(&l, &identity, &(tb_wire_region){.memory = TB_MEMORY_HOST, .bytes = BYTES});
    world_expect(&l.w, 1, TB_EVENT_PREPARED, TB_EAUTH, 0, NULL);
    close(fd);
    close(listener);
    end(&l);
}

/*
 * A peer of this process that is in order in all but where it says that its memory lies. What cannot be read is an
 * error; no address is ever followed.
 */
static void test_no_such_memory(uint64_t address) {
    liar l;
    tb_wire_identity identity;
    tb_book *book = start_with_book(&l, &identity);
    tb_book_answer(book, 0, 1, identity.nonce);
    CHECK(tb_book_note(book, 5, address));
    end_refused(&l, book, &identity, 5, TB_EREGION);
}

/* A session that allows shared memory alone is not talked into sending or taking bytes over the connection. */
static void test_forced_stream(void) {
    liar l;
    start(&l, TB_CARRY_SHM);
    tb_wire_identity identity = l.prepare.identity;
    identity.carriers |= TB_CARRY_STREAM;
    identity.memory = TB_MEMORY_HOST;
    say(&l, &identity, NULL);
    tb_wire_header match = {
        .kind = TB_FRAME_MATCH, .count = TB_CARRIER_STREAM, .transfer = l.transfer, .round = EVIL_GRAPH};
    evil_say(l.fd, match, NULL);
    world_expect(&l.w, 1, TB_EVENT_PREPARED, TB_EPROTOCOL, 0, NULL);
    end(&l);
    start(&l, TB_CARRY_SHM);
    identity = l.prepare.identity;
    identity.carriers = 0; /* the stream alone */
    say(&l, &identity, NULL);
    world_expect(&l.w, 1, TB_EVENT_PREPARED, TB_EUNSUPPORTED, 0, NULL);
    end(&l);
}

/* Peers name descriptors: nothing but a regular file of this user is opened. */
static void test_files(void) {
    int ends[2];
    int fd = -1;
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    CHECK(tb_file_of(getpid(), ends[0], &fd) == ENODEV && fd == -1);
    CHECK(tb_file_of(getpid(), 1 << 20, &fd) == ENOENT && fd == -1);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(tb_file_of(getpid(), null, &fd) == ENODEV && fd == -1);
    int file = memfd_create("file", MFD_CLOEXEC);
    CHECK(tb_file_of(getpid(), file, &fd) == 0 && fd >= 0);
    close(fd);
    close(file);
    close(null);
    close(ends[0]);
    close(ends[1]);
}

int main(void) {
    int32_t shared;
    uint64_t address;
    tb_wire_region here = {.memory = TB_MEMORY_HOST, .bytes = BYTES};
    test_files();
    test_echo(AS_SAID, &here, NULL);
    test_echo(STDERR_FILENO, &here, NULL);
    test_echo(-1, &here, NULL);
    /* Shared memory of this process, named as it is. */
    CHECK(tb_shared_create("secret", BYTES, &shared, &address, NULL) == TB_OK);
    struct stat status;
    CHECK(fstat(shared, &status) == 0);
    tb_wire_region region = {.memory = TB_MEMORY_SHARED, .bytes = BYTES};
    tb_shm_file file = {.descriptor = shared,
                        .device = status.st_dev,
                        .inode = status.st_ino,
                        .bytes = BYTES,
                        .region_bytes = BYTES};
    test_echo(AS_SAID, &region, &file);
    test_echo(shared, &region, &file);
    test_other_answers();
    test_other_nonce();
    test_other_session();
    test_no_such_memory(0);
    test_no_such_memory(8);
    test_no_such_memory(UINT64_MAX - BYTES / 2);
    test_no_such_memory(0xffff800000000000);
    test_forced_stream();
    close(shared);
    return 0;
}
