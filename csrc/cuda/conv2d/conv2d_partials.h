// SPDX-License-Identifier: MIT
// The second pass of every weight gradient: adds up what the blocks of the first pass left in the
// workspace, always in the same order, so that no atomics are needed and every run gives the same
// bits.
//
//   partials [splits][row: out_channels * taps * padded_channels, out_channels (with a bias)]
//
// A row holds the weights as [out_channels, taps, padded_channels] - columns past the channels of a
// group are ignored - and then the bias. Its elements are what sums of the element type are kept
// in.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/shapes.h"
#include "cuda/conv2d/conv2d.h"

namespace fastconv::cuda {

struct Conv2dPartials {
  const void* partials;
  int64_t splits;
  int64_t padded_channels;
  int64_t row_stride;  // from one split to the next, at least a row
};

inline int64_t conv2d_partial_weights(const Conv2dShape& shape, int64_t padded_channels) {
  return shape.out_channels * shape.taps() * padded_channels;
}

// Elements of one row of the partials.
inline int64_t conv2d_partial_row(const Conv2dGradWeight& call, int64_t padded_channels) {
  return conv2d_partial_weights(call.shape, padded_channels) +
         (call.grad_bias != nullptr ? call.shape.out_channels : 0);
}

// Writes call.grad_weight and, unless nullptr, call.grad_bias.
cudaError_t launch_conv2d_sum_partials(const Conv2dGradWeight& call, const Conv2dPartials& partials,
                                       cudaStream_t stream);

}  // namespace fastconv::cuda
