/* Filling tb_error. No lock is needed. */
/* Asks for strerror_r as POSIX has it: GNU's own form of it gives something else. */
#undef _GNU_SOURCE
#define _POSIX_C_SOURCE 200809L
#include "base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

/* Takes off the beginning of a UTF-8 character whose end did not fit. */
static void cut_at_character(char *text, size_t length) {
    size_t start = length;
    while (start > 0 && length - start < 4 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) {
        start--;
    }
    if (start == 0) {
        return;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t needs = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (length - start + 1 < needs) {
        text[start - 1] = '\0';
    }
}

int32_t tb_fail(tb_error *err, int32_t code, int32_t rank, int os_errno, const char *fmt, ...) {
    if (err == NULL) {
        return code;
    }
    memset(err, 0, sizeof *err);
    err->code = code;
    err->rank = rank;
    err->os_errno = os_errno;
    va_list args;
    va_start(args, fmt);
    int length = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    if (length < 0) {
        err->message[0] = '\0';
        return code;
    }
    size_t room = sizeof err->message;
    if ((size_t)length < room && os_errno != 0) {
        char text[128];
        if (strerror_r(os_errno, text, sizeof text) != 0) {
            snprintf(text, sizeof text, "error %d", os_errno);
        }
        length += snprintf(err->message + length, room - (size_t)length, ": %s", text);
        struct rlimit limit;
        if (os_errno == EMFILE && (size_t)length < room && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
            length += snprintf(err->message + length, room - (size_t)length,
                               " (this process may have %llu: raise `ulimit -n`)", (unsigned long long)limit.rlim_cur);
        }
    }
    if ((size_t)length >= room) {
        cut_at_character(err->message, room - 1);
    }
    return code;
}
