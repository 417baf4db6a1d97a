// SPDX-License-Identifier: MIT
// Gradients by way of operators that are differentiable themselves: for backward passes that are
// differentiated again (create_graph) or run on many gradients at once (is_grads_batched).
#pragma once

#include <functional>

#include "bindings/ops.h"

namespace fastconv::bindings {

using Tensors = std::vector<Tensor>;

// Gradients of the operands when the results of `compose` have the gradients `grad_results`.
//
// Operands may be undefined, depend on one another and occur twice: `compose` gets aliases, where
// the inner pass ends. It neither follows the history of an operand into the graph of the caller
// nor runs the operand's hooks. Those that `wanted` leaves out have an undefined gradient, and an
// undefined one in `grad_results` stands for zeros. Differentiable again in grad mode.
Tensors composed_gradients(const Tensors& operands, at::ArrayRef<bool> wanted,
                           const Tensors& grad_results,
                           const std::function<Tensors(const Tensors&)>& compose);

}  // namespace fastconv::bindings
