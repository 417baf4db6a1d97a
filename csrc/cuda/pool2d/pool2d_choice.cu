// SPDX-License-Identifier: MIT
// Which kernel serves a pooling call: a function of sizes, layout, type and alignment.
#include <initializer_list>

#include "cuda/common/divmod.h"
#include "cuda/pool2d/pool2d.h"

namespace fastconv::cuda {
namespace {

int64_t values_in_16_bytes(Pool2dElement element) {
  switch (element) {
    case Pool2dElement::kFloat32:
      return 4;
    case Pool2dElement::kFloat64:
      return 2;
    case Pool2dElement::kBFloat16:
    case Pool2dElement::kFloat16:
      break;
  }
  return 8;
}

// All positions and element numbers that the kernels compute stay below 2^31. Divisions keep the
// products from overflowing here.
bool fits_32_bits(const Pool2dShape& s) {
  constexpr int64_t kMost = int64_t{1} << 29;
  for (const int64_t size : {s.in_height, s.in_width, s.out_height, s.out_width, s.kernel_height,
                             s.kernel_width, s.stride_height, s.stride_width, s.dilation_height,
                             s.dilation_width, s.padding_height, s.padding_width})
    if (size > kMost) return false;
  if (s.out_height * s.stride_height > kMost || s.out_width * s.stride_width > kMost) return false;
  if (s.kernel_height * s.dilation_height > kMost || s.kernel_width * s.dilation_width > kMost)
    return false;
  return fits_int32(s.batch * s.channels * s.in_height * s.in_width) &&
         fits_int32(s.batch * s.channels * s.out_height * s.out_width);
}

bool has_2x2_windows(const Pool2dShape& s) {
  return s.kernel_height == 2 && s.kernel_width == 2 && s.stride_height == 2 &&
         s.stride_width == 2 && s.padding_height == 0 && s.padding_width == 0 &&
         s.dilation_height == 1 && s.dilation_width == 1 && 2 * s.out_height <= s.in_height;
}

}  // namespace

Pool2dAlgorithm choose_pool2d_forward(const Pool2dCall& call, bool aligned) {
  const Pool2dShape& s = call.shape;
  const int64_t vector = values_in_16_bytes(call.element);
  if (!fits_32_bits(s)) return Pool2dAlgorithm::kHuge;
  if (!aligned) return Pool2dAlgorithm::kElements;
  if (call.channels_last)
    return s.channels % vector == 0 ? Pool2dAlgorithm::kVectors : Pool2dAlgorithm::kElements;
  if (has_2x2_windows(s) && s.in_width % vector == 0) return Pool2dAlgorithm::kRows;
  return Pool2dAlgorithm::kElements;
}

Pool2dAlgorithm choose_pool2d_backward(const Pool2dCall& call, bool aligned) {
  // A thread that owns a window writes stride_height * stride_width vectors one after another: more
  // of them would leave a GPU with too few threads.
  constexpr int64_t kMostPerThread = 16;
  const Pool2dShape& s = call.shape;
  const Pool2dAlgorithm forward = choose_pool2d_forward(call, aligned);
  const bool apart = s.dilation_height == 1 && s.dilation_width == 1 &&
                     s.kernel_height <= s.stride_height && s.kernel_width <= s.stride_width;
  if (forward == Pool2dAlgorithm::kVectors && apart &&
      s.stride_height * s.stride_width <= kMostPerThread)
    return Pool2dAlgorithm::kWindows;
  return forward;
}

}  // namespace fastconv::cuda
