// SPDX-License-Identifier: MIT
// fastconv::lstm_cell: one step for callers that loop. What is not a plain float32 call on the CPU
// (other dtypes, subclasses, transforms, tangents, arguments that do not fit) goes to lstm_layer,
// which has a rule for everything.
#include "bindings/lstm_cell.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "bindings/lstm_args.h"
#include "bindings/plain_tensors.h"
#include "bindings/scratch.h"
#include "cpu/lstm/lstm.h"

namespace fastconv::bindings {
namespace {

using torch::autograd::Edge;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// input, h, c, weight_ih, weight_hh, bias_ih, bias_hh; absent ones are undefined.
using CellOperands = std::array<Tensor, 7>;

constexpr size_t kWeights = 3;  // the first of them

const float* read(const Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

Tensor empty(int64_t rows, int64_t columns) {
  return at::detail::empty_cpu({rows, columns}, at::kFloat, /*pin_memory=*/false, std::nullopt);
}

LstmShape shape_of(const CellOperands& o) {
  const int64_t hidden = o[kWeights].size(0) / 4;
  return {1, o[0].size(0), o[0].size(1), hidden, hidden, false, false, nullptr};
}

bool has_size(const Tensor& t, int64_t rows, int64_t columns) {
  return !t.defined() || (t.dim() == 2 && t.size(0) == rows && t.size(1) == columns);
}

bool has_size(const Tensor& t, int64_t size) {
  return !t.defined() || (t.dim() == 1 && t.size(0) == size);
}

// True for dense float32 tensors in CPU memory and nothing else in sight.
bool is_plain(const CellOperands& operands) {
  if (!are_plain(operands)) return false;
  for (const Tensor& t : operands)
    if (t.defined() && !(t.scalar_type() == at::kFloat && t.is_contiguous())) return false;
  const Tensor &input = operands[0], &weight = operands[kWeights];
  if (input.dim() != 2 || weight.dim() != 2 || input.size(0) == 0 || weight.size(0) == 0 ||
      weight.size(0) % 4 != 0)
    return false;
  const LstmShape s = shape_of(operands);
  return has_size(operands[1], s.batch, s.hidden) && has_size(operands[2], s.batch, s.hidden) &&
         has_size(weight, s.gates(), s.input) && has_size(operands[4], s.gates(), s.hidden) &&
         has_size(operands[5], s.gates()) && has_size(operands[6], s.gates());
}

struct CellResults {
  Tensor h, c, gates, cells;
};

CellResults forward(const CellOperands& o, bool training) {
  const LstmShape s = shape_of(o);
  CellResults r{empty(s.batch, s.hidden), empty(s.batch, s.hidden), {}, {}};
  if (training) {
    r.gates = empty(s.batch, s.gates());
    r.cells = empty(s.batch, s.hidden);  // not c itself, which callers may overwrite
  }
  const cpu::LstmForward<float> call{s,
                                     read(o[0]),
                                     read(o[1]),
                                     read(o[2]),
                                     read(o[3]),
                                     read(o[4]),
                                     read(o[5]),
                                     read(o[6]),
                                     nullptr,
                                     r.h.mutable_data_ptr<float>(),
                                     nullptr,
                                     r.c.mutable_data_ptr<float>(),
                                     training ? r.gates.mutable_data_ptr<float>() : nullptr,
                                     training ? r.cells.mutable_data_ptr<float>() : nullptr};
  const Scratch scratch(cpu::lstm_forward_scratch(call));
  cpu::lstm_forward(call, scratch.data());
  return r;
}

class LstmCellBackward : public torch::autograd::Node {
 public:
  LstmCellBackward(const CellOperands& operands, const CellResults& results)
      : shape_(shape_of(operands)),
        weights_(LstmCellWeights::of({operands[3], operands[4], operands[5], operands[6]})),
        gates_(results.gates, /*is_output=*/false),
        cells_(results.cells, /*is_output=*/false) {
    torch::autograd::edge_list edges;
    edges.reserve(operands.size());
    for (size_t i = 0; i < operands.size(); ++i) {
      const bool wanted = operands[i].defined() && operands[i].requires_grad();
      edges.push_back(!wanted         ? Edge()
                      : i >= kWeights ? Edge(weights_, static_cast<uint32_t>(i - kWeights))
                                      : torch::autograd::impl::gradient_edge(operands[i]));
      saved_[i] = SavedVariable(operands[i], /*is_output=*/false);
    }
    set_next_edges(std::move(edges));
  }

  std::string name() const override { return "LstmCellBackward"; }

  void release_variables() override {
    const std::lock_guard lock(mutex_);
    for (SavedVariable& s : saved_) s.reset_data();
    gates_.reset_data();
    cells_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard lock(mutex_);
    CellOperands o;
    for (size_t i = 0; i < o.size(); ++i) o[i] = saved_[i].unpack();
    const Tensor gates = gates_.unpack(), cells = cells_.unpack();
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(o.size());
    if (at::GradMode::is_enabled() || !have_memory(grads)) return composed(o, grads);
    return gradients(o, gates, cells, grads);
  }

 private:
  variable_list gradients(const CellOperands& o, const Tensor& gates, const Tensor& cells,
                          const variable_list& grads) {
    variable_list result(o.size());
    const Tensor grad_h = grads[0].defined() ? grads[0].contiguous() : Tensor();
    const Tensor grad_c = grads[1].defined() ? grads[1].contiguous() : Tensor();
    if (task_should_compute_output(0)) result[0] = empty(shape_.batch, shape_.input);
    result[1] = empty(shape_.batch, shape_.hidden);
    result[2] = empty(shape_.batch, shape_.hidden);
    cpu::LstmBackward<float> call{};
    call.shape = shape_;
    call.input = read(o[0]);
    call.h_0 = read(o[1]);
    call.c_0 = read(o[2]);
    call.weight_ih = read(o[3]);
    call.weight_hh = read(o[4]);
    call.gates = read(gates);
    call.cells = read(cells);
    call.grad_h_n = read(grad_h);
    call.grad_c_n = read(grad_c);
    call.grad_input = result[0].defined() ? result[0].mutable_data_ptr<float>() : nullptr;
    call.grad_h_0 = result[1].mutable_data_ptr<float>();
    call.grad_c_0 = result[2].mutable_data_ptr<float>();
    bool weights = false;
    for (size_t i = kWeights; i < o.size(); ++i) weights |= task_should_compute_output(i);
    if (weights) call.grad_gates = weights_->add_step(shape_, o[0], o[1]);
    const Scratch scratch(cpu::lstm_backward_scratch(call));
    cpu::lstm_backward(call, scratch.data());
    return result;
  }

  // Gradients by torch's operators, which can be differentiated again and batched.
  variable_list composed(const CellOperands& o, const variable_list& grads) {
    const auto optional = [](const Tensor& t) {
      return t.defined() ? OptionalTensor(t) : OptionalTensor();
    };
    std::array<bool, LstmOperands::kDifferentiable> mask{};
    for (size_t i = 0; i < o.size(); ++i) mask[i] = task_should_compute_output(i);
    variable_list result = composed_lstm_gradients(
        {std::nullopt, optional(grads[0]), optional(grads[1])},
        {o[0].unsqueeze(0), optional(o[1]), optional(o[2]), o[3], o[4], optional(o[5]),
         optional(o[6]), std::nullopt, std::nullopt, std::nullopt, false},
        mask);
    if (result[0].defined()) result[0] = result[0].squeeze(0);
    result.resize(o.size());
    return result;
  }

  LstmShape shape_;
  c10::intrusive_ptr<LstmCellWeights> weights_;
  std::array<SavedVariable, 7> saved_;
  SavedVariable gates_, cells_;
};

Tensor2 lstm_cell_by_layer(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                           const Tensor& weight_ih, const Tensor& weight_hh,
                           const OptionalTensor& bias_ih, const OptionalTensor& bias_hh) {
  TORCH_CHECK_VALUE(input.dim() == 2, "lstm_cell: expected input of shape [B, I], got ",
                    input.sizes());
  const auto [output, h, c] =
      call_lstm_layer({input.unsqueeze(0), hx, cx, weight_ih, weight_hh, bias_ih, bias_hh,
                       std::nullopt, std::nullopt, std::nullopt, false});
  return {h, c};
}

Tensor2 lstm_cell(const Tensor& input, const OptionalTensor& hx, const OptionalTensor& cx,
                  const Tensor& weight_ih, const Tensor& weight_hh, const OptionalTensor& bias_ih,
                  const OptionalTensor& bias_hh) {
  const auto given = [](const OptionalTensor& t) { return t.has_value() ? *t : Tensor(); };
  const CellOperands o{input,     given(hx),      given(cx),     weight_ih,
                       weight_hh, given(bias_ih), given(bias_hh)};
  if (!is_plain(o))
    return lstm_cell_by_layer(input, hx, cx, weight_ih, weight_hh, bias_ih, bias_hh);
  bool differentiates = false;
  if (at::GradMode::is_enabled())
    for (const Tensor& t : o) differentiates |= t.defined() && t.requires_grad();
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const CellResults r = forward(o, differentiates);
  if (differentiates) {
    const auto node = c10::make_intrusive<LstmCellBackward>(o, r);
    torch::autograd::set_history(r.h, node);
    torch::autograd::set_history(r.c, node);
  }
  return {r.h, r.c};
}

}  // namespace

Tensor2 call_lstm_cell(const Tensor& input, const OptionalTensor& h_0, const OptionalTensor& c_0,
                       const Tensor& weight_ih, const Tensor& weight_hh,
                       const OptionalTensor& bias_ih, const OptionalTensor& bias_hh) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastconv::lstm_cell", "")
                             .typed<decltype(call_lstm_cell)>();
  return op.call(input, h_0, c_0, weight_ih, weight_hh, bias_ih, bias_hh);
}

TORCH_LIBRARY_IMPL(fastconv, CompositeImplicitAutograd, m) {
  m.impl("lstm_cell", &lstm_cell_by_layer);
}

TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("lstm_cell", &lstm_cell);
}

TORCH_LIBRARY_IMPL(fastconv, AutogradCPU, m) {
  m.impl("lstm_cell", &lstm_cell);
}

// lstm_layer has a batching rule, too.
TORCH_LIBRARY_IMPL(fastconv, FuncTorchBatched, m) {
  m.impl("lstm_cell", &lstm_cell_by_layer);
}

// lstm_layer casts.
TORCH_LIBRARY_IMPL(fastconv, AutocastCPU, m) {
  m.impl("lstm_cell", &lstm_cell_by_layer);
}

TORCH_LIBRARY_IMPL(fastconv, AutocastCUDA, m) {
  m.impl("lstm_cell", &lstm_cell_by_layer);
}

}  // namespace fastconv::bindings
