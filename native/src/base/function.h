/* A function of a header that the kernels for CUDA share (native/cuda). */
#ifndef TB_FUNCTION_H
#define TB_FUNCTION_H

#if defined(__CUDACC__)
#define TB_FUNCTION static __device__ __forceinline__
#else
#define TB_FUNCTION static inline
#endif

#endif
