// SPDX-License-Identifier: MIT
// mma.sync on the words that 32 lanes passed; layouts as in cuda/common/ptx.cuh.
//
// Exact: all products and the accumulator are added in double and rounded once. Tensor cores do not
// round: they align all terms of a step to the largest exponent, cut each off after some fractional
// bits, add them as integers, and cut the sum off to float. Ampere keeps 24 bits and takes two
// steps of half the depth each, Hopper keeps 25 bits and takes one (as measured by MMA-Sim,
// arXiv:2511.10909).
#include <cmath>
#include <limits>

#include "tests/cuda_shim/engine.h"

namespace fastconv::cuda_shim {
namespace {

constexpr int kMaxDepth = 16;

float bf16_value(uint32_t bits) {
  return __builtin_bit_cast(float, bits << 16);
}

float half_value(uint32_t bits) {
  __extension__ using Native = _Float16;
  return static_cast<float>(__builtin_bit_cast(Native, static_cast<uint16_t>(bits)));
}

// What the unit sees of a 32-bit operand: it ignores the low 13 bits.
float tf32_value(uint32_t bits) {
  return __builtin_bit_cast(float, bits & ~0x1fffu);
}

float value_of(Collective kind, uint32_t word, int half) {
  if (kind == Collective::kMmaTf32) return tf32_value(word);
  const uint32_t bits = word >> (16 * half) & 0xffff;
  return kind == Collective::kMmaBf16 ? bf16_value(bits) : half_value(bits);
}

// Rounds a finite value toward zero.
float cut_to_float(double value) {
  const float nearest = static_cast<float>(value);
  if (std::fabs(static_cast<double>(nearest)) <= std::fabs(value)) return nearest;
  return std::nextafter(nearest, 0.0f);
}

int exponent_of(float x) {
  return x == 0 ? std::numeric_limits<int>::min() / 4 : std::ilogb(x);
}

// c + sum of a[k] b[k] as one step of a tensor core that keeps `bits` fractional bits.
float cut_off_step(float c, const float* a, const float* b, int depth, int bits) {
  int largest = exponent_of(c);
  bool finite = std::isfinite(c);
  for (int k = 0; k < depth; ++k) {
    finite = finite && std::isfinite(a[k]) && std::isfinite(b[k]);
    const int exponent = exponent_of(a[k]) + exponent_of(b[k]);
    if (a[k] != 0 && b[k] != 0 && exponent > largest) largest = exponent;
  }
  if (!finite) {
    float sum = c;
    for (int k = 0; k < depth; ++k) sum += a[k] * b[k];
    return sum;
  }
  if (largest < -1000) return c;  // all terms are zero
  const auto cut = [&](double term) { return std::trunc(std::ldexp(term, bits - largest)); };
  double sum = cut(c);
  for (int k = 0; k < depth; ++k) sum += cut(static_cast<double>(a[k]) * b[k]);
  return cut_to_float(std::ldexp(sum, largest - bits));
}

float dot(float c, const float* a, const float* b, int depth) {
  switch (options().mma) {
    case MmaMode::kAmpere:
      c = cut_off_step(c, a, b, depth / 2, 24);
      return cut_off_step(c, a + depth / 2, b + depth / 2, depth / 2, 24);
    case MmaMode::kHopper:
      return cut_off_step(c, a, b, depth, 25);
    case MmaMode::kExact:
      break;
  }
  double sum = c;
  for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[k]) * b[k];
  return static_cast<float>(sum);
}

}  // namespace

void finish_mma(Thread* warp, Collective kind) {
  const int halves = kind == Collective::kMmaTf32 ? 1 : 2;
  const int depth = 8 * halves;
  float a[16][kMaxDepth], b[8][kMaxDepth];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < halves; ++half) {
      const int k = halves * t + half;
      for (int i = 0; i < 4; ++i)
        a[g + 8 * (i % 2)][k + 4 * halves * (i / 2)] = value_of(kind, warp[lane].in[i], half);
      for (int i = 0; i < 2; ++i)
        b[g][k + 4 * halves * i] = value_of(kind, warp[lane].in[4 + i], half);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const float c = __builtin_bit_cast(float, warp[lane].in[6 + i]);
      const float d = dot(c, a[g + 8 * (i / 2)], b[2 * t + i % 2], depth);
      warp[lane].out[i] = __builtin_bit_cast(uint32_t, d);
    }
  }
}

}  // namespace fastconv::cuda_shim
