// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

namespace fastconv::bindings {

// Calls body with a value of the tensor's element type, float or double.
template <class Body>
void dispatch_float_or_double(const at::Tensor& tensor, const Body& body) {
  if (tensor.scalar_type() == at::kDouble) return body(double{});
  body(float{});
}

}  // namespace fastconv::bindings
