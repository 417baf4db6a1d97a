// SPDX-License-Identifier: MIT
// Sums run in double whatever T is.
#include "cpu/lstm/lstm_reference.h"

#include <cmath>

#include "common/lstm_math.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

// The state a row of a step starts from: that of the step before it, or the initial one.
template <class T>
const T* state_before(const LstmShape& s, int64_t step, int64_t r, const T* states,
                      const T* initial, int64_t width) {
  if (r < s.continued(step)) return states + (s.first_row(s.step_before(step)) + r) * width;
  return initial == nullptr ? nullptr : initial + r * width;
}

template <class T>
double dot(const T* a, const T* b, int64_t size) {
  if (b == nullptr) return 0.0;
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// One row of one step. The cell state of the row is call.c_n[r], replaced in place.
template <class T>
void forward_row(const LstmForward<T>& call, int64_t step, int64_t r) {
  const LstmShape& s = call.shape;
  const int64_t row = s.first_row(step) + r;
  const T* h = state_before(s, step, r, call.output, call.h_0, s.output);
  T* c = call.c_n + r * s.hidden;
  T* out = call.output + row * s.output;
  if (s.projected)
    for (int64_t p = 0; p < s.output; ++p) out[p] = 0;
  for (int64_t u = 0; u < s.hidden; ++u) {
    double gate[4];
    for (int64_t g = 0; g < 4; ++g) {
      const int64_t j = g * s.hidden + u;
      double sum = dot(call.weight_ih + j * s.input, call.input + row * s.input, s.input) +
                   dot(call.weight_hh + j * s.output, h, s.output);
      if (call.bias_ih != nullptr) sum += call.bias_ih[j];
      if (call.bias_hh != nullptr) sum += call.bias_hh[j];
      gate[g] = sum;
    }
    const auto gates = lstm_activate<double>({gate[0], gate[1], gate[2], gate[3]});
    if (call.gates != nullptr) {
      T* saved = call.gates + row * 4 * s.hidden + u;
      saved[0] = static_cast<T>(gates.i);
      saved[s.hidden] = static_cast<T>(gates.f);
      saved[2 * s.hidden] = static_cast<T>(gates.g);
      saved[3 * s.hidden] = static_cast<T>(gates.o);
    }
    const double cell = lstm_cell_state<double>(gates, c[u]);
    c[u] = static_cast<T>(cell);
    if (call.cells != nullptr) call.cells[row * s.hidden + u] = c[u];
    const double m = lstm_cell_output(gates, cell);
    if (!s.projected) {
      out[u] = static_cast<T>(m);
    } else {
      for (int64_t p = 0; p < s.output; ++p)
        out[p] += static_cast<T>(call.weight_hr[p * s.hidden + u] * m);
    }
  }
}

template <class T>
void forward(const LstmForward<T>& call) {
  const LstmShape& s = call.shape;
  record_kernel(KernelId::kLstmForward, "reference", Isa::kScalar);
  for (int64_t i = 0; i < s.batch * s.hidden; ++i) call.c_n[i] = call.c_0 ? call.c_0[i] : T{0};
  for (int64_t i = 0; i < s.batch * s.output; ++i) call.h_n[i] = call.h_0 ? call.h_0[i] : T{0};
  for (int64_t n = 0; n < s.steps; ++n) {
    const int64_t step = s.nth_step(n);
    for (int64_t r = 0; r < s.active(step); ++r) {
      forward_row(call, step, r);
      const T* out = call.output + (s.first_row(step) + r) * s.output;
      for (int64_t p = 0; p < s.output; ++p) call.h_n[r * s.output + p] = out[p];
    }
  }
}

// One row of one step: grad_h_0[r] and grad_c_0[r] hold the gradients of the row's state and become
// those of the state before. `m` and `grad_m` hold H elements, `grad_gates` 4 * H.
template <class T>
void backward_row(const LstmBackward<T>& call, int64_t step, int64_t r, T* m, T* grad_m,
                  T* grad_gates) {
  const LstmShape& s = call.shape;
  const int64_t row = s.first_row(step) + r, hidden = s.hidden, out = s.output;
  const T* x = call.input + row * s.input;
  const T* h = state_before(s, step, r, call.output, call.h_0, out);
  const T* c = state_before(s, step, r, call.cells, call.c_0, hidden);
  const T* gates = call.gates + row * 4 * hidden;
  T* grad_h = call.grad_h_0 + r * out;
  T* grad_c = call.grad_c_0 + r * hidden;
  if (call.grad_output != nullptr)
    for (int64_t p = 0; p < out; ++p) grad_h[p] += call.grad_output[row * out + p];
  for (int64_t u = 0; u < hidden; ++u) {
    m[u] = static_cast<T>(gates[3 * hidden + u] * std::tanh(call.cells[row * hidden + u]));
    if (!s.projected) {
      grad_m[u] = grad_h[u];
      continue;
    }
    double sum = 0.0;
    for (int64_t p = 0; p < out; ++p) {
      sum += static_cast<double>(grad_h[p]) * call.weight_hr[p * hidden + u];
      if (call.grad_weight_hr != nullptr) call.grad_weight_hr[p * hidden + u] += grad_h[p] * m[u];
    }
    grad_m[u] = static_cast<T>(sum);
  }
  for (int64_t u = 0; u < hidden; ++u) {
    const auto g = lstm_unit_gradients<double>(
        {gates[u], gates[hidden + u], gates[2 * hidden + u], gates[3 * hidden + u]},
        call.cells[row * hidden + u], c == nullptr ? 0.0 : c[u], grad_m[u], grad_c[u]);
    grad_gates[u] = static_cast<T>(g.gates.i);
    grad_gates[hidden + u] = static_cast<T>(g.gates.f);
    grad_gates[2 * hidden + u] = static_cast<T>(g.gates.g);
    grad_gates[3 * hidden + u] = static_cast<T>(g.gates.o);
    grad_c[u] = static_cast<T>(g.cell_before);
  }
  for (int64_t p = 0; p < out; ++p) {
    double sum = 0.0;
    for (int64_t j = 0; j < 4 * hidden; ++j)
      sum += static_cast<double>(grad_gates[j]) * call.weight_hh[j * out + p];
    grad_h[p] = static_cast<T>(sum);
  }
  for (int64_t k = 0; k < s.input && call.grad_input != nullptr; ++k) {
    double sum = 0.0;
    for (int64_t j = 0; j < 4 * hidden; ++j)
      sum += static_cast<double>(grad_gates[j]) * call.weight_ih[j * s.input + k];
    call.grad_input[row * s.input + k] = static_cast<T>(sum);
  }
  for (int64_t j = 0; j < 4 * hidden; ++j) {
    for (int64_t k = 0; k < s.input && call.grad_weight_ih != nullptr; ++k)
      call.grad_weight_ih[j * s.input + k] += grad_gates[j] * x[k];
    for (int64_t p = 0; p < out && call.grad_weight_hh != nullptr && h != nullptr; ++p)
      call.grad_weight_hh[j * out + p] += grad_gates[j] * h[p];
    if (call.grad_bias != nullptr) call.grad_bias[j] += grad_gates[j];
  }
}

template <class T>
void fill_zero(T* data, int64_t size) {
  for (int64_t i = 0; i < size && data != nullptr; ++i) data[i] = 0;
}

template <class T>
void backward(const LstmBackward<T>& call, T* scratch) {
  const LstmShape& s = call.shape;
  record_kernel(KernelId::kLstmBackward, "reference", Isa::kScalar);
  fill_zero(call.grad_weight_ih, s.gates() * s.input);
  fill_zero(call.grad_weight_hh, s.gates() * s.output);
  fill_zero(call.grad_bias, s.gates());
  fill_zero(call.grad_weight_hr, s.output * s.hidden);
  for (int64_t i = 0; i < s.batch * s.output; ++i)
    call.grad_h_0[i] = call.grad_h_n ? call.grad_h_n[i] : T{0};
  for (int64_t i = 0; i < s.batch * s.hidden; ++i)
    call.grad_c_0[i] = call.grad_c_n ? call.grad_c_n[i] : T{0};
  T *m = scratch, *grad_m = m + s.hidden, *grad_gates = grad_m + s.hidden;
  for (int64_t n = s.steps - 1; n >= 0; --n) {
    const int64_t step = s.nth_step(n);
    for (int64_t r = 0; r < s.active(step); ++r) backward_row(call, step, r, m, grad_m, grad_gates);
  }
}

}  // namespace

void lstm_forward_reference(const LstmForward<float>& call) {
  forward(call);
}

void lstm_forward_reference(const LstmForward<double>& call) {
  forward(call);
}

int64_t lstm_backward_reference_scratch(const LstmShape& shape) {
  return 6 * shape.hidden;
}

void lstm_backward_reference(const LstmBackward<float>& call, float* scratch) {
  backward(call, scratch);
}

void lstm_backward_reference(const LstmBackward<double>& call, double* scratch) {
  backward(call, scratch);
}

}  // namespace fastconv::cpu
