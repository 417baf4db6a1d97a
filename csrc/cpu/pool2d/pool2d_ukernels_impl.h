// SPDX-License-Identifier: MIT
// The table of pooling kernels of the ISA whose simd_<isa>.h was included before this file.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include "cpu/pool2d/pool2d_any_impl.h"
#include "cpu/pool2d/pool2d_channels_impl.h"
#include "cpu/pool2d/pool2d_grad_2x2_impl.h"
#include "cpu/pool2d/pool2d_grad_rows_impl.h"
#include "cpu/pool2d/pool2d_ukernels.h"

namespace {

using fastconv::Pool2dShape;
using fastconv::cpu::kMaxByteTaps;
using fastconv::cpu::Pool2dKernels;
using fastconv::cpu::PoolKernel;

template <PoolKernel Kernel, class Pool>
void run_pool(const Pool& pool, RowRange range) {
  if constexpr (Kernel == PoolKernel::k2x2s2) return pool_2x2s2(pool, range);
  if constexpr (Kernel == PoolKernel::k3x3s2) return pool_fixed_rows<3, 2>(pool, range);
  if constexpr (Kernel == PoolKernel::k3x3s1) return pool_fixed_rows<3, 1>(pool, range);
  if constexpr (Kernel == PoolKernel::kGeneral) return pool_general(pool, range);
  if constexpr (Kernel == PoolKernel::kChannelsLast) return pool_channels(pool, range);
}

template <PoolKernel Kernel, class Grad>
void run_grad(const Grad& grad, RowRange range) {
  if constexpr (Kernel == PoolKernel::k2x2s2) return grad_2x2s2(grad, range);
  if constexpr (Kernel == PoolKernel::k3x3s2) return grad_fixed_rows<3, 2>(grad, range);
  if constexpr (Kernel == PoolKernel::k3x3s1) return grad_fixed_rows<3, 1>(grad, range);
  if constexpr (Kernel == PoolKernel::kGeneral) return grad_general(grad, range);
  if constexpr (Kernel == PoolKernel::kChannelsLast) return grad_channels(grad, range);
}

// Windows of more than 256 taps, the ones with int32 offsets, are never the fixed small ones.
constexpr bool may_be_large(PoolKernel kernel) {
  return kernel == PoolKernel::kGeneral || kernel == PoolKernel::kChannelsLast;
}

// As offset_type_of(), which is not for files of one instruction set: it has external linkage.
inline bool has_large_offsets(const Pool2dShape& s) {
  return s.kernel_height * s.kernel_width > kMaxByteTaps;
}

template <PoolKernel Kernel>
void max_forward(const MaxPool2dForward<float>& call, RowRange range) {
  if (call.offsets == nullptr) return run_pool<Kernel>(MaxValues(call), range);
  if constexpr (may_be_large(Kernel)) {
    if (has_large_offsets(call.shape)) return run_pool<Kernel>(MaxOffsets<int32_t>(call), range);
  }
  run_pool<Kernel>(MaxOffsets<uint8_t>(call), range);
}

template <PoolKernel Kernel>
void max_backward(const MaxPool2dBackward<float>& call, RowRange range) {
  if constexpr (may_be_large(Kernel)) {
    if (has_large_offsets(call.shape)) return run_grad<Kernel>(MaxGrad<int32_t>(call), range);
  }
  run_grad<Kernel>(MaxGrad<uint8_t>(call), range);
}

template <PoolKernel Kernel>
void avg_forward(const AvgPool2dForward<float>& call, RowRange range) {
  run_pool<Kernel>(Averages(call), range);
}

template <PoolKernel Kernel>
void avg_backward(const AvgGradUniform& call, RowRange range) {
  run_grad<Kernel>(AvgGrad(call), range);
}

void widen(const uint16_t* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Simd::store(target + i, Simd::load_bfloat16(source + i));
  if (i == count) return;
  uint16_t rest[kLanes] = {};
  for (int64_t l = i; l < count; ++l) rest[l - i] = source[l];
  Simd::store_masked(target + i, Simd::load_bfloat16(rest), Simd::mask_first(count - i));
}

void narrow(const float* source, int64_t count, uint16_t* target) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Simd::store_bfloat16(target + i, Simd::load(source + i));
  if (i == count) return;
  uint16_t rest[kLanes];
  Simd::store_bfloat16(rest, Simd::load_masked(source + i, Simd::mask_first(count - i)));
  for (int64_t l = i; l < count; ++l) target[l] = rest[l - i];
}

void stream(const float* source, int64_t count, float* target) {
  constexpr int64_t kLine = 64 / sizeof(float);
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(target) % 64) / 4;
  int64_t i = min_of(misaligned == 0 ? 0 : kLine - misaligned, count);
  for (int64_t k = 0; k < i; ++k) target[k] = source[k];
  for (; i + kLine <= count; i += kLine)
    for (int64_t l = 0; l < kLine; l += kLanes)
      Simd::stream(target + i + l, Simd::load(source + i + l));
  for (; i < count; ++i) target[i] = source[i];
}

void fence() {
  Simd::stream_fence();
}

// In the order of PoolKernel.
constexpr Pool2dKernels kPool2dKernels = {
    {&max_forward<PoolKernel::k2x2s2>, &max_forward<PoolKernel::k3x3s2>,
     &max_forward<PoolKernel::k3x3s1>, &max_forward<PoolKernel::kGeneral>,
     &max_forward<PoolKernel::kChannelsLast>},
    {&max_backward<PoolKernel::k2x2s2>, &max_backward<PoolKernel::k3x3s2>,
     &max_backward<PoolKernel::k3x3s1>, &max_backward<PoolKernel::kGeneral>,
     &max_backward<PoolKernel::kChannelsLast>},
    {&avg_forward<PoolKernel::k2x2s2>, &avg_forward<PoolKernel::k3x3s2>,
     &avg_forward<PoolKernel::k3x3s1>, &avg_forward<PoolKernel::kGeneral>,
     &avg_forward<PoolKernel::kChannelsLast>},
    {&avg_backward<PoolKernel::k2x2s2>, &avg_backward<PoolKernel::k3x3s2>,
     &avg_backward<PoolKernel::k3x3s1>, &avg_backward<PoolKernel::kGeneral>,
     &avg_backward<PoolKernel::kChannelsLast>},
    &widen,
    &narrow,
    &stream,
    &fence,
};

}  // namespace
