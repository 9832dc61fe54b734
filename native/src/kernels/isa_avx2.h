/*
 * What follows is compiled for AVX2, up to isa_end.h. Included last: headers of the system must not fall
 * under it.
 */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,bmi,bmi2")
#endif
