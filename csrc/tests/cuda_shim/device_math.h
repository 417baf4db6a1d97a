// SPDX-License-Identifier: MIT
// CUDA's arithmetic built-ins that the C++ library does not have under the same name.
#pragma once

#include <cmath>
#include <cstdint>

using std::isfinite;
using std::isinf;
using std::isnan;

// Overloads as CUDA has them, so that mixed arguments are as ambiguous here as there.
#define FASTCONV_SHIM_MIN_MAX(T) \
  constexpr T min(T a, T b) {    \
    return b < a ? b : a;        \
  }                              \
  constexpr T max(T a, T b) {    \
    return a < b ? b : a;        \
  }
FASTCONV_SHIM_MIN_MAX(int)
FASTCONV_SHIM_MIN_MAX(unsigned)
FASTCONV_SHIM_MIN_MAX(long)
FASTCONV_SHIM_MIN_MAX(unsigned long)
FASTCONV_SHIM_MIN_MAX(long long)
FASTCONV_SHIM_MIN_MAX(unsigned long long)
#undef FASTCONV_SHIM_MIN_MAX
inline float min(float a, float b) {
  return std::fmin(a, b);
}
inline float max(float a, float b) {
  return std::fmax(a, b);
}
inline double min(double a, double b) {
  return std::fmin(a, b);
}
inline double max(double a, double b) {
  return std::fmax(a, b);
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline double __dadd_rn(double x, double y) {
  return x + y;
}
inline double __dmul_rn(double x, double y) {
  return x * y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}

inline unsigned __float_as_uint(float x) {
  return __builtin_bit_cast(unsigned, x);
}
inline int __float_as_int(float x) {
  return __builtin_bit_cast(int, x);
}
inline float __uint_as_float(unsigned x) {
  return __builtin_bit_cast(float, x);
}
inline float __int_as_float(int x) {
  return __builtin_bit_cast(float, x);
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(Wide{a} * b >> 64);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}

template <typename T>
inline T __ldg(const T* p) {
  return *p;
}
