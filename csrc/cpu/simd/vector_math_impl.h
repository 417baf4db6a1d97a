// SPDX-License-Identifier: MIT
#pragma once

#include "cpu/simd/simd_math_impl.h"
#include "cpu/simd/vector_math.h"

namespace {

template <Simd::Reg (*Function)(Simd::Reg)>
void map_array(const float* x, float* y, int64_t size) {
  int64_t i = 0;
  for (; i + Simd::kLanes <= size; i += Simd::kLanes)
    Simd::store(y + i, Function(Simd::load(x + i)));
  if (i == size) return;
  const Simd::Mask mask = Simd::mask_first(size - i);
  Simd::store_masked(y + i, Function(Simd::load_masked(x + i, mask)), mask);
}

constexpr fastconv::cpu::VectorMath kTable{&map_array<&Math::exp>, &map_array<&Math::sigmoid>,
                                           &map_array<&Math::tanh>};

}  // namespace
