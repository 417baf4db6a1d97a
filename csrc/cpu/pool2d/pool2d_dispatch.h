// SPDX-License-Identifier: MIT
// What max_pool2d.cpp and avg_pool2d.cpp share: which kernel serves a window, and how rows are cut
// into pieces for the threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/pool2d/pool2d_ukernels.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {

inline const char* kernel_algorithm(PoolKernel kernel) {
  constexpr const char* kNames[kPoolKernelCount] = {"2x2s2", "3x3s2", "3x3s1", "general",
                                                    "channels_last"};
  return kNames[static_cast<int>(kernel)];
}

// True when the vector kernels' 32-bit column positions reach every column.
inline bool fits_vector_kernels(const Pool2dShape& s) {
  return s.in_width <= INT32_MAX;
}

inline PoolKernel choose_kernel(const Pool2dShape& s, bool channels_last) {
  if (channels_last) return PoolKernel::kChannelsLast;
  const bool square = s.kernel_height == s.kernel_width && s.stride_height == s.stride_width &&
                      s.dilation_height == 1 && s.dilation_width == 1;
  if (square && s.kernel_width == 2 && s.stride_width == 2) return PoolKernel::k2x2s2;
  if (square && s.kernel_width == 3 && s.stride_width == 2) return PoolKernel::k3x3s2;
  if (square && s.kernel_width == 3 && s.stride_width == 1) return PoolKernel::k3x3s1;
  return PoolKernel::kGeneral;
}

// Global pooling of dense images is pooling of one row per image, channel after channel: the same
// taps in the same order, without a loop over short rows. Batches of one keep their rows, which
// threads can share.
inline bool folds_to_rows(const Pool2dShape& s, bool channels_last, const Strides4& input) {
  const bool global = s.kernel_height == s.in_height && s.kernel_width == s.in_width &&
                      s.out_height == 1 && s.out_width == 1 && s.padding_height == 0 &&
                      s.padding_width == 0 && s.dilation_height == 1 && s.dilation_width == 1;
  return global && s.batch > 1 && choose_kernel(s, channels_last) == PoolKernel::kGeneral &&
         input.row == s.in_width && input.channel == s.in_height * s.in_width &&
         input.channel <= INT32_MAX / s.channels;
}

inline Pool2dShape folded_to_rows(const Pool2dShape& s) {
  Pool2dShape row = s;
  row.channels = row.in_height = row.kernel_height = row.stride_height = 1;
  row.kernel_width = row.stride_width = s.in_height * s.in_width;
  row.in_width = s.channels * row.kernel_width;
  row.out_width = s.channels;
  return row;
}

// Runs body(range) over [0, rows) on as many threads as `bytes` of traffic and `steps` of
// arithmetic deserve; each thread gets one contiguous range, the same from call to call.
template <class Body>
void for_row_ranges(int64_t rows, int64_t steps, int64_t bytes, const Body& body) {
  const int64_t slots = std::min(rows, worthwhile_threads(steps, bytes));
  parallel_for(
      slots, [&](int64_t slot) { body(RowRange{rows * slot / slots, rows * (slot + 1) / slots}); });
}

inline int64_t input_elements(const Pool2dShape& s) {
  return s.batch * s.channels * s.in_height * s.in_width;
}

inline int64_t output_elements(const Pool2dShape& s) {
  return s.batch * s.channels * s.out_height * s.out_width;
}

}  // namespace fastconv::cpu
