/*
 * What follows is compiled for AVX-512, up to isa_end.h. Included last: headers of the system must not fall
 * under it.
 */
#if defined(__clang__)
#pragma clang attribute push(                                                                                \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,bmi,bmi2"))), apply_to = function)
#else
/* gcc would take vectors of 256 bits unless it is told not to. */
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c,bmi,bmi2,prefer-vector-width=512")
#endif
