// SPDX-License-Identifier: MIT
// One vector of float32 on AVX-512 (F, DQ, BW, VL). Same interface as simd_avx2.h and
// simd_scalar.h; exactly one of the three is included per translation unit, everything has internal
// linkage.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
  using Reg = __m512;
  using Mask = __mmask16;
  using Ints = __m512i;  // one int32_t per lane
  static constexpr int kLanes = 16;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(float x) { return _mm512_set1_ps(x); }
  // p[0] in the even lanes, p[1] in the odd ones.
  static Reg set_pair(const float* p) {
    double bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _mm512_castpd_ps(_mm512_set1_pd(bits));
  }
  // Lanes 0 and 1 exchanged, 2 and 3, and so on.
  static Reg swap_pairs(Reg x) { return _mm512_permute_ps(x, 0xB1); }
  // The even lanes of x, the odd lanes of y.
  static Reg blend_odd(Reg x, Reg y) { return _mm512_mask_mov_ps(x, 0xAAAA, y); }
  // Makes the compiler forget that a value came from memory. GCC would otherwise load it again in
  // every multiply-add that uses it, which costs two loads where it crosses a cache line.
  static void keep(Reg& x) { asm("" : "+v"(x)); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  // Past the caches, without reading the line first; p is aligned to the vector. Other threads may
  // read what was written after stream_fence().
  static void stream(float* p, Reg x) { _mm512_stream_ps(p, x); }
  static void stream_fence() { _mm_sfence(); }

  // bfloat16, the upper halves of floats; narrowed to the nearest, ties to even, a NaN stays one.
  static Reg widen_bfloat16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static __m256i narrow_bfloat16(Reg x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits,
                                   _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  static Reg load_bfloat16(const uint16_t* p) {
    return widen_bfloat16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Reg x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bfloat16(x));
  }

  // Lanes outside the mask read as zero; memory outside the mask is not touched.
  static Reg load_masked(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static void store_masked(float* p, Reg x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }

  // As load_masked, but lanes outside the mask read as `fill`.
  static Reg load_masked_or(const float* p, Mask m, Reg fill) {
    return _mm512_mask_loadu_ps(fill, m, p);
  }
  // p[0], p[step], p[2 * step], ...; lanes outside the mask read as `fill` and touch no memory.
  // Positions inside the mask fit 31 bits.
  static Reg load_strided_or(const float* p, int64_t step, Mask m, Reg fill) {
    const __m512i index =
        _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(static_cast<int>(step)));
    return _mm512_mask_i32gather_ps(fill, m, index, p, sizeof(float));
  }

  // Lanes [0, n), 0 <= n <= kLanes.
  static Mask mask_first(int64_t n) { return static_cast<Mask>((uint32_t{1} << n) - 1); }
  // Lanes [begin, end), 0 <= begin <= end <= kLanes.
  static Mask mask_range(int64_t begin, int64_t end) {
    return static_cast<Mask>(mask_first(end) & ~mask_first(begin));
  }

  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }

  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }

  // The second operand where either is NaN.
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  // To the nearest integer, ties to even; |x| < 2^22.
  static Reg round(Reg x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Reg abs(Reg x) { return _mm512_abs_ps(x); }
  // The magnitude of x, the sign of y.
  static Reg copy_sign(Reg x, Reg y) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(y), _mm512_castps_si512(x), 0xca));
  }
  // x * 2^n for integers n in [-152, 130].
  static Reg times_power_of_two(Reg x, Reg n) { return _mm512_scalef_ps(x, n); }

  // Lanes in which x > y or x is NaN.
  static Mask greater_or_nan(Reg x, Reg y) {
    return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  }
  // The other lanes: in one comparison less on the way from y.
  static Mask not_greater_nor_nan(Reg x, Reg y) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x, y, _CMP_NGT_UQ);
  }
  // Lanes in which x > 0 or x is NaN.
  static Mask positive_or_nan(Reg x) { return _mm512_cmp_ps_mask(x, zero(), _CMP_NLE_UQ); }
  // Lanes in which x is not zero, or is NaN.
  static Mask nonzero(Reg x) { return _mm512_cmp_ps_mask(x, zero(), _CMP_NEQ_UQ); }
  // y, or x in the lanes in which x > y or x is NaN: a NaN stays, the first of equals stays.
  static Reg max_or_nan(Reg x, Reg y) {
    return _mm512_mask_max_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x, y);
  }
  // x in the lanes of the mask, else y.
  static Reg select(Mask m, Reg x, Reg y) { return _mm512_mask_mov_ps(y, m, x); }
  // a + x in the lanes of the mask, else a.
  static Reg add_masked(Reg a, Mask m, Reg x) { return _mm512_mask_add_ps(a, m, a, x); }

  static Ints set1_int(int32_t x) { return _mm512_set1_epi32(x); }
  static Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Ints select_int(Mask m, Ints x, Ints y) { return _mm512_mask_mov_epi32(y, m, x); }
  static Ints add_int(Ints x, Ints y) { return _mm512_add_epi32(x, y); }
  static Ints mul_int(Ints x, Ints y) { return _mm512_mullo_epi32(x, y); }
  static Mask equal_int(Ints x, Ints y) { return _mm512_cmpeq_epi32_mask(x, y); }

  static Ints lane_numbers() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }

  // Lane l is lane index[l] of x; indices are in [0, kLanes).
  static Reg permute(Reg x, Ints index) { return _mm512_permutexvar_ps(index, x); }
  static Ints permute_int(Ints x, Ints index) { return _mm512_permutexvar_epi32(index, x); }
  // Lane l is element index[l] of the 2 * kLanes floats in (low, high).
  static Reg pick_of_two(Reg low, Reg high, Ints index) {
    return _mm512_permutex2var_ps(low, index, high);
  }
  // Lane l is element index[l] of the 4 * kLanes floats in `parts`.
  static Reg pick(const Reg parts[4], Ints index) {
    const Reg low = _mm512_permutex2var_ps(parts[0], index, parts[1]);
    const Reg high = _mm512_permutex2var_ps(parts[2], index, parts[3]);
    return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(index, set1_int(2 * kLanes)), high);
  }

  // The maximum over all lanes by the rule of greater_or_nan when lanes are visited by ascending
  // `number`, and the number of its lane. Equal numbers belong to equal values.
  static void first_maximum(Reg x, Ints number, float* maximum, int32_t* at) {
    Mask best = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    if (best != 0) {
      *at = _mm512_mask_reduce_max_epi32(best, number);
    } else {
      best = _mm512_cmp_ps_mask(x, _mm512_set1_ps(_mm512_reduce_max_ps(x)), _CMP_EQ_OQ);
      *at = _mm512_mask_reduce_min_epi32(best, number);
    }
    const Mask winner = _mm512_mask_cmpeq_epi32_mask(best, number, set1_int(*at));
    *maximum = _mm512_cvtss_f32(_mm512_maskz_compress_ps(winner, x));
  }

  // The first n lanes as bytes (values 0 .. 255) or int32_t; memory past them is not touched.
  static void store_first(uint8_t* p, Ints x, int64_t n) {
    _mm512_mask_cvtusepi32_storeu_epi8(p, mask_first(n), x);
  }
  static void store_first(int32_t* p, Ints x, int64_t n) {
    _mm512_mask_storeu_epi32(p, mask_first(n), x);
  }
  // The lanes of the mask side by side, from p and q on; returns their number. May write kLanes.
  static int64_t store_selected(float* p, int32_t* q, Reg x, Ints y, Mask m) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, x));
    _mm512_storeu_si512(q, _mm512_maskz_compress_epi32(m, y));
    return __builtin_popcount(m);
  }
  // Lanes [begin, end), which the mask repeats, of what store_first wrote; other lanes are zero and
  // touch no memory.
  static Ints load_range(const uint8_t* p, int64_t, int64_t, Mask m) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, p));
  }
  static Ints load_range(const int32_t* p, int64_t, int64_t, Mask m) {
    return _mm512_maskz_loadu_epi32(m, p);
  }
  // All lanes, as load_range(p, 0, kLanes, ...).
  static Ints load_all(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints load_all(const int32_t* p) { return _mm512_loadu_si512(p); }

  // Sum of all lanes, pairwise.
  static float reduce_add(Reg x) { return _mm512_reduce_add_ps(x); }

  // Lane l is the sum of all lanes of rows[l], pairwise: half the shuffles of a transpose.
  static Reg reduce_add_rows(const Reg rows[kLanes]) {
    Reg t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      t[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                           _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
    // Every quarter of t[i] holds rows 2i, 2i + 1, 2i, 2i + 1.
    Reg s[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(t[2 * i]), b = _mm512_castps_pd(t[2 * i + 1]);
      s[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    // Every quarter of s[i] holds rows 4i .. 4i + 3.
    const Reg low = _mm512_add_ps(_mm512_shuffle_f32x4(s[0], s[1], 0x88),
                                  _mm512_shuffle_f32x4(s[0], s[1], 0xdd));
    const Reg high = _mm512_add_ps(_mm512_shuffle_f32x4(s[2], s[3], 0x88),
                                   _mm512_shuffle_f32x4(s[2], s[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88),
                         _mm512_shuffle_f32x4(low, high, 0xdd));
  }

  // Lanes 0, 2, 4, ... of the 2 * kLanes floats in (low, high).
  static Reg even_lanes(Reg low, Reg high) {
    const __m512i index =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(low, index, high);
  }

  // Lanes 1, 3, 5, ... of the 2 * kLanes floats in (low, high).
  static Reg odd_lanes(Reg low, Reg high) {
    const __m512i index =
        _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(low, index, high);
  }
  // Undoes even_lanes and odd_lanes: even[0], odd[0], even[1], ...; *low gets the first kLanes.
  static void interleave(Reg even, Reg odd, Reg* low, Reg* high) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second =
        _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    *low = _mm512_permutex2var_ps(even, first, odd);
    *high = _mm512_permutex2var_ps(even, second, odd);
  }

  // rows[i][j] <-> rows[j][i] of a 16 x 16 block held in registers: four rounds of 16 shuffles.
  // Always inline: a call would pass the block through memory.
  [[gnu::always_inline]] static inline void transpose(Reg rows[kLanes]) {
    Reg t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 1]);
      const __m512d c = _mm512_castps_pd(t[4 * i + 2]), d = _mm512_castps_pd(t[4 * i + 3]);
      rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // rows[4 * i + j] now holds, per 128-bit quarter q, column 4 * q + j of source rows 4i .. 4i+3.
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      t[j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0x88);
      t[4 + j] = _mm512_shuffle_f32x4(rows[j], rows[4 + j], 0xdd);
      t[8 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0x88);
      t[12 + j] = _mm512_shuffle_f32x4(rows[8 + j], rows[12 + j], 0xdd);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      rows[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
      rows[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
      rows[4 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0x88);
      rows[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0xdd);
    }
  }
};

}  // namespace
