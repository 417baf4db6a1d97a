// SPDX-License-Identifier: MIT
// Adam kernels for avx2: 8 floats or 4 doubles per vector.
// clang-format off: the templates need the instruction set's vectors before them.
#include "cpu/simd/simd_avx2.h"
// clang-format on

#include <immintrin.h>

#include <cstdint>

namespace {

struct VectorFloat32 {
  using Element = float;
  using State = float;
  using Reg = __m256;
  struct Wide {
    __m256d low, high;
  };
  static constexpr int kLanes = 8;

  static Reg set1(double x) { return _mm256_set1_ps(static_cast<float>(x)); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static Reg load_first(const float* p, int64_t n) {
    return _mm256_maskload_ps(p, Simd::mask_first(n));
  }
  static void store_first(float* p, Reg x, int64_t n) {
    _mm256_maskstore_ps(p, Simd::mask_first(n), x);
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg fnma(Reg a, Reg b, Reg c) { return _mm256_fnmadd_ps(a, b, c); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg max_or_nan(Reg a, Reg b) { return Simd::max_or_nan(a, b); }
  static Reg ratio(Reg x, Reg v, Reg eps) {
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_sqrt_ps(v), eps));
  }

  static Wide wide_zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static void add_squares(Wide* sum, Reg x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    sum->low = _mm256_fmadd_pd(low, low, sum->low);
    sum->high = _mm256_fmadd_pd(high, high, sum->high);
  }
  static double wide_total(const Wide& sum) {
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_add_pd(sum.low, sum.high));
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};

struct VectorFloat64 {
  using Element = double;
  using State = double;
  using Reg = __m256d;
  using Wide = __m256d;
  static constexpr int kLanes = 4;

  static __m256i mask_first(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }

  static Reg set1(double x) { return _mm256_set1_pd(x); }
  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Reg x) { _mm256_storeu_pd(p, x); }
  static Reg load_first(const double* p, int64_t n) { return _mm256_maskload_pd(p, mask_first(n)); }
  static void store_first(double* p, Reg x, int64_t n) { _mm256_maskstore_pd(p, mask_first(n), x); }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static Reg fnma(Reg a, Reg b, Reg c) { return _mm256_fnmadd_pd(a, b, c); }
  static Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static Reg max_or_nan(Reg a, Reg b) {
    return _mm256_blendv_pd(_mm256_max_pd(a, b), a, _mm256_cmp_pd(a, a, _CMP_UNORD_Q));
  }
  static Reg ratio(Reg x, Reg v, Reg eps) {
    return _mm256_div_pd(x, _mm256_add_pd(_mm256_sqrt_pd(v), eps));
  }

  static Wide wide_zero() { return _mm256_setzero_pd(); }
  static void add_squares(Wide* sum, Reg x) { *sum = _mm256_fmadd_pd(x, x, *sum); }
  static double wide_total(Wide sum) {
    double lanes[4];
    _mm256_storeu_pd(lanes, sum);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
};

// Parameters and gradients are the upper halves of floats, averages whole ones.
struct VectorBfloat16 : VectorFloat32 {
  using Element = uint16_t;
  using VectorFloat32::load;
  using VectorFloat32::load_first;
  using VectorFloat32::store;
  using VectorFloat32::store_first;

  static Reg load(const uint16_t* p) { return Simd::load_bfloat16(p); }
  static void store(uint16_t* p, Reg x) { Simd::store_bfloat16(p, x); }
  static Reg load_first(const uint16_t* p, int64_t n) {
    uint16_t lanes[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
    return load(lanes);
  }
  static void store_first(uint16_t* p, Reg x, int64_t n) {
    uint16_t lanes[kLanes];
    store(lanes, x);
    for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
  }
};

}  // namespace

#include "cpu/adam/adam_ukernels_impl.h"

namespace fastconv::cpu {

const AdamKernels kAdamKernelsAvx2 = kAdamKernels;

}  // namespace fastconv::cpu
