/*
 * Loads UCX as the library does, and makes a context: says what is another than before of the handlers of signals, and of
 * libc's code, which UCX patches to see memory come and go.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "tensorbus.h"

enum { CODE_BYTES = 16 };

static void handler(int number) {
    (void)number;
}

int main(void) {
    void *(*volatile map)(void *, size_t, int, int, int, off_t) = mmap;
    int (*volatile unmap)(void *, size_t) = munmap;
    unsigned char code[2][CODE_BYTES];
    struct sigaction before[NSIG], after;
    uint32_t version, speaks;
    tb_error error;
    signal(SIGSEGV, handler);
    memcpy(code[0], (const void *)(size_t)map, CODE_BYTES);
    memcpy(code[1], (const void *)(size_t)unmap, CODE_BYTES);
    for (int i = 1; i < NSIG; i++) {
        memset(&before[i], 0, sizeof before[i]);
        sigaction(i, NULL, &before[i]);
    }
    if (tb_ucx_query(NULL, NULL, &version, &speaks, &error) != 0) {
        printf("failed: %s\n", error.message);
        return 1;
    }
    for (int i = 1; i < NSIG; i++) {
        if (sigaction(i, NULL, &after) == 0 && after.sa_handler != before[i].sa_handler) {
            printf("signal %d\n", i);
        }
    }
    if (memcmp(code[0], (const void *)(size_t)map, CODE_BYTES) != 0) {
        printf("mmap\n");
    }
    if (memcmp(code[1], (const void *)(size_t)unmap, CODE_BYTES) != 0) {
        printf("munmap\n");
    }
    printf("version %u\n", version);
    return 0;
}
