// SPDX-License-Identifier: MIT
// Which tensors the tensor-core kernels can read and write in vectors of 16 bytes along the
// channels as they are, and what to ask of the copy of those they cannot.
#pragma once

#include "common/checked.h"
#include "common/shapes.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv2d/conv2d.h"
#include "cuda/conv2d/conv2d_layout.h"
#include "cuda/conv2d/conv2d_tiles.h"

namespace fastconv::cuda {

inline constexpr int64_t kWorkspaceAlignment = 256;

// [batch, groups * channels, height, width] of any strides.
struct PixelTensor {
  const void* data;
  Strides4 strides;
  int64_t channels;  // of a group
  int64_t height;
  int64_t width;
};

inline int64_t conv2d_element_bytes(Conv2dElement element) {
  switch (element) {
    case Conv2dElement::kFloat32:
      return 4;
    case Conv2dElement::kFloat64:
      return 8;
    default:
      return 2;
  }
}

// True when every pixel's channels of every group are whole aligned vectors.
inline bool reads_in_vectors(const PixelTensor& t, int64_t batch, Conv2dElement element) {
  const int64_t per_vector = kVectorBytes / conv2d_element_bytes(element);
  const auto whole = [per_vector](int64_t stride, int64_t size) {
    return size <= 1 || stride % per_vector == 0;
  };
  return t.strides.channel == 1 && t.channels % per_vector == 0 && aligned16(t.data) &&
         whole(t.strides.batch, batch) && whole(t.strides.row, t.height) &&
         whole(t.strides.column, t.width);
}

inline PixelCopy copy_of(const PixelTensor& t, int64_t batch, int64_t groups, Conv2dElement element,
                         void* to) {
  const int64_t bytes = conv2d_element_bytes(element);
  return {t.data,
          t.strides,
          to,
          batch,
          t.height,
          t.width,
          groups,
          t.channels,
          round_up(t.channels, kVectorBytes / bytes),
          static_cast<int>(bytes)};
}

// Strides of a copy, in elements; `channel` is that of a group.
inline Strides4 strides_of_copy(const PixelCopy& copy) {
  const int64_t column = copy.groups * copy.padded_channels;
  const int64_t row = copy.width * column;
  return {copy.height * row, copy.padded_channels, row, column};
}

}  // namespace fastconv::cuda
