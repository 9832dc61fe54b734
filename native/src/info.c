#include "tensorbus.h"

uint32_t tb_abi_version(void) {
    return TB_ABI_VERSION;
}

#if defined(__clang__)
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

const char *tb_build_info(void) {
    return COMPILER;
}
