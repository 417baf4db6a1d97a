// SPDX-License-Identifier: MIT
// Gradients of a cell's weights over a whole backward pass.
//
// In a loop over a cell every step would add a gradient of the size of its weights to that of the
// steps before: twice the memory traffic of the step itself. Here a step leaves the gradients of
// its gates with its input and state before, some kilobytes, and undefined gradients of its
// weights. All steps that share weights point to one node of the graph, which autograd runs when
// the last of them has run, and which then multiplies once.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <array>
#include <unordered_map>

#include "bindings/ops.h"
#include "common/shapes.h"

namespace fastconv::bindings {

// Rows that steps have left, and the gradients of those that were too many to keep.
class LstmCellSums {
 public:
  explicit LstmCellSums(std::array<bool, 3> wanted) : wanted_(wanted) {}

  // Keeps the operands of a step and returns where the gradients of its gates go, [batch, 4 * H].
  // `shape` is that of the step; `before` may be undefined, which is zeros.
  float* add_step(const LstmShape& shape, const Tensor& input, const Tensor& before);

  // Gradients of weight_ih, weight_hh and a bias; those not wanted stay undefined.
  std::array<Tensor, 3> finish();

 private:
  void make_room(int64_t rows);
  void sum_up();

  std::array<bool, 3> wanted_;
  LstmShape shape_{};
  int64_t rows_ = 0, room_ = 0;
  Tensor gates_, input_, before_;
  std::array<Tensor, 3> totals_;
};

// The node. Its inputs and outputs are the gradients of weight_ih, weight_hh, bias_ih and bias_hh.
class LstmCellWeights : public torch::autograd::Node {
 public:
  // The node for these tensors: that of the calls before on this thread, as long as a graph holds
  // it.
  static c10::intrusive_ptr<LstmCellWeights> of(const std::array<Tensor, 4>& weights);

  // As LstmCellSums::add_step, for the backward pass that runs on this thread.
  float* add_step(const LstmShape& shape, const Tensor& input, const Tensor& before);

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override;
  std::string name() const override { return "LstmCellWeights"; }

 private:
  std::array<bool, 3> wanted() const;

  // By the number of the backward pass; guarded by the node's own mutex.
  std::unordered_map<int, LstmCellSums> passes_;
};

}  // namespace fastconv::bindings
