// SPDX-License-Identifier: MIT
// LSTM kernels against the reference loops in double: every instruction set, ragged and full
// batches, both directions, projections, absent states and biases, one thread and three.
#include "cpu/lstm/lstm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/lstm/lstm_reference.h"
#include "lstm_problem.h"

namespace {

using namespace fastconv;
using namespace fastconv::testing;

void run_kernels(const Case& c, const LstmShape& s, Problem<float>& p, bool training) {
  const auto forward = forward_call(c, s, p, training);
  Floats scratch(cpu::lstm_forward_scratch(forward));
  cpu::lstm_forward(forward, scratch.data());
  if (!training) return;
  const auto backward = backward_call(c, s, p);
  Floats more(cpu::lstm_backward_scratch(backward));
  cpu::lstm_backward(backward, more.data());
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Problem<double> by_definition(const Case& c, const LstmShape& s) {
  Problem<double> exact = make_problem<double>(s);
  cpu::lstm_forward_reference(forward_call(c, s, exact, true));
  std::vector<double> work(static_cast<size_t>(cpu::lstm_backward_reference_scratch(s)));
  cpu::lstm_backward_reference(backward_call(c, s, exact), work.data());
  return exact;
}

void test_kernels(const Case& c, const LstmShape& s, const Problem<double>& exact, cpu::Isa isa) {
  const std::string context = std::string(cpu::isa_name(isa)) + " I" + std::to_string(c.input) +
                              " H" + std::to_string(c.hidden) + " P" + std::to_string(c.output) +
                              " B" + std::to_string(c.batch) + " T" + std::to_string(c.steps) +
                              (c.reverse ? " reverse" : "") + (c.lengths.empty() ? "" : " ragged");
  use_no_threads();
  Problem<float> one = make_problem<float>(s);
  run_kernels(c, s, one, true);
  compare(one.output, exact.output, context + " output");
  compare(one.h_n, exact.h_n, context + " h_n");
  compare(one.c_n, exact.c_n, context + " c_n");
  compare(one.grad_x, exact.grad_x, context + " grad_input");
  compare(one.grad_h_0, exact.grad_h_0, context + " grad_h_0");
  compare(one.grad_c_0, exact.grad_c_0, context + " grad_c_0");
  compare(one.grad_w_ih, exact.grad_w_ih, context + " grad_weight_ih");
  compare(one.grad_w_hh, exact.grad_w_hh, context + " grad_weight_hh");
  if (c.biases) compare(one.grad_b, exact.grad_b, context + " grad_bias");
  if (s.projected) compare(one.grad_w_hr, exact.grad_w_hr, context + " grad_weight_hr");

  Problem<float> inference = make_problem<float>(s);
  run_kernels(c, s, inference, false);
  CHECK_WITH(same_bits(inference.output, one.output), context + " inference");

  use_threads();
  Problem<float> three = make_problem<float>(s);
  run_kernels(c, s, three, true);
  CHECK_WITH(same_bits(three.output, one.output) && same_bits(three.c_n, one.c_n) &&
                 same_bits(three.h_n, one.h_n),
             context + " threads, forward");
  CHECK_WITH(same_bits(three.grad_x, one.grad_x) && same_bits(three.grad_h_0, one.grad_h_0) &&
                 same_bits(three.grad_c_0, one.grad_c_0) &&
                 same_bits(three.grad_w_ih, one.grad_w_ih) &&
                 same_bits(three.grad_w_hh, one.grad_w_hh) && same_bits(three.grad_b, one.grad_b) &&
                 same_bits(three.grad_w_hr, one.grad_w_hr),
             context + " threads, backward");
  use_no_threads();
}

// A step that leaves the gradients of its gates, and the sums formed of them afterwards.
void test_weight_sums(const Case& c, const LstmShape& s, const Problem<double>& exact,
                      cpu::Isa isa) {
  const std::string context = std::string(cpu::isa_name(isa)) + " sums of " +
                              std::to_string(c.batch) + " rows H" + std::to_string(c.hidden);
  std::vector<float> first;
  for (const bool threads : {false, true}) {
    threads ? use_threads() : use_no_threads();
    Problem<float> p = make_problem<float>(s);
    auto forward = forward_call(c, s, p, true);
    forward.h_n = nullptr;
    forward.cells = forward.c_n;
    Floats scratch(cpu::lstm_forward_scratch(forward));
    cpu::lstm_forward(forward, scratch.data());
    Floats gates(s.rows() * s.gates() + cpu::LstmWeightSums::kSlack);
    auto backward = backward_call(c, s, p);
    backward.cells = forward.c_n;
    backward.grad_weight_ih = backward.grad_weight_hh = backward.grad_bias = nullptr;
    backward.grad_gates = gates.data();
    Floats more(cpu::lstm_backward_scratch(backward));
    cpu::lstm_backward(backward, more.data());
    compare(p.grad_x, exact.grad_x, context + " grad_input");
    compare(p.grad_h_0, exact.grad_h_0, context + " grad_h_0");
    const cpu::LstmWeightSums sums{s,
                                   gates.data(),
                                   p.x.data(),
                                   c.states ? p.h_0.data() : nullptr,
                                   p.grad_w_ih.data(),
                                   p.grad_w_hh.data(),
                                   c.biases ? p.grad_b.data() : nullptr};
    Floats last(cpu::lstm_weight_sums_scratch(sums));
    cpu::lstm_weight_sums(sums, last.data());
    compare(p.grad_w_ih, exact.grad_w_ih, context + " grad_weight_ih");
    compare(p.grad_w_hh, exact.grad_w_hh, context + " grad_weight_hh");
    if (c.biases) compare(p.grad_b, exact.grad_b, context + " grad_bias");
    if (!threads) first = p.grad_w_hh;
    CHECK_WITH(same_bits(p.grad_w_hh, first), context + " threads");
  }
  use_no_threads();
}

// A gate taken for another one must show.
void test_negative_control() {
  const Case c{3, 5, 5, 4, {}, 3, false, true, true};
  const LstmShape s = shape_of(c, {});
  Problem<double> exact = make_problem<double>(s);
  cpu::lstm_forward_reference(forward_call(c, s, exact, true));
  Problem<float> swapped = make_problem<float>(s);
  std::swap_ranges(swapped.w_ih.begin(), swapped.w_ih.begin() + 5 * 3,
                   swapped.w_ih.begin() + 5 * 3);
  run_kernels(c, s, swapped, false);
  double worst = 0;
  for (size_t i = 0; i < exact.output.size(); ++i)
    worst = std::max(worst, std::fabs(exact.output[i] - swapped.output[i]));
  CHECK(worst > 1e-2);
}

// Denormal inputs count as zero inside, and the caller's setting comes back.
void test_denormals() {
  const Case c{16, 32, 32, 8, {}, 4, false, true, false};
  const LstmShape s = shape_of(c, {});
  Problem<float> p = make_problem<float>(s);
  for (float& v : p.x) v = 1e-40f;
  for (float& v : p.h_0) v = 1e-41f;
  for (float& v : p.c_0) v = 1e-42f;
  run_kernels(c, s, p, true);
  for (const float v : p.output) CHECK(v == 0.0f);
  volatile float tiny = 1e-39f;
  CHECK(tiny * 0.5f > 0.0f);
}

std::vector<Case> cases() {
  std::vector<Case> all = {
      {1, 1, 1, 1, {}, 1, false, false, false},
      {1, 50, 50, 32, {}, 4, false, false, true},
      {3, 5, 5, 4, {}, 3, false, true, true},
      {3, 5, 5, 4, {}, 3, true, true, true},
      {20, 33, 33, 7, {}, 5, false, true, true},
      {20, 33, 33, 7, {}, 5, true, false, true},
      {9, 16, 16, 13, {}, 6, true, true, false},
      {64, 128, 128, 14, {}, 3, false, true, true},
      {20, 50, 50, 1, {}, 1, false, true, true},
      {20, 37, 37, 6, {}, 1, true, true, false},
      {70, 130, 130, 2, {}, 3, false, true, true},
      {20, 50, 50, 31, {}, 1, false, true, true},
      {9, 64, 64, 65, {}, 1, false, true, true},
      {130, 256, 256, 1, {}, 1, false, false, true},
      {130, 257, 257, 32, {}, 1, false, true, true},
      {12, 70, 70, 1, {}, 40, false, true, true},
      {12, 70, 70, 2, {}, 9, true, true, true},
      {5, 24, 7, 9, {}, 4, false, true, true},
      {5, 24, 40, 9, {}, 4, true, true, true},
      {7, 19, 19, 6, {8, 5, 5, 2, 1, 0}, 8, false, true, true},
      {7, 19, 19, 6, {8, 5, 5, 2, 1, 0}, 8, true, true, true},
      {7, 19, 11, 6, {8, 5, 5, 2, 1, 0}, 8, true, false, true},
      {7, 34, 34, 14, {5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 2, 1, 1}, 5, true, true, true},
      {7, 17, 9, 27, {}, 5, false, true, false},
      {10, 300, 300, 3, {6, 4, 3}, 6, true, true, true},
      {40, 260, 260, 9, {}, 3, false, true, true},
  };
  // Enough gates for backward tiles that ask ahead.
  all.push_back({6, 50, 50, 33, {}, 6, false, true, true});
  all.push_back({6, 100, 100, 14, {}, 7, true, true, true});
  all.push_back({5, 140, 140, 12, {9, 9, 9, 9, 9, 7, 7, 7, 6, 3, 3, 1}, 9, false, true, true});
  all.push_back({5, 140, 140, 12, {9, 9, 9, 9, 9, 7, 7, 7, 6, 3, 3, 1}, 9, true, false, true});
  // Large enough for a split by units.
  all.push_back({24, 512, 512, 5, {}, 2, false, true, true});
  all.push_back({24, 512, 512, 2, {}, 9, true, true, true});
  all.push_back({24, 512, 80, 5, {3, 3, 2, 2, 1}, 3, true, true, true});
  // High tiles and weights beyond the caches: tiles that ask for the next block's weights.
  all.push_back({4, 880, 880, 19, {}, 2, true, true, true});
  return all;
}

}  // namespace

int main() {
  for (const Case& c : cases()) {
    const std::vector<int64_t> starts = row_starts(c);
    const LstmShape s = shape_of(c, starts);
    const Problem<double> exact = by_definition(c, s);
    for_each_isa([&](cpu::Isa isa) { test_kernels(c, s, exact, isa); });
  }
  for (const Case& c :
       {Case{3, 5, 5, 4, {}, 1, false, true, true}, Case{20, 50, 50, 64, {}, 1, false, false, true},
        Case{20, 50, 50, 65, {}, 1, false, true, false},
        Case{70, 130, 130, 1, {}, 1, false, true, true},
        Case{33, 70, 70, 600, {}, 1, false, true, true}}) {
    const LstmShape s = shape_of(c, {});
    const Problem<double> exact = by_definition(c, s);
    for_each_isa([&](cpu::Isa isa) { test_weight_sums(c, s, exact, isa); });
  }
  for_each_isa([](cpu::Isa) {
    test_negative_control();
    test_denormals();
  });
  return report();
}
