// SPDX-License-Identifier: MIT
// Stands in for CUDA's cuda_fp16.h. The compiler's own half type converts, to nearest even.
#pragma once

#include <cstdint>

struct __half {
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x;
  __half y;
};

inline float __half2float(__half x) {
  __extension__ using Native = _Float16;
  return static_cast<float>(__builtin_bit_cast(Native, x.bits));
}

inline __half __float2half_rn(float x) {
  __extension__ using Native = _Float16;
  if (x != x) return {0x7fff};  // the GPU's canonical NaN
  return {__builtin_bit_cast(uint16_t, static_cast<Native>(x))};
}
inline __half __float2half(float x) {
  return __float2half_rn(x);
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
