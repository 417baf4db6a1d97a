// SPDX-License-Identifier: MIT
// Adam kernels for avx512: 16 floats or 8 doubles per vector.
// clang-format off: the templates need the instruction set's vectors before them.
#include "cpu/simd/simd_avx512.h"
// clang-format on

#include <immintrin.h>

#include <cstdint>

namespace {

struct VectorFloat32 {
  using Element = float;
  using State = float;
  using Reg = __m512;
  struct Wide {
    __m512d low, high;
  };
  static constexpr int kLanes = 16;

  static Reg set1(double x) { return _mm512_set1_ps(static_cast<float>(x)); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static Reg load_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(Simd::mask_first(n), p);
  }
  static void store_first(float* p, Reg x, int64_t n) {
    _mm512_mask_storeu_ps(p, Simd::mask_first(n), x);
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg fnma(Reg a, Reg b, Reg c) { return _mm512_fnmadd_ps(a, b, c); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg max_or_nan(Reg a, Reg b) { return Simd::max_or_nan(a, b); }

  static Reg ratio(Reg x, Reg v, Reg eps) {
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_sqrt_ps(v), eps));
  }

  static Wide wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static void add_squares(Wide* sum, Reg x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    sum->low = _mm512_fmadd_pd(low, low, sum->low);
    sum->high = _mm512_fmadd_pd(high, high, sum->high);
  }
  static double wide_total(const Wide& sum) {
    return _mm512_reduce_add_pd(_mm512_add_pd(sum.low, sum.high));
  }
};

struct VectorFloat64 {
  using Element = double;
  using State = double;
  using Reg = __m512d;
  using Wide = __m512d;
  static constexpr int kLanes = 8;

  static __mmask8 mask_first(int64_t n) { return static_cast<__mmask8>((uint32_t{1} << n) - 1); }

  static Reg set1(double x) { return _mm512_set1_pd(x); }
  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Reg x) { _mm512_storeu_pd(p, x); }
  static Reg load_first(const double* p, int64_t n) {
    return _mm512_maskz_loadu_pd(mask_first(n), p);
  }
  static void store_first(double* p, Reg x, int64_t n) {
    _mm512_mask_storeu_pd(p, mask_first(n), x);
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static Reg fnma(Reg a, Reg b, Reg c) { return _mm512_fnmadd_pd(a, b, c); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static Reg max_or_nan(Reg a, Reg b) {
    return _mm512_mask_mov_pd(_mm512_max_pd(a, b), _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q), a);
  }
  static Reg ratio(Reg x, Reg v, Reg eps) {
    return _mm512_div_pd(x, _mm512_add_pd(_mm512_sqrt_pd(v), eps));
  }

  static Wide wide_zero() { return _mm512_setzero_pd(); }
  static void add_squares(Wide* sum, Reg x) { *sum = _mm512_fmadd_pd(x, x, *sum); }
  static double wide_total(Wide sum) { return _mm512_reduce_add_pd(sum); }
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
    return Simd::widen_bfloat16(_mm256_maskz_loadu_epi16(Simd::mask_first(n), p));
  }
  static void store_first(uint16_t* p, Reg x, int64_t n) {
    _mm256_mask_storeu_epi16(p, Simd::mask_first(n), Simd::narrow_bfloat16(x));
  }
};

}  // namespace

#include "cpu/adam/adam_ukernels_impl.h"

namespace fastconv::cpu {

const AdamKernels kAdamKernelsAvx512 = kAdamKernels;

}  // namespace fastconv::cpu
