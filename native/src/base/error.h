/* Filling tb_error: the one way in which native code reports a failure. */
#ifndef TB_ERROR_H
#define TB_ERROR_H

#include <stdint.h>

#include "tensorbus.h"

/*
 * Fills *err, which may be NULL, and returns code. rank: where the failure began, or -1. os_errno: the errno
 * behind it, whose text is appended to the message, or 0. A message that does not fit is cut at a character.
 */
int32_t tb_fail(tb_error *err, int32_t code, int32_t rank, int os_errno, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

#endif
