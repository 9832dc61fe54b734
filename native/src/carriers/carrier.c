/* Which carrier a pair gets, and who this process is to others. */
#include "carriers/carrier.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "carriers/book.h"
#include "base/error.h"
#include "base/handle.h"

const tb_carrier *const tb_carriers[TB_CARRIERS] = {
    [TB_CARRIER_SHM] = &tb_carrier_shm,
    [TB_CARRIER_CUDA_IPC] = &tb_carrier_cuda_ipc,
};

/* ---- selection ----------------------------------------------------------------------------------------- */

/* What selection knows of each carrier, whether it is built in or not. */
typedef struct rule {
    enum tb_carrier_number number;
    const char *name;
    uint32_t memory;
    bool same_host, checksums;
    bool library; /* NCCL's: of one version at both, and for different GPUs */
} rule;

/* The first that can. */
static const rule rules[] = {
    {TB_CARRIER_CUDA_IPC, "cuda-ipc", TB_MEMORY_CUDA, true, false, false},
    {TB_CARRIER_SHM, "shm", TB_MEMORY_HOST | TB_MEMORY_SHARED, true, false, false},
    {TB_CARRIER_NCCL, "nccl", TB_MEMORY_CUDA, false, false, true},
    {TB_CARRIER_STREAM, "stream", TB_MEMORY_HOST | TB_MEMORY_SHARED, false, true, false},
};

static uint32_t allowed(const tb_wire_identity *identity) {
    return identity->carriers == 0 ? TB_CARRY_STREAM : identity->carriers;
}

/* memory: of both. */
static const char *unreached(uint32_t memory) {
    bool cuda = (memory & TB_MEMORY_CUDA) != 0;
    bool host = (memory & ~(uint32_t)TB_MEMORY_CUDA) != 0;
    return cuda && host ? "tensors of one lie in CUDA memory and those of the other in memory of the host"
           : cuda       ? "tensors lie in CUDA memory, which it does not reach"
                        : "tensors lie in memory of the host, which it does not reach";
}

static const char shares[] = "the two share a GPU";

/* Of the library that both must have; words: room for what it says. */
static const char *library_lacks(const tb_wire_identity *a, const tb_wire_identity *b, char *words, size_t size) {
    if (a->nccl == 0 || b->nccl == 0) {
        return "one of the two has not loaded the library";
    }
    if (a->nccl != b->nccl) {
        snprintf(words, size, "one has version %u.%u.%u and the other %u.%u.%u", a->nccl / 10000, a->nccl / 100 % 100,
                 a->nccl % 100, b->nccl / 10000, b->nccl / 100 % 100, b->nccl % 100);
        return words;
    }
    bool may_share = (a->carriers & b->carriers & TB_CARRY_SHARED_GPU) != 0;
    return !may_share && memcmp(a->device, b->device, sizeof a->device) == 0 ? shares : NULL;
}

/* What keeps the two from using it; NULL where nothing does. */
static const char *lacks(const rule *rule, const tb_wire_identity *a, const tb_wire_identity *b, uint32_t flags,
                         char *words, size_t size) {
    uint32_t bit = 1u << rule->number;
    if ((allowed(a) & bit) == 0 || (allowed(b) & bit) == 0) {
        return "one of the two does not use it";
    }
    if (((a->memory | b->memory) & ~rule->memory) != 0) {
        return unreached(a->memory | b->memory);
    }
    if ((flags & TB_TRANSFER_CHECKSUM) != 0 && !rule->checksums) {
        return "it makes no checksums";
    }
    if (rule->same_host && memcmp(a->boot, b->boot, sizeof a->boot) != 0) {
        return "the two are on different hosts";
    }
    if (rule->same_host && a->pid_space != b->pid_space) {
        return "the two are in different PID namespaces";
    }
    if (rule->same_host && a->user != b->user) {
        return "the two belong to different users";
    }
    return rule->library ? library_lacks(a, b, words, size) : NULL;
}

int32_t tb_carrier_select(const tb_wire_identity *lower, const tb_wire_identity *higher, uint32_t flags,
                          enum tb_carrier_number *carrier, tb_error *err) {
    char why[240] = "";
    char words[80];
    size_t length = 0;
    int32_t code = TB_EUNSUPPORTED;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const char *lack = lacks(&rules[i], lower, higher, flags, words, sizeof words);
        if (lack == NULL) {
            *carrier = rules[i].number;
            return TB_OK;
        }
        code = lack == shares ? TB_EDEVICE_SHARED : code;
        /* A carrier that neither of them speaks of is nothing that lacks. */
        if (((allowed(lower) | allowed(higher)) >> rules[i].number & 1) != 0 && length < sizeof why) {
            int more = snprintf(why + length, sizeof why - length, "%s%s: %s", length == 0 ? "" : "; ",
                                rules[i].name, lack);
            length += more > 0 ? (size_t)more : 0;
        }
    }
    return tb_fail(err, code, -1, 0, "no way between the two: %s", why);
}

/* ---- who we are ---------------------------------------------------------------------------------------- */

