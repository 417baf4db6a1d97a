// SPDX-License-Identifier: MIT
// One LSTM layer with random operands: what the tests of the CPU's and of the CUDA kernels share.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "common/shapes.h"
#include "cpu/lstm/lstm.h"

namespace fastconv::testing {

struct Case {
  int64_t input, hidden, output, batch;
  std::vector<int64_t> lengths;  // descending; empty: `steps` for all
  int64_t steps;
  bool reverse, states, biases;
};

// All operands of one case in precision T, and room for all results.
template <class T>
struct Problem {
  std::vector<T> x, h_0, c_0, w_ih, w_hh, b_ih, b_hh, w_hr, grad_output, grad_h_n, grad_c_n;
  std::vector<T> output, h_n, c_n, gates, cells;
  std::vector<T> grad_x, grad_h_0, grad_c_0, grad_w_ih, grad_w_hh, grad_b, grad_w_hr;
};

inline std::vector<int64_t> row_starts(const Case& c) {
  std::vector<int64_t> starts{0};
  for (int64_t t = 0; t < c.steps; ++t) {
    int64_t active = 0;
    for (const int64_t length : c.lengths) active += length > t;
    starts.push_back(starts.back() + active);
  }
  return starts;
}

inline LstmShape shape_of(const Case& c, const std::vector<int64_t>& starts) {
  return {c.steps,   c.batch,
          c.input,   c.hidden,
          c.output,  c.output != c.hidden,
          c.reverse, c.lengths.empty() ? nullptr : starts.data()};
}

template <class T>
std::vector<T> draw(Numbers& numbers, int64_t size, float scale) {
  std::vector<T> values(static_cast<size_t>(size));
  for (T& v : values) v = static_cast<T>(numbers.real() * scale);
  return values;
}

template <class T>
Problem<T> make_problem(const LstmShape& s) {
  Numbers numbers(7);
  Problem<T> p;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.hidden));
  p.x = draw<T>(numbers, s.rows() * s.input, 1.0f);
  p.h_0 = draw<T>(numbers, s.batch * s.output, 0.5f);
  p.c_0 = draw<T>(numbers, s.batch * s.hidden, 0.5f);
  p.w_ih = draw<T>(numbers, s.gates() * s.input, scale);
  p.w_hh = draw<T>(numbers, s.gates() * s.output, scale);
  p.b_ih = draw<T>(numbers, s.gates(), scale);
  p.b_hh = draw<T>(numbers, s.gates(), scale);
  p.w_hr = draw<T>(numbers, s.output * s.hidden, scale);
  p.grad_output = draw<T>(numbers, s.rows() * s.output, 1.0f);
  p.grad_h_n = draw<T>(numbers, s.batch * s.output, 1.0f);
  p.grad_c_n = draw<T>(numbers, s.batch * s.hidden, 1.0f);
  const auto nan = std::numeric_limits<T>::quiet_NaN();
  const auto room = [&](int64_t size) { return std::vector<T>(static_cast<size_t>(size), nan); };
  p.output = room(s.rows() * s.output);
  p.h_n = room(s.batch * s.output);
  p.c_n = room(s.batch * s.hidden);
  p.gates = room(s.rows() * s.gates());
  p.cells = room(s.rows() * s.hidden);
  p.grad_x = room(s.rows() * s.input);
  p.grad_h_0 = room(s.batch * s.output);
  p.grad_c_0 = room(s.batch * s.hidden);
  p.grad_w_ih = room(s.gates() * s.input);
  p.grad_w_hh = room(s.gates() * s.output);
  p.grad_b = room(s.gates());
  p.grad_w_hr = room(s.output * s.hidden);
  return p;
}

template <class T>
cpu::LstmForward<T> forward_call(const Case& c, const LstmShape& s, Problem<T>& p, bool training) {
  return {s,
          p.x.data(),
          c.states ? p.h_0.data() : nullptr,
          c.states ? p.c_0.data() : nullptr,
          p.w_ih.data(),
          p.w_hh.data(),
          c.biases ? p.b_ih.data() : nullptr,
          c.biases ? p.b_hh.data() : nullptr,
          s.projected ? p.w_hr.data() : nullptr,
          p.output.data(),
          p.h_n.data(),
          p.c_n.data(),
          training ? p.gates.data() : nullptr,
          training ? p.cells.data() : nullptr};
}

template <class T>
cpu::LstmBackward<T> backward_call(const Case& c, const LstmShape& s, Problem<T>& p) {
  return {s,
          p.x.data(),
          c.states ? p.h_0.data() : nullptr,
          c.states ? p.c_0.data() : nullptr,
          p.w_ih.data(),
          p.w_hh.data(),
          s.projected ? p.w_hr.data() : nullptr,
          p.output.data(),
          p.gates.data(),
          p.cells.data(),
          p.grad_output.data(),
          c.states ? p.grad_h_n.data() : nullptr,
          c.states ? p.grad_c_n.data() : nullptr,
          p.grad_x.data(),
          p.grad_h_0.data(),
          p.grad_c_0.data(),
          p.grad_w_ih.data(),
          p.grad_w_hh.data(),
          c.biases ? p.grad_b.data() : nullptr,
          s.projected ? p.grad_w_hr.data() : nullptr};
}

inline double rms(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v * v;
  return values.empty() ? 0 : std::sqrt(sum / static_cast<double>(values.size()));
}

inline void compare(const std::vector<float>& got, const std::vector<double>& want,
                    const std::string& context) {
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i)
    worst = std::isnan(got[i]) ? 1e30 : std::max(worst, std::fabs(got[i] - want[i]));
  CHECK_WITH(worst <= 1e-5 * rms(want) + 1e-7, context + ": " + std::to_string(worst));
}

}  // namespace fastconv::testing
