// SPDX-License-Identifier: MIT
#include "bindings/composed_gradients.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace fastconv::bindings {

Tensors composed_gradients(const Tensors& operands, at::ArrayRef<bool> wanted,
                           const Tensors& grad_results,
                           const std::function<Tensors(const Tensors&)>& compose) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode enable(true);
  Tensors aliases(operands.size()), asked;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!operands[i].defined()) continue;
    aliases[i] = operands[i].view_as(operands[i]);
    if (!wanted[i]) continue;
    if (!aliases[i].requires_grad()) aliases[i].requires_grad_();
    asked.push_back(aliases[i]);
  }
  Tensors results = compose(aliases), outputs, given;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!grad_results[i].defined()) continue;
    outputs.push_back(results[i]);
    given.push_back(grad_results[i]);
  }
  const Tensors found = torch::autograd::grad(outputs, asked, given, /*retain_graph=*/true,
                                              create_graph, /*allow_unused=*/true);
  Tensors grads(operands.size());
  size_t next = 0;
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!operands[i].defined() || !wanted[i]) continue;
    grads[i] = found[next].defined() ? found[next] : at::zeros_like(operands[i]);
    ++next;
  }
  return grads;
}

}  // namespace fastconv::bindings
