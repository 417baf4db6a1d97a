// SPDX-License-Identifier: MIT
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "bindings/lstm_cell.h"
#include "bindings/outputs.h"
#include "bindings/scratch.h"
#include "cpu/lstm/lstm.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::Edge;
using torch::autograd::edge_list;
using torch::autograd::variable_list;

// Rows that are kept before they are multiplied: enough for products at full speed.
constexpr int64_t kMostRows = 2048;
constexpr int64_t kFirstRows = 32;
// Nodes that a thread remembers: cells that one loop calls in turns.
constexpr size_t kRecent = 8;

Tensor grown(const Tensor& old, int64_t used, int64_t rows, int64_t width) {
  const Tensor grown = empty_output({rows * width + cpu::LstmWeightSums::kSlack},
                                    at::TensorOptions(at::kFloat), at::MemoryFormat::Contiguous);
  if (used > 0)
    std::copy_n(old.const_data_ptr<float>(), used * width, grown.mutable_data_ptr<float>());
  return grown;
}

}  // namespace

float* LstmCellSums::add_step(const LstmShape& shape, const Tensor& input, const Tensor& before) {
  if (rows_ > 0 && rows_ + shape.batch > kMostRows) sum_up();
  shape_ = shape;
  make_room(rows_ + shape.batch);
  const auto keep = [&](const Tensor& from, const Tensor& to, int64_t width) {
    float* rows = to.mutable_data_ptr<float>() + rows_ * width;
    if (from.defined())
      std::copy_n(from.const_data_ptr<float>(), shape.batch * width, rows);
    else
      std::fill_n(rows, shape.batch * width, 0.0f);
  };
  keep(input, input_, shape.input);
  keep(before, before_, shape.output);
  float* gates = gates_.mutable_data_ptr<float>() + rows_ * shape.gates();
  rows_ += shape.batch;
  return gates;
}

void LstmCellSums::make_room(int64_t rows) {
  if (rows <= room_) return;
  const int64_t room = std::max({rows, 2 * room_, kFirstRows});
  gates_ = grown(gates_, rows_, room, shape_.gates());
  input_ = grown(input_, rows_, room, shape_.input);
  before_ = grown(before_, rows_, room, shape_.output);
  room_ = room;
}

void LstmCellSums::sum_up() {
  LstmShape s = shape_;
  s.steps = 1;
  s.batch = rows_;
  const auto options = at::TensorOptions(at::kFloat);
  const std::array<std::vector<int64_t>, 3> sizes{
      std::vector<int64_t>{s.gates(), s.input}, {s.gates(), s.output}, {s.gates()}};
  std::array<Tensor, 3> sums;
  for (size_t i = 0; i < 3; ++i)
    if (wanted_[i]) sums[i] = empty_output(sizes[i], options, at::MemoryFormat::Contiguous);
  const auto write = [](const Tensor& t) {
    return t.defined() ? t.mutable_data_ptr<float>() : nullptr;
  };
  const cpu::LstmWeightSums call{s,
                                 gates_.const_data_ptr<float>(),
                                 input_.const_data_ptr<float>(),
                                 before_.const_data_ptr<float>(),
                                 write(sums[0]),
                                 write(sums[1]),
                                 write(sums[2])};
  const Scratch scratch(cpu::lstm_weight_sums_scratch(call));
  cpu::lstm_weight_sums(call, scratch.data());
  for (size_t i = 0; i < 3; ++i)
    totals_[i] = totals_[i].defined() ? totals_[i].add_(sums[i]) : sums[i];
  rows_ = 0;
}

std::array<Tensor, 3> LstmCellSums::finish() {
  if (rows_ > 0) sum_up();
  return totals_;
}

c10::intrusive_ptr<LstmCellWeights> LstmCellWeights::of(const std::array<Tensor, 4>& weights) {
  thread_local std::vector<c10::weak_intrusive_ptr<LstmCellWeights>> recent;
  thread_local size_t oldest = 0;
  edge_list edges;
  edges.reserve(weights.size());
  for (const Tensor& w : weights)
    edges.push_back(w.defined() && w.requires_grad() ? torch::autograd::impl::gradient_edge(w)
                                                     : Edge());
  // Where gradients go is all that matters: they do not depend on the values of the weights.
  for (const auto& known : recent)
    if (auto node = known.lock(); node && node->next_edges() == edges) return node;
  auto node = c10::make_intrusive<LstmCellWeights>();
  node->set_next_edges(std::move(edges));
  for (const Tensor& w : weights) {
    if (w.defined())
      node->add_input_metadata(w);
    else
      node->add_input_metadata(torch::autograd::Node::undefined_input());
  }
  if (recent.size() < kRecent) {
    recent.emplace_back(node);
  } else {
    recent[oldest] = c10::weak_intrusive_ptr<LstmCellWeights>(node);
    oldest = (oldest + 1) % kRecent;
  }
  return node;
}

std::array<bool, 3> LstmCellWeights::wanted() const {
  return {task_should_compute_output(0), task_should_compute_output(1),
          task_should_compute_output(2) || task_should_compute_output(3)};
}

float* LstmCellWeights::add_step(const LstmShape& shape, const Tensor& input,
                                 const Tensor& before) {
  const std::lock_guard lock(mutex_);
  const int pass = torch::autograd::get_current_graph_task_id();
  return passes_.try_emplace(pass, wanted()).first->second.add_step(shape, input, before);
}

variable_list LstmCellWeights::apply(variable_list&& grads) {
  // What steps gave as it is: gradients that can be differentiated themselves.
  variable_list result = std::move(grads);
  result.resize(4);
  const std::lock_guard lock(mutex_);
  const auto pass = passes_.find(torch::autograd::get_current_graph_task_id());
  if (pass == passes_.end()) return result;
  const at::AutoGradMode disable(false);
  const auto [weight_ih, weight_hh, bias] = pass->second.finish();
  passes_.erase(pass);
  const auto add = [&](size_t i, const Tensor& sum) {
    if (sum.defined() && task_should_compute_output(i))
      result[i] = result[i].defined() ? result[i] + sum : sum;
  };
  add(0, weight_ih);
  add(1, weight_hh);
  add(2, bias);
  // Two parameters must not share one gradient.
  add(3, task_should_compute_output(2) && bias.defined() ? bias.clone() : bias);
  return result;
}

}  // namespace fastconv::bindings
