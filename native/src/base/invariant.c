/* The end of a process that is not what it should be. No lock is needed. */
#include "base/invariant.h"

#include <stdio.h>
#include <stdlib.h>

void tb_invariant_broken(const char *file, int line, const char *condition) {
    fprintf(stderr,
            "tensorbus: %s:%d: \"%s\" does not hold. This is a fault in tensorbus, and going on could damage tensors, "
            "so this "
            "process ends. Please report it with this line.\n",
            file, line, condition);
    fflush(stderr);
    abort();
}
