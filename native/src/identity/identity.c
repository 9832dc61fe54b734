/* This process as others know it, and whether another one is still there. No lock is needed. */
#include "identity/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

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

int32_t tb_identity_fill(tb_wire_identity *identity, tb_error *err) {
    char boot[64];
    char state;
    struct stat space;
    if (!read_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot) || !parse_uuid(boot, identity->boot)
        || stat("/proc/self/ns/pid", &space) != 0 || !read_start(identity->pid, &identity->pid_start, &state)) {
        int32_t code = errno == EMFILE || errno == ENFILE ? TB_ESYSTEM : TB_EUNSUPPORTED;
        return tb_fail(err, code, -1, errno, "/proc does not say who this process is");
    }
    identity->pid_space = space.st_ino;
    return TB_OK;
}

bool tb_identity_lives(const tb_wire_identity *identity) {
    uint64_t start;
    char state;
    return read_start(identity->pid, &start, &state) && start == identity->pid_start && state != 'Z' && state != 'X';
}

bool tb_identity_may_live(const tb_wire_identity *own, const tb_wire_identity *other) {
    bool seen_here = memcmp(own->boot, other->boot, sizeof own->boot) == 0 && own->pid_space == other->pid_space;
    return !seen_here || tb_identity_lives(other);
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
