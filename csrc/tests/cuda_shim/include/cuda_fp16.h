// SPDX-License-Identifier: MIT
// Stands in for CUDA's cuda_fp16.h. The compiler's own half type converts, to nearest even. Of the
// constructors only the one from float is here, and explicit: others do not compile.
#pragma once

#include <cstdint>

struct __half {
  uint16_t bits;

  __half() = default;
  explicit __half(float x);
  template <typename T>
  explicit __half(T) = delete;
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
  const uint16_t nan = 0x7fff;  // the GPU's canonical one
  return x != x ? __builtin_bit_cast(__half, nan)
                : __builtin_bit_cast(__half, static_cast<Native>(x));
}
inline __half::__half(float x) : bits(__float2half_rn(x).bits) {}
inline __half __float2half(float x) {
  return __float2half_rn(x);
}

inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}
