/* Which carrier a pair gets, and who this process is to others. */
#include "carrier.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

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
    bool other_device; /* only between different GPUs */
} rule;

/* The first that can. */
static const rule rules[] = {
    {TB_CARRIER_CUDA_IPC, "cuda-ipc", TB_MEMORY_CUDA, true, false, false},
    {TB_CARRIER_SHM, "shm", TB_MEMORY_HOST | TB_MEMORY_SHARED, true, false, false},
    {TB_CARRIER_NCCL, "nccl", TB_MEMORY_CUDA, false, false, true},
    {TB_CARRIER_STREAM, "stream", TB_MEMORY_HOST | TB_MEMORY_SHARED, false, true, false},
};

static uint32_t allowed(const tb_wire_host *host) {
    return host->carriers == 0 ? TB_CARRY_STREAM : host->carriers;
}

/* memory: of both. */
static const char *unreached(uint32_t memory) {
    bool cuda = (memory & TB_MEMORY_CUDA) != 0;
    bool host = (memory & ~(uint32_t)TB_MEMORY_CUDA) != 0;
    return cuda && host ? "tensors of one lie in CUDA memory and those of the other in memory of the host"
           : cuda       ? "tensors lie in CUDA memory, which it does not reach"
                        : "tensors lie in memory of the host, which it does not reach";
}

/* What keeps the two from using it; NULL where nothing does. */
static const char *lacks(const rule *rule, const tb_wire_host *a, const tb_wire_host *b, uint32_t flags) {
    uint32_t bit = 1u << rule->number;
    if ((allowed(a) & bit) == 0 || (allowed(b) & bit) == 0) {
        return "one of the two does not use it";
    }
    if (((a->memory | b->memory) & ~rule->memory) != 0) {
        return unreached(a->memory | b->memory);
    }
    if ((flags & TB_GRAPH_CHECKSUM) != 0 && !rule->checksums) {
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
    if (rule->other_device && memcmp(a->device, b->device, sizeof a->device) == 0) {
        return "the two share a GPU";
    }
    return NULL;
}

int32_t tb_carrier_select(const tb_wire_host *lower, const tb_wire_host *higher, uint32_t flags,
                          enum tb_carrier_number *carrier, tb_error *err) {
    char why[240] = "";
    size_t length = 0;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        const char *lack = lacks(&rules[i], lower, higher, flags);
        if (lack == NULL) {
            *carrier = rules[i].number;
            return TB_OK;
        }
        /* A carrier that neither of them speaks of is nothing that lacks. */
        if (((allowed(lower) | allowed(higher)) >> rules[i].number & 1) != 0 && length < sizeof why) {
            int more = snprintf(why + length, sizeof why - length, "%s%s: %s", length == 0 ? "" : "; ",
                                rules[i].name, lack);
            length += more > 0 ? (size_t)more : 0;
        }
    }
    return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "no way between the two: %s", why);
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
    tb_wire_host *host = &session->host;
    uint32_t asked = session->options.carriers & ~(uint32_t)TB_CARRY_APART;
    uint32_t built = TB_CARRY_STREAM;
    for (int i = 1; i < TB_CARRIERS; i++) {
        built |= tb_carriers[i] != NULL ? 1u << i : 0;
    }
    if ((asked & ~built) != 0) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, 0, "carriers %x, of which this build has %x", asked, built);
    }
    host->carriers = asked == 0 ? TB_CARRY_STREAM : asked;
    host->pid = getpid();
    host->user = geteuid();
    memcpy(host->device, session->options.device, sizeof host->device);
    if ((asked & ~(uint32_t)TB_CARRY_STREAM) == 0) {
        return TB_OK;
    }
    char boot[64];
    char state;
    struct stat space;
    if (!read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot) || !parse_uuid(boot, host->boot)
        || stat("/proc/self/ns/pid", &space) != 0 || !read_start(host->pid, &host->pid_start, &state)) {
        return tb_fail(err, TB_EUNSUPPORTED, -1, errno, "/proc does not say who this process is");
    }
    host->pid_space = space.st_ino;
    host->token_at = (uint64_t)(uintptr_t)host->token;
    if (getrandom(host->token, sizeof host->token, 0) != sizeof host->token) {
        return tb_fail(err, TB_ESYSTEM, -1, errno, "getrandom");
    }
    return TB_OK;
}

bool tb_host_lives(const tb_wire_host *host) {
    uint64_t start;
    char state;
    return read_start(host->pid, &start, &state) && start == host->pid_start && state != 'Z' && state != 'X';
}
