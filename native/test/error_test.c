/* tb_fail: what it fills, and where it cuts. */
#include <errno.h>

#include "check.h"
#include "base/error.h"

static void fills(void) {
    tb_error err;
    memset(&err, 0xff, sizeof err);
    CHECK(tb_fail(&err, TB_EPEER_LOST, 7, 0, "rank %d is gone", 7) == TB_EPEER_LOST, "its code");
    CHECK(err.code == TB_EPEER_LOST && err.rank == 7 && err.os_errno == 0 && err.reserved == 0, "its fields");
    CHECK(strcmp(err.message, "rank 7 is gone") == 0, "%s", err.message);
    CHECK(tb_fail(&err, TB_ESYSTEM, -1, ENOENT, "open") == TB_ESYSTEM, "its code");
    CHECK(err.os_errno == ENOENT && err.rank == -1, "its fields");
    CHECK(strcmp(err.message, "open: No such file or directory") == 0, "%s", err.message);
    CHECK(tb_fail(NULL, TB_EBUSY, -1, 0, "nobody listens") == TB_EBUSY, "without an error");
}

/* Text of three-byte characters, at every place in one: the cut leaves whole ones. */
static void cuts(void) {
    for (size_t lead = 0; lead < 3; lead++) {
        char text[700];
        memset(text, 'a', lead);
        for (size_t at = lead; at < sizeof text - 4; at += 3) {
            memcpy(text + at, "\xe2\x82\xac", 4);
        }
        tb_error err;
        tb_fail(&err, TB_ESYSTEM, -1, 0, "%s", text);
        size_t length = strlen(err.message);
        CHECK(length <= sizeof err.message - 1 && length > sizeof err.message - 4, "%zu bytes", length);
        CHECK((length - lead) % 3 == 0, "%zu bytes after %zu", length, lead);
        tb_fail(&err, TB_ESYSTEM, -1, ENOENT, "%.490s", text);
        CHECK(strlen(err.message) < sizeof err.message, "with the text of an errno");
    }
}

int main(void) {
    fills();
    cuts();
    return 0;
}
