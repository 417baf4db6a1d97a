// SPDX-License-Identifier: MIT
// The CUDA kernels of Adam in the emulator against the unfolded formula in double: every type,
// option and schedule, tensors around vectors and chunks, aligned alike or not.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "check.h"
#include "cpu/adam/adam_reference.h"
#include "cuda/adam/adam.h"
#include "cuda_check.h"

namespace fastconv::cuda {
namespace {

using cuda_shim::Flush;
using testing::errors_end_the_call;
using testing::for_each_schedule;
using testing::kThreadSanitizer;
using testing::Numbers;

constexpr int kMultiprocessors = 4;

// Guarded memory that ends where its values do, or `shift` values later than a vector begins.
template <typename T>
class Device {
 public:
  explicit Device(int64_t count, int64_t shift = 0, T value = T{})
      : count_(count),
        base_(static_cast<T*>(cuda_shim::guarded_allocate(
            sizeof(T) * static_cast<size_t>(count + shift), 16, Flush::kEnd, "adam"))),
        data_(base_ + shift) {
    for (int64_t i = 0; i < count; ++i) data_[i] = value;
  }
  Device(Device&& other) noexcept
      : count_(other.count_), base_(std::exchange(other.base_, nullptr)), data_(other.data_) {}
  ~Device() {
    if (base_ != nullptr) CHECK(cuda_shim::guarded_free(base_));
  }
  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t count_;
  T* base_;
  T* data_;
};

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

template <typename T>
double as_double(T x) {
  if constexpr (std::is_same_v<T, uint16_t>) return from_bfloat16(x);
  return static_cast<double>(x);
}
template <typename T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, uint16_t>) return to_bfloat16(static_cast<float>(x));
  return static_cast<T>(x);
}

struct Options {
  bool amsgrad = false;
  bool maximize = false;
  bool decoupled = false;
  double weight_decay = 0.0;
  double beta1 = 0.9;
  double max_norm = -1.0;
};

// One tensor as the kernels see it, and the same numbers in double for the formula.
template <typename Element, typename State, AdamType kType>
struct Case {
  int64_t size;
  Device<Element> param, grad;
  Device<State> exp_avg, exp_avg_sq, max_exp_avg_sq;
  Device<float> step;
  std::vector<double> p, g, m, v, largest;

  // Shift: of param and grad; the averages' differs where `together` is false.
  Case(int64_t n, int64_t shift, bool together, Numbers& numbers)
      : size(n),
        param(n, shift),
        grad(n, shift),
        exp_avg(n, together ? shift : 1),
        exp_avg_sq(n, together ? shift : 0),
        max_exp_avg_sq(n, shift),
        step(1),
        p(n),
        g(n),
        m(n),
        v(n),
        largest(n) {
    for (int64_t i = 0; i < n; ++i)
      p[i] = as_double(param[i] = from_double<Element>(numbers.real()));
  }
  void draw_gradient(Numbers& numbers) {
    for (int64_t i = 0; i < size; ++i)
      g[i] = as_double(grad[i] = from_double<Element>(numbers.real()));
  }
  AdamTensor tensor(bool amsgrad) const {
    return {param.data(),
            grad.data(),
            exp_avg.data(),
            exp_avg_sq.data(),
            amsgrad ? max_exp_avg_sq.data() : nullptr,
            step.data(),
            size,
            kType,
            0};
  }
};

double difference(double actual, double expected) {
  return std::abs(actual - expected) / (1.0 + std::abs(expected));
}

struct Sizes {
  int64_t size, shift;
  bool together;
};
// 2048 elements make a chunk.
#ifdef __SANITIZE_THREAD__  // which takes its time over every emulated thread: what waits for what
constexpr Sizes kSizes[] = {{7, 1, true}, {2050, 3, true}};
constexpr int kSteps = 1;
#else
constexpr Sizes kSizes[] = {{0, 0, true},    {1, 0, true},   {7, 1, true},     {2048, 0, true},
                            {2050, 3, true}, {40, 1, false}, {2047, 2, false}, {4099, 1, true}};
constexpr int kSteps = 3;
#endif

// A few steps of a list of tensors with one set of options.
template <typename Element, typename State, AdamType kType>
void compare_with_formula(const Options& o, double tolerance, double param_tolerance) {
  Numbers numbers(11);
  std::vector<Case<Element, State, kType>> cases;
  for (const Sizes& s : kSizes) cases.emplace_back(s.size, s.shift, s.together, numbers);
  const AdamGroup group{nullptr, 1e-2,           o.beta1,     0.99,
                        1e-8,    o.weight_decay, o.decoupled, o.maximize};
  Device<AdamState> state(1);
  std::memset(state.data(), 0, sizeof(AdamState));
  for (int number = 1; number <= kSteps; ++number) {
    std::vector<AdamTensor> tensors;
    double squares = 0.0;
    for (auto& c : cases) {
      c.draw_gradient(numbers);
      for (const double g : c.g) squares += g * g;
      tensors.push_back(c.tensor(o.amsgrad));
    }
    const AdamStep step{tensors.data(), static_cast<int64_t>(tensors.size()),
                        &group,         nullptr,
                        nullptr,        o.max_norm,
                        false,          0.0,
                        true,           false,
                        state.data(),   kMultiprocessors};
    double factor = 1.0;
    if (adam_needs_norm(step)) {
      Device<char> workspace(adam_norm_workspace_bytes(step));
      CHECK(launch_adam_norm(step, workspace.data(), nullptr) == cudaSuccess);
      CHECK(difference(state[0].norm, std::sqrt(squares)) < 1e-12);
      factor = std::min(1.0, o.max_norm / (std::sqrt(squares) + 1e-6));
    }
    CHECK(launch_adam_update(step, nullptr) == cudaSuccess);
    CHECK(state[0].norm_ticket == 0 && state[0].update_ticket == 0);
    const AdamStepScalars scalars{o.beta1,
                                  0.99,
                                  1e-8,
                                  1e-2 / (1.0 - std::pow(o.beta1, number)),
                                  std::sqrt(1.0 - std::pow(0.99, number)),
                                  o.decoupled ? 0.0 : o.weight_decay,
                                  o.decoupled ? 1.0 - 1e-2 * o.weight_decay : 1.0,
                                  o.maximize};
    for (auto& c : cases) {
      CHECK(c.step[0] == static_cast<float>(number));
      cpu::adam_reference(
          cpu::AdamReference<double>{c.p.data(), c.g.data(), c.m.data(), c.v.data(),
                                     o.amsgrad ? c.largest.data() : nullptr, c.size},
          scalars, factor);
      double worst = 0.0, worst_param = 0.0;
      for (int64_t i = 0; i < c.size; ++i) {
        worst =
            std::max({worst, difference(c.exp_avg[i], c.m[i]), difference(c.exp_avg_sq[i], c.v[i]),
                      difference(c.max_exp_avg_sq[i], c.largest[i])});
        worst_param = std::max(worst_param, difference(as_double(c.param[i]), c.p[i]));
        c.p[i] = as_double(c.param[i]);  // bfloat16 rounds: each step on its own
      }
      CHECK_WITH(worst <= tolerance, std::to_string(worst) + " size " + std::to_string(c.size));
      CHECK_WITH(worst_param <= param_tolerance, std::to_string(worst_param));
    }
  }
}

