/* Which vectors the processor has, asked once. No lock is needed. */
#include "kernels/isa.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

static pthread_once_t detected = PTHREAD_ONCE_INIT;
static tb_isa found_level;
static tb_crc_isa found_crc;
static atomic_int level_limit = TB_ISA_COUNT - 1;
static atomic_int crc_limit = TB_CRC_COUNT - 1;

#if defined(__x86_64__)

typedef struct leaf {
    uint32_t eax, ebx, ecx, edx;
} leaf;

static leaf read_leaf(uint32_t number) {
    leaf found = {0, 0, 0, 0};
    __get_cpuid_count(number, 0, &found.eax, &found.ebx, &found.ecx, &found.edx);
    return found;
}

/* The registers that the operating system saves when it switches threads. */
static uint32_t saved_registers(void) {
    uint32_t low;
    uint32_t high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void detect(void) {
    leaf features = read_leaf(1);
    leaf more = read_leaf(7);
    uint32_t saved = (features.ecx & bit_OSXSAVE) != 0 ? saved_registers() : 0;
    bool avx2 = (saved & 0x06) == 0x06 && (features.ecx & bit_AVX) != 0 && (features.ecx & bit_F16C) != 0
                && (more.ebx & bit_AVX2) != 0;
    uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    bool avx512 = avx2 && (saved & 0xe6) == 0xe6 && (more.ebx & wide) == wide;
    bool crc = (features.ecx & bit_SSE4_2) != 0;
    bool folding = crc && avx512 && (features.ecx & bit_PCLMUL) != 0 && (more.ecx & bit_VPCLMULQDQ) != 0;
    found_level = avx512 ? TB_ISA_AVX512 : avx2 ? TB_ISA_AVX2 : TB_ISA_BASE;
    found_crc = folding ? TB_CRC_FOLDING : crc ? TB_CRC_INSTRUCTION : TB_CRC_TABLES;
}

#elif defined(__aarch64__)

static void detect(void) {
    const unsigned long crc32 = 1ul << 7; /* HWCAP_CRC32 */
    found_level = TB_ISA_BASE;
    found_crc = (getauxval(AT_HWCAP) & crc32) != 0 ? TB_CRC_INSTRUCTION : TB_CRC_TABLES;
}

#else

static void detect(void) {
    found_level = TB_ISA_BASE;
    found_crc = TB_CRC_TABLES;
}

#endif

tb_isa tb_isa_level(void) {
    pthread_once(&detected, detect);
    int limit = atomic_load_explicit(&level_limit, memory_order_relaxed);
    return (int)found_level < limit ? found_level : (tb_isa)limit;
}

void tb_isa_limit(tb_isa level) {
    atomic_store_explicit(&level_limit, (int)level, memory_order_relaxed);
}

const char *tb_isa_name(tb_isa level) {
#if defined(__aarch64__)
    static const char *const names[TB_ISA_COUNT] = {"NEON", "NEON", "NEON"};
#elif defined(__x86_64__)
    static const char *const names[TB_ISA_COUNT] = {"SSE2", "AVX2", "AVX-512"};
#else
    static const char *const names[TB_ISA_COUNT] = {"scalar", "scalar", "scalar"};
#endif
    return names[level];
}

tb_crc_isa tb_crc_level(void) {
    pthread_once(&detected, detect);
    int limit = atomic_load_explicit(&crc_limit, memory_order_relaxed);
    return (int)found_crc < limit ? found_crc : (tb_crc_isa)limit;
}

void tb_crc_limit(tb_crc_isa level) {
    atomic_store_explicit(&crc_limit, (int)level, memory_order_relaxed);
}

const char *tb_crc_name(tb_crc_isa level) {
    static const char *const names[TB_CRC_COUNT] = {"tables", "instruction", "folding"};
    return names[level];
}