static bool read_text(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t got = read(fd, text, size - 1);
    close(fd);
    text[got < 0 ? 0 : got] = '\0';
    return got > 0;
}

/* "xxxxxxxx-xxxx-…": 32 digits and dashes. */
static bool parse_uuid(const char *text, uint8_t out[16]) {
    int digits = 0;
    memset(out, 0, 16);
    for (; *text != '\0' && *text != '\n' && digits < 32; text++) {
        if (*text == '-') {
            continue;
        }
        char digit[2] = {*text, '\0'};
        char *end;
        unsigned long value = strtoul(digit, &end, 16);
        if (*end != '\0') {
            return false;
        }
        out[digits / 2] = (uint8_t)(out[digits / 2] << 4 | value);
        digits++;
    }
    return digits == 32;
}

/*
 * The 22nd field of /proc/PID/stat, and the state, which is the third. The second is a name in brackets that
 * may hold anything.
 */
static bool read_start(int32_t pid, uint64_t *start, char *state) {
    char path[64];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    if (!read_text(path, text, sizeof text)) {
        return false;
    }
    const char *at = strrchr(text, ')');
    if (at == NULL || at[1] == '\0') {
        return false;
    }
    *state = at[2];
    for (int field = 2; field < 22 && at != NULL; field++) {
        at = strchr(at + 1, ' ');
    }
    *start = at == NULL ? 0 : strtoull(at, NULL, 10);
    return at != NULL;
}

int32_t tb_host_identify(tb_session *session, tb_error *err) {
    tb_wire_identity *identity = &session->identity;
    uint32_t shared = session->options.carriers & TB_CARRY_SHARED_GPU;
    uint32_t asked = session->options.carriers & ~(uint32_t)(TB_CARRY_APART | TB_CARRY_SHARED_GPU);
    uint32_t built = TB_CARRY_STREAM | TB_CARRY_NCCL;
    for (int i = 1; i < TB_CARRIERS; i++) {
        built |= tb_carriers[i] != NULL ? 1u << i : 0;
    }
    if ((asked & ~built) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "carriers %x, of which this build has %x", asked, built);
    }
    identity->carriers = (asked == 0 ? TB_CARRY_STREAM : asked) | shared;
    identity->pid = getpid();
    identity->user = geteuid();
    identity->book = -1;
    memcpy(identity->device, session->options.device, sizeof identity->device);
    if ((asked & ~(uint32_t)TB_CARRY_STREAM) == 0) {
        return TB_OK;
    }
    char boot[64];
    char state;
    struct stat space;
    if (!read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot) || !parse_uuid(boot, identity->boot)
        || stat("/proc/self/ns/pid", &space) != 0 || !read_start(identity->pid, &identity->pid_start, &state)) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, errno, "/proc does not say who this process is");
    }
    identity->pid_space = space.st_ino;
    if ((asked & TB_CARRY_SHM) == 0) {
        return TB_OK;
    }
    int32_t code = tb_book_create(session->options.world, &session->book, err);
    if (code == TB_OK) {
        identity->book = tb_book_file(session->book);
    }
    return code;
}

int32_t tb_session_identity(uint64_t handle, uint8_t identity[TB_IDENTITY_BYTES], tb_error *err) {
    _Static_assert(sizeof(tb_wire_identity) == TB_IDENTITY_BYTES, "identity");
    tb_session *session = tb_handle_get(TB_HANDLE_SESSION, handle, err);
    if (session == NULL) {
        return TB_ECLOSED;
    }
    memcpy(identity, &session->identity, sizeof session->identity);
    tb_handle_put(handle);
    return TB_OK;
}

int32_t tb_identity_read(const uint8_t identity[TB_IDENTITY_BYTES], uint32_t *carriers, uint8_t gpu[32],
                         tb_error *err) {
    tb_wire_identity read;
    (void)err;
    memcpy(&read, identity, sizeof read);
    *carriers = read.carriers;
    memcpy(gpu, read.boot, sizeof read.boot);
    memcpy(gpu + sizeof read.boot, read.device, sizeof read.device);
    return TB_OK;
}

int32_t tb_carrier_between(const uint8_t one[TB_IDENTITY_BYTES], const uint8_t other[TB_IDENTITY_BYTES],
                           uint32_t memory, uint32_t flags, uint32_t *carrier, tb_error *err) {
    tb_wire_identity hosts[2];
    enum tb_carrier_number number = TB_CARRIER_STREAM;
    memcpy(&hosts[0], one, sizeof hosts[0]);
    memcpy(&hosts[1], other, sizeof hosts[1]);
    hosts[0].memory = memory;
    hosts[1].memory = memory;
    int32_t code = tb_carrier_select(&hosts[0], &hosts[1], flags, &number, err);
    *carrier = number;
    return code;
}

bool tb_identity_lives(const tb_wire_identity *identity) {
    uint64_t start;
    char state;
    return read_start(identity->pid, &start, &state) && start == identity->pid_start && state != 'Z' && state != 'X';
}
