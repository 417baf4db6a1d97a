// SPDX-License-Identifier: MIT
#include "bindings/lstm_layer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "bindings/plain_tensors.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::Edge;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

constexpr size_t kOperands = LstmOperands::kDifferentiable;

void add_first_dimension(const Tensor& fresh) {
  fresh.unsafeGetTensorImpl()->set_sizes_contiguous({1, fresh.size(0), fresh.size(1)});
}

// Edges, and the saved tensors, lie in the order of LstmOperands; absent ones are undefined.
class LstmLayerBackward : public torch::autograd::Node {
 public:
  LstmLayerBackward(const LstmOperands& o, bool stacked) : stacked_(stacked), reverse_(o.reverse) {
    const std::array<Tensor, kOperands> operands = o.differentiable();
    torch::autograd::edge_list edges;
    edges.reserve(kOperands);
    for (size_t i = 0; i < kOperands; ++i) {
      edges.push_back(requires_grad(operands[i]) ? torch::autograd::impl::gradient_edge(operands[i])
                                                 : Edge());
      saved_[i] = SavedVariable(operands[i], /*is_output=*/false);
    }
    saved_[kOperands] = SavedVariable(o.lengths.value_or(Tensor()), false);
    saved_[kOperands + 1] = SavedVariable(o.batch_sizes.value_or(Tensor()), false);
    set_next_edges(std::move(edges));
  }

  // What the forward pass found; `output` is the node's first result.
  void save_results(const Tensor& output, const Tensor& gates, const Tensor& cells) {
    output_ = SavedVariable(output, /*is_output=*/true);
    gates_ = SavedVariable(gates, false);
    cells_ = SavedVariable(cells, false);
  }

  std::string name() const override { return "LstmLayerBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& s : saved_) s.reset_data();
    for (SavedVariable* s : {&output_, &gates_, &cells_}) s->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    const LstmOperands o = operands();
    const LstmSaved saved{output_.unpack(getptr()), gates_.unpack(), cells_.unpack()};
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined())
      return variable_list(kOperands);
    const auto state = [&](const Tensor& grad) {
      return if_defined(grad.defined() && stacked_ ? grad.squeeze(0) : grad);
    };
    const LstmGrads given{if_defined(grads[0]), state(grads[1]), state(grads[2])};
    std::array<bool, kOperands> mask{};
    for (size_t i = 0; i < kOperands; ++i) mask[i] = task_should_compute_output(i);
    if (at::GradMode::is_enabled() || !have_memory(grads))
      return composed_lstm_gradients(given, o, mask);
    LstmGradients g = lstm_layer_backward_cpu(given, o, saved, mask);
    return {std::move(g.input),     std::move(g.h_0),       std::move(g.c_0),
            std::move(g.weight_ih), std::move(g.weight_hh), std::move(g.bias_ih),
            std::move(g.bias_hh),   std::move(g.weight_hr)};
  }

 private:
  LstmOperands operands() const {
    std::array<Tensor, kOperands + 2> tensors;
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i] = saved_[i].unpack();
    return lstm_operands(tensors, reverse_);
  }

  bool stacked_, reverse_;
  std::array<SavedVariable, kOperands + 2> saved_;
  SavedVariable output_, gates_, cells_;
};

bool is_float_or_double(const Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble;
}

}  // namespace

bool is_plain_lstm(const LstmOperands& o) {
  return is_float_or_double(o.input) && are_plain(o.differentiable());
}

Tensor3 plain_lstm_layer(const LstmOperands& o, bool stacked) {
  const bool wants_graph = differentiates(o);
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const auto [output, h_n, c_n, gates, cells] = lstm_layer_forward_cpu(o, wants_graph);
  if (stacked) {
    add_first_dimension(h_n);
    add_first_dimension(c_n);
  }
  if (wants_graph) {
    const auto node = c10::make_intrusive<LstmLayerBackward>(o, stacked);
    for (const Tensor* result : {&output, &h_n, &c_n}) torch::autograd::set_history(*result, node);
    node->save_results(output, gates, cells);
  }
  return {output, h_n, c_n};
}

}  // namespace fastconv::bindings
