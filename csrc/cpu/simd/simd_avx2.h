// SPDX-License-Identifier: MIT
// One vector of float32 on AVX2 + FMA. Same interface as simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
  using Reg = __m256;
  using Mask = __m256i;  // all ones or all zeros per lane
  static constexpr int kLanes = 8;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }

  // Lanes outside the mask read as zero; memory outside the mask is not touched.
  static Reg load_masked(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static void store_masked(float* p, Reg x, Mask m) { _mm256_maskstore_ps(p, m, x); }

  // Lanes [0, n), 0 <= n <= kLanes.
  static Mask mask_first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane_numbers());
  }
  // Lanes [begin, end), 0 <= begin <= end <= kLanes.
  static Mask mask_range(int64_t begin, int64_t end) {
    return _mm256_andnot_si256(mask_first(begin), mask_first(end));
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }

  // Sum of all lanes, pairwise.
  static float reduce_add(Reg x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  // Lanes 0, 2, 4, ... of the 2 * kLanes floats in (low, high).
  static Reg even_lanes(Reg low, Reg high) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
  }

  // Lanes of a and b in turns: a0 b0 a1 b1 ...
  static void interleave(Reg a, Reg b, Reg* low, Reg* high) {
    const __m256 x = _mm256_unpacklo_ps(a, b), y = _mm256_unpackhi_ps(a, b);
    *low = _mm256_permute2f128_ps(x, y, 0x20);
    *high = _mm256_permute2f128_ps(x, y, 0x31);
  }

  // rows[i][j] <-> rows[j][i] of an 8 x 8 block held in registers: three rounds of 8 shuffles.
  static void transpose(Reg rows[kLanes]) {
    Reg t[kLanes];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      rows[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      rows[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      rows[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      rows[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x20);
      t[4 + j] = _mm256_permute2f128_ps(rows[j], rows[4 + j], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; ++i) rows[i] = t[i];
  }

 private:
  static __m256i lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
};

}  // namespace
