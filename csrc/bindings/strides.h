// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include "common/shapes.h"

namespace fastconv::bindings {

// Precondition: `t` is 4-D.
inline Strides4 strides_of(const at::Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

}  // namespace fastconv::bindings
