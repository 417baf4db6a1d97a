// SPDX-License-Identifier: MIT
// What max_pool2d.cpp and avg_pool2d.cpp share: which kernel serves a window, and how rows are cut
// into pieces for the threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

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

// --- Results past the caches --------------------------------------------------------------------

inline constexpr int64_t kStageFloats = 4096;  // a third of L1
// A block is two pages. While it is on its way to memory the next one is computed, as far as the
// processor's queue of stores allows: with 16 KiB the two took turns, 1.15x the time.
inline constexpr int64_t kBlockFloats = 2048;

// Rows of `row` floats in a block: where possible even in number, since windows of stride 2 share
// the work of two rows, and whole cache lines, so that no two blocks write the same one.
inline int64_t staged_rows(int64_t row) {
  constexpr int64_t kLineFloats = 16;
  const int64_t fit = kStageFloats / row;
  const int64_t whole = 2 * kLineFloats / std::gcd(row, kLineFloats);
  if (fit < whole) return fit;
  return std::max(kBlockFloats / row / whole, int64_t{1}) * whole;
}

// Rows of grad_input, dense and one after another, by a kernel that writes them into a stage in L1,
// from where they go past the caches: rows are seldom whole lines, and a line written in two parts
// would be read and written twice. Precondition: staged_rows(row) > 0.
template <class Call, class Run>
void stream_rows(const Pool2dKernels& kernels, const Call& call, int64_t row, RowRange range,
                 const Run& run) {
  alignas(64) float stage[kStageFloats];
  const int64_t block = staged_rows(row);
  Call staged = call;
  staged.grad_input = stage;
  for (int64_t begin = range.begin; begin < range.end;) {
    const int64_t end = std::min(range.end, begin / block * block + block);
    staged.first_element = begin * row;
    run(staged, RowRange{begin, end});
    kernels.stream(stage, (end - begin) * row, call.grad_input + begin * row);
    begin = end;
  }
  kernels.fence();
}

// True when stream_rows may serve a backward pass. Kernels of general windows scatter into whole
// planes.
inline bool streams_rows(const Pool2dShape& s, PoolKernel kernel, const Strides4& grad_input) {
  if (kernel == PoolKernel::kGeneral || kernel == PoolKernel::kChannelsLast) return false;
  return staged_rows(s.in_width) > 0 && grad_input.row == s.in_width &&
         grad_input.channel == s.in_height * s.in_width &&
         grad_input.batch == s.channels * grad_input.channel;
}

// A backward pass over rows of grad_input.
template <class Call>
void run_backward(const Pool2dKernels& kernels, PoolKernel kernel, const Call& call,
                  void (*run)(const Call&, RowRange), int64_t bytes) {
  const Pool2dShape& s = call.shape;
  const bool channels_last = kernel == PoolKernel::kChannelsLast;
  const bool staged = call.stream && streams_rows(s, kernel, call.grad_input_strides);
  const int64_t rows = s.batch * s.in_height * (channels_last ? 1 : s.channels);
  for_row_ranges(rows, output_elements(s) * s.taps(), bytes, [&](RowRange range) {
    if (staged) return stream_rows(kernels, call, s.in_width, range, run);
    run(call, range);
    if (call.stream) kernels.fence();
  });
}

}  // namespace fastconv::cpu
