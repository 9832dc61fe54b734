/* What this build and this processor are. No lock is needed. */
#include <pthread.h>
#include <stdio.h>

#include "kernels/isa.h"
#include "tensorbus.h"

uint32_t tb_abi_version(void) {
    return TB_ABI_VERSION;
}

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static pthread_once_t described = PTHREAD_ONCE_INIT;
static char description[192];

static void describe(void) {
    snprintf(description, sizeof description, "%s, vectors %s, CRC-32C by %s", COMPILER,
             tb_isa_name(tb_isa_level()), tb_crc_name(tb_crc_level()));
}

const char *tb_build_info(void) {
    pthread_once(&described, describe);
    return description;
}