void test_types_and_options() {
  const auto all_types = [](const Options& o) {
    compare_with_formula<float, float, AdamType::kFloat32>(o, 3e-7, 5e-7);
    compare_with_formula<double, double, AdamType::kFloat64>(o, 1e-14, 1e-13);
    compare_with_formula<uint16_t, float, AdamType::kBfloat16>(o, 3e-7, 5e-3);
  };
  for_each_schedule([] {
    compare_with_formula<float, float, AdamType::kFloat32>({.max_norm = 0.5}, 3e-7, 5e-7);
  });
#ifndef __SANITIZE_THREAD__
  for_each_schedule([&] { all_types({}); });
  all_types({.amsgrad = true, .weight_decay = 0.1});
  all_types({.maximize = true, .decoupled = true, .weight_decay = 0.1, .beta1 = 0.3});
  all_types({.beta1 = 0.0});
#endif
  all_types({.max_norm = 0.5});
}

// One launch per tensor, of three types: none goes on after an error, or forgets it.
void test_failing_launches() {
  Numbers numbers(2);
  std::vector<Case<float, float, AdamType::kFloat32>> singles;
  std::vector<Case<double, double, AdamType::kFloat64>> doubles;
  std::vector<Case<uint16_t, float, AdamType::kBfloat16>> halves;
  std::vector<AdamTensor> tensors;
  const auto add = [&](auto& cases) {
    for (int i = 0; i < 3; ++i) cases.emplace_back(5, 0, true, numbers);
    for (auto& c : cases) {
      c.draw_gradient(numbers);
      tensors.push_back(c.tensor(false));
    }
  };
  add(singles);
  add(doubles);
  add(halves);
  const AdamGroup group{nullptr, 1e-2, 0.9, 0.99, 1e-8, 0.0, false, false};
  Device<AdamState> state(1);
  AdamStep step{tensors.data(), static_cast<int64_t>(tensors.size()),
                &group,         nullptr,
                nullptr,        1.0,
                false,          0.0,
                true,           true,
                state.data(),   kMultiprocessors};
  Device<char> workspace(adam_norm_workspace_bytes(step));
  for (const bool ordered : {true, false}) {
    step.ordered = ordered;
    CHECK(errors_end_the_call([&] { return launch_adam_norm(step, workspace.data(), nullptr); }));
    std::memset(state.data(), 0, sizeof(AdamState));  // as an error leaves it, tickets are taken
    CHECK(errors_end_the_call([&] { return launch_adam_update(step, nullptr); }));
    CHECK(cuda_shim::counts().launches == (ordered ? 8 : 2));  // all but the last
    std::memset(state.data(), 0, sizeof(AdamState));
  }
}

// A correction that forgot the step would pass the comparison above only if this did not hold.
void test_bias_correction() {
  for (const double beta : {0.0, 0.3, 0.9, 0.999, 0.999999}) {
    for (const double t : {1.0, 2.0, 17.0, 1000.0, 1e6, 16777216.0}) {
      const double exact = -std::expm1(t * std::log(beta));
      const double in_float =
          adam_bias_correction(adam_log_beta<float>(beta), static_cast<float>(t));
      const double in_double = adam_bias_correction(adam_log_beta<double>(beta), t);
      CHECK(std::abs(in_float - exact) <= 2.5e-7 * exact);
      CHECK(std::abs(in_double - exact) <= 5e-16 * exact);
    }
  }
}

void test_chunks() {
  CHECK(adam_chunk(0, 132) == 2048);
  CHECK(adam_chunk(61706, 132) == 2048);
  CHECK(adam_chunk(25'600'000, 132) == 49152);
  CHECK(adam_chunk(int64_t{1} << 40, 132) == 65536);
  for (int64_t n = 1; n < 100'000'000; n *= 3) CHECK(adam_chunk(n, 108) % 2048 == 0);
}

}  // namespace
}  // namespace fastconv::cuda

int main() {
  fastconv::cuda::test_bias_correction();
  fastconv::cuda::test_chunks();
  fastconv::cuda::test_types_and_options();
  if (!fastconv::cuda::kThreadSanitizer) fastconv::cuda::test_failing_launches();
  return fastconv::testing::report();
}
