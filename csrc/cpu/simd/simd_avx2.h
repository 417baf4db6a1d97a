// SPDX-License-Identifier: MIT
// One vector of float32 on AVX2 + FMA. Same interface as simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct Simd {
  using Reg = __m256;
  using Mask = __m256i;  // all ones or all zeros per lane
  using Ints = __m256i;  // one int32_t per lane
  static constexpr int kLanes = 8;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(float x) { return _mm256_set1_ps(x); }
  // p[0] in the even lanes, p[1] in the odd ones.
  static Reg set_pair(const float* p) {
    double bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return _mm256_castpd_ps(_mm256_set1_pd(bits));
  }
  // Lanes 0 and 1 exchanged, 2 and 3, and so on.
  static Reg swap_pairs(Reg x) { return _mm256_permute_ps(x, 0xB1); }
  // The even lanes of x, the odd lanes of y.
  static Reg blend_odd(Reg x, Reg y) { return _mm256_blend_ps(x, y, 0xAA); }
  // Makes the compiler forget that a value came from memory. GCC would otherwise load it again in
  // every multiply-add that uses it, which costs two loads where it crosses a cache line.
  static void keep(Reg& x) { asm("" : "+x"(x)); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static void stream(float* p, Reg x) { _mm256_stream_ps(p, x); }
  static void stream_fence() { _mm_sfence(); }

  // bfloat16, the upper halves of floats; narrowed to the nearest, ties to even, a NaN stays one.
  static Reg widen_bfloat16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  static __m128i narrow_bfloat16(Reg x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
  static Reg load_bfloat16(const uint16_t* p) {
    return widen_bfloat16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_bfloat16(uint16_t* p, Reg x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_bfloat16(x));
  }

  // Lanes outside the mask read as zero; memory outside the mask is not touched.
  static Reg load_masked(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static void store_masked(float* p, Reg x, Mask m) { _mm256_maskstore_ps(p, m, x); }

  // As load_masked, but lanes outside the mask read as `fill`.
  static Reg load_masked_or(const float* p, Mask m, Reg fill) {
    return select(m, _mm256_maskload_ps(p, m), fill);
  }
  // p[0], p[step], p[2 * step], ...; lanes outside the mask read as `fill` and touch no memory.
  // Positions inside the mask fit 31 bits.
  static Reg load_strided_or(const float* p, int64_t step, Mask m, Reg fill) {
    const __m256i index =
        _mm256_mullo_epi32(lane_numbers(), _mm256_set1_epi32(static_cast<int>(step)));
    return _mm256_mask_i32gather_ps(fill, p, index, _mm256_castsi256_ps(m), sizeof(float));
  }

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
  static Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }

  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }

  // The second operand where either is NaN.
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  // To the nearest integer, ties to even; |x| < 2^22.
  static Reg round(Reg x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Reg abs(Reg x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  // The magnitude of x, the sign of y.
  static Reg copy_sign(Reg x, Reg y) {
    return _mm256_or_ps(abs(x), _mm256_and_ps(y, _mm256_set1_ps(-0.0f)));
  }
  // x * 2^n for integers n in [-152, 130], in two factors that are normal numbers each.
  static Reg times_power_of_two(Reg x, Reg n) {
    const __m256i power = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(power, 1);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
  }

  // Lanes in which x > y or x is NaN.
  static Mask greater_or_nan(Reg x, Reg y) {
    return _mm256_castps_si256(
        _mm256_or_ps(_mm256_cmp_ps(x, y, _CMP_GT_OQ), _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  }
  // The other lanes.
  static Mask not_greater_nor_nan(Reg x, Reg y) {
    return _mm256_castps_si256(
        _mm256_and_ps(_mm256_cmp_ps(x, y, _CMP_NGT_UQ), _mm256_cmp_ps(x, x, _CMP_ORD_Q)));
  }
  // Lanes in which x > 0 or x is NaN.
  static Mask positive_or_nan(Reg x) {
    return _mm256_castps_si256(_mm256_cmp_ps(x, zero(), _CMP_NLE_UQ));
  }
  // Lanes in which x is not zero, or is NaN.
  static Mask nonzero(Reg x) { return _mm256_castps_si256(_mm256_cmp_ps(x, zero(), _CMP_NEQ_UQ)); }
  // y, or x in the lanes in which x > y or x is NaN: a NaN stays, the first of equals stays.
  static Reg max_or_nan(Reg x, Reg y) {
    return _mm256_blendv_ps(_mm256_max_ps(x, y), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  // x in the lanes of the mask, else y.
  static Reg select(Mask m, Reg x, Reg y) { return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(m)); }
  // a + x in the lanes of the mask, else a (a -0 there becomes +0).
  static Reg add_masked(Reg a, Mask m, Reg x) {
    return _mm256_add_ps(a, _mm256_and_ps(_mm256_castsi256_ps(m), x));
  }

  static Ints set1_int(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints load_ints(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Ints select_int(Mask m, Ints x, Ints y) { return _mm256_blendv_epi8(y, x, m); }
  static Ints add_int(Ints x, Ints y) { return _mm256_add_epi32(x, y); }
  static Ints mul_int(Ints x, Ints y) { return _mm256_mullo_epi32(x, y); }
  static Mask equal_int(Ints x, Ints y) { return _mm256_cmpeq_epi32(x, y); }

  static Ints lane_numbers() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }

  // Lane l is lane index[l] of x; indices are in [0, kLanes).
  static Reg permute(Reg x, Ints index) { return _mm256_permutevar8x32_ps(x, index); }
  static Ints permute_int(Ints x, Ints index) { return _mm256_permutevar8x32_epi32(x, index); }
  // Lane l is element index[l] of the 2 * kLanes floats in (low, high).
  static Reg pick_of_two(Reg low, Reg high, Ints index) {
    const Reg odd = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 to the sign
    return _mm256_blendv_ps(permute(low, index), permute(high, index), odd);
  }
  // Lane l is element index[l] of the 4 * kLanes floats in `parts`.
  static Reg pick(const Reg parts[4], Ints index) {
    const Reg odd = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // bit 3 to the sign
    const Reg upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
    const Reg low = _mm256_blendv_ps(permute(parts[0], index), permute(parts[1], index), odd);
    const Reg high = _mm256_blendv_ps(permute(parts[2], index), permute(parts[3], index), odd);
    return _mm256_blendv_ps(low, high, upper);
  }

  // The maximum over all lanes by the rule of greater_or_nan when lanes are visited by ascending
  // `number`, and the number of its lane. Equal numbers belong to equal values.
  static void first_maximum(Reg x, Ints number, float* maximum, int32_t* at) {
    float values[kLanes];
    int32_t numbers[kLanes];
    store(values, x);
    store_first(numbers, number, kLanes);
    *maximum = values[0];
    *at = numbers[0];
    for (int l = 1; l < kLanes; ++l) {
      const bool later = numbers[l] > *at;
      const bool is_nan = values[l] != values[l];
      const bool best_is_nan = *maximum != *maximum;
      const bool wins = is_nan ? !best_is_nan || later
                               : values[l] > *maximum || (values[l] == *maximum && !later);
      if (!wins) continue;
      *maximum = values[l];
      *at = numbers[l];
    }
  }

  // The first n lanes as bytes (values 0 .. 255) or int32_t; memory past them is not touched.
  static void store_first(uint8_t* p, Ints x, int64_t n) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    uint64_t bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
    if (n == kLanes) {
      __builtin_memcpy(p, &bytes, sizeof bytes);
      return;
    }
    for (int64_t i = 0; i < n; ++i, bytes >>= 8) p[i] = static_cast<uint8_t>(bytes);
  }
  static void store_first(int32_t* p, Ints x, int64_t n) {
    _mm256_maskstore_epi32(p, mask_first(n), x);
  }
  // The lanes of the mask side by side, from p and q on; returns their number. May write kLanes.
  static int64_t store_selected(float* p, int32_t* q, Reg x, Ints y, Mask m) {
    float values[kLanes];
    int32_t numbers[kLanes];
    store(values, x);
    store_first(numbers, y, kLanes);
    const int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(m));
    int64_t count = 0;
    for (int l = 0; l < kLanes; ++l) {
      p[count] = values[l];
      q[count] = numbers[l];
      count += lanes >> l & 1;
    }
    return count;
  }
  // Lanes [begin, end) of what store_first wrote; other lanes are zero and touch no memory.
  static Ints load_range(const uint8_t* p, int64_t begin, int64_t end, Mask /*m*/) {
    uint64_t bytes = 0;
    for (int64_t i = begin; i < end; ++i) bytes |= static_cast<uint64_t>(p[i]) << (8 * i);
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
  }
  static Ints load_range(const int32_t* p, int64_t, int64_t, Mask m) {
    return _mm256_maskload_epi32(p, m);
  }
  // All lanes, as load_range(p, 0, kLanes).
  static Ints load_all(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints load_all(const int32_t* p) { return load_ints(p); }

  // Sum of all lanes, pairwise.
  static float reduce_add(Reg x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  // Lane l is the sum of all lanes of rows[l], pairwise.
  static Reg reduce_add_rows(const Reg rows[kLanes]) {
    const Reg low =
        _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
    const Reg high =
        _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
    // Each half of them holds the sums of its own four lanes.
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                         _mm256_permute2f128_ps(low, high, 0x31));
  }

  // Lanes 0, 2, 4, ... of the 2 * kLanes floats in (low, high).
  static Reg even_lanes(Reg low, Reg high) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
  }

  // Lanes 1, 3, 5, ... of the 2 * kLanes floats in (low, high).
  static Reg odd_lanes(Reg low, Reg high) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
  }
  // Undoes even_lanes and odd_lanes: even[0], odd[0], even[1], ...; *low gets the first kLanes.
  static void interleave(Reg even, Reg odd, Reg* low, Reg* high) {
    const Reg a = _mm256_unpacklo_ps(even, odd);
    const Reg b = _mm256_unpackhi_ps(even, odd);
    *low = _mm256_permute2f128_ps(a, b, 0x20);
    *high = _mm256_permute2f128_ps(a, b, 0x31);
  }

  // rows[i][j] <-> rows[j][i] of an 8 x 8 block held in registers: three rounds of 8 shuffles.
  // Always inline: a call would pass the block through memory.
  [[gnu::always_inline]] static inline void transpose(Reg rows[kLanes]) {
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
};

}  // namespace
