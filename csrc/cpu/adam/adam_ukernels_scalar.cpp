// SPDX-License-Identifier: MIT
// Adam kernels for scalar: a "vector" of one number, in plain C++.
#include <cmath>
#include <cstdint>

namespace {

template <typename T>
struct OneNumber {
  using Element = T;
  using State = T;
  using Reg = T;
  using Wide = double;
  static constexpr int kLanes = 1;

  static Reg set1(double x) { return static_cast<T>(x); }
  static Reg load(const T* p) { return *p; }
  static void store(T* p, Reg x) { *p = x; }
  static Reg load_first(const T* p, int64_t /*n*/) { return *p; }
  static void store_first(T* p, Reg x, int64_t /*n*/) { *p = x; }

  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg fnma(Reg a, Reg b, Reg c) { return c - a * b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg mul(Reg a, Reg b) { return a * b; }
  static Reg max_or_nan(Reg a, Reg b) { return a > b || a != a ? a : b; }
  static Reg ratio(Reg x, Reg v, Reg eps) { return x / (std::sqrt(v) + eps); }

  static Wide wide_zero() { return 0.0; }
  static void add_squares(Wide* sum, Reg x) {
    *sum += static_cast<double>(x) * static_cast<double>(x);
  }
  static double wide_total(Wide sum) { return sum; }
};

using VectorFloat32 = OneNumber<float>;
using VectorFloat64 = OneNumber<double>;

// Parameters and gradients are the upper halves of floats, averages whole ones.
struct VectorBfloat16 : VectorFloat32 {
  using Element = uint16_t;
  using VectorFloat32::load;
  using VectorFloat32::load_first;
  using VectorFloat32::store;
  using VectorFloat32::store_first;

  static Reg load(const uint16_t* p) {
    const uint32_t bits = static_cast<uint32_t>(*p) << 16;
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
  }
  // To the nearest, ties to even; a NaN stays one.
  static void store(uint16_t* p, Reg x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    bits = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
    *p = static_cast<uint16_t>(bits >> 16);
  }
  static Reg load_first(const uint16_t* p, int64_t /*n*/) { return load(p); }
  static void store_first(uint16_t* p, Reg x, int64_t /*n*/) { store(p, x); }
};

}  // namespace

#include "cpu/adam/adam_ukernels_impl.h"

namespace fastconv::cpu {

const AdamKernels kAdamKernelsScalar = kAdamKernels;

}  // namespace fastconv::cpu
