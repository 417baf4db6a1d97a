// SPDX-License-Identifier: MIT
// Adam kernels of every ISA against the unfolded formula in double, over sizes around vectors and
// chunks, every variant, one thread and several, with exact allocations for AddressSanitizer.
#include "cpu/adam/adam.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/adam/adam_reference.h"
#include "cpu/runtime/denormals.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using fastconv::testing::check;
using fastconv::testing::for_each_isa;
using fastconv::testing::Numbers;

constexpr int64_t kSizes[] = {0, 1, 3, 4, 8, 15, 16, 17, 33, 100, 4095, 4096, 4097, 9000};

struct Options {
  double l2 = 0.0;
  double keep = 1.0;
  bool amsgrad = false;
  bool maximize = false;
  bool heavy = false;  // beta1 below one half
  AdamGradient gradient;
};

AdamStepScalars scalars_of(const Options& o, double step) {
  const double beta1 = o.heavy ? 0.25 : 0.9, beta2 = 0.99, lr = 1e-2;
  return {beta1,
          beta2,
          1e-8,
          lr / (1.0 - std::pow(beta1, step)),
          std::sqrt(1.0 - std::pow(beta2, step)),
          o.l2,
          o.keep,
          o.maximize};
}

float from_bfloat16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
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

// One tensor as the kernels see it, and the same numbers in double for the formula.
template <typename Element, typename State, AdamType kType>
struct Case {
  int64_t size;
  bool amsgrad;
  std::unique_ptr<Element[]> param, grad;
  std::unique_ptr<State[]> exp_avg, exp_avg_sq, max_exp_avg_sq;
  std::vector<double> p, g, m, v, largest;

  Case(int64_t n, bool with_max, Numbers& numbers)
      : size(n),
        amsgrad(with_max),
        param(new Element[n]),
        grad(new Element[n]),
        exp_avg(new State[n]),
        exp_avg_sq(new State[n]),
        max_exp_avg_sq(new State[n]),
        p(n),
        g(n),
        m(n),
        v(n),
        largest(n) {
    for (int64_t i = 0; i < n; ++i) {
      p[i] = as_double(param[i] = from_double<Element>(numbers.real()));
      m[i] = as_double(exp_avg[i] = static_cast<State>(0.1 * numbers.real()));
      v[i] = as_double(exp_avg_sq[i] = static_cast<State>(std::abs(0.1 * numbers.real())));
      largest[i] =
          as_double(max_exp_avg_sq[i] = static_cast<State>(std::abs(0.1 * numbers.real())));
    }
    draw_gradient(numbers);
  }
  void draw_gradient(Numbers& numbers) {
    for (int64_t i = 0; i < size; ++i)
      g[i] = as_double(grad[i] = from_double<Element>(numbers.real()));
  }
  AdamTensor tensor() const {
    return {param.get(),
            grad.get(),
            exp_avg.get(),
            exp_avg_sq.get(),
            amsgrad ? max_exp_avg_sq.get() : nullptr,
            size,
            kType,
            {}};
  }
  AdamReference<double> reference() {
    return {p.data(), g.data(), m.data(), v.data(), amsgrad ? largest.data() : nullptr, size};
  }
};

double difference(double actual, double expected) {
  return std::abs(actual - expected) / (1.0 + std::abs(expected));
}

void step(std::vector<AdamTensor>& tensors, const AdamGradient& gradient, bool ordered,
          bool last_first = false) {
  const int64_t count = static_cast<int64_t>(tensors.size());
  std::vector<AdamChunk> chunks(adam_chunk_count(tensors.data(), count));
  adam_make_chunks(tensors.data(), count, chunks.data());
  adam_update({tensors.data(), chunks.data(), static_cast<int64_t>(chunks.size()), ordered},
              gradient, last_first);
}

template <typename Element, typename State, AdamType kType>
void compare_with_formula(const Options& o, double tolerance, double param_tolerance) {
  Numbers numbers(7);
  std::vector<Case<Element, State, kType>> cases;
  for (const int64_t size : kSizes) cases.emplace_back(size, o.amsgrad, numbers);
  for (int number = 1; number <= 3; ++number) {
    const AdamStepScalars scalars = scalars_of(o, number);
    std::vector<AdamTensor> tensors;
    for (auto& c : cases) {
      tensors.push_back(c.tensor());
      tensors.back().coefficients = fold_adam_scalars(scalars);
    }
    step(tensors, o.gradient, number == 2, number == 3);
    for (auto& c : cases) {
      adam_reference(c.reference(), scalars, o.gradient.factor * o.gradient.unscale);
      double worst_param = 0.0, worst_state = 0.0, worst_grad = 0.0;
      for (int64_t i = 0; i < c.size; ++i) {
        worst_param = std::max(worst_param, difference(as_double(c.param[i]), c.p[i]));
        worst_state = std::max({worst_state, difference(c.exp_avg[i], c.m[i]),
                                difference(c.exp_avg_sq[i], c.v[i]),
                                o.amsgrad ? difference(c.max_exp_avg_sq[i], c.largest[i]) : 0.0});
        const double kept = c.g[i] * (o.gradient.write_back ? o.gradient.unscale : 1.0);
        worst_grad = std::max(worst_grad, difference(as_double(c.grad[i]), kept));
      }
      const std::string where =
          "size " + std::to_string(c.size) + " step " + std::to_string(number) + " errors " +
          std::to_string(worst_param * 1e9) + " " + std::to_string(worst_state * 1e9) + " e-9";
      CHECK_WITH(worst_param <= param_tolerance, where);
      CHECK_WITH(worst_state <= tolerance, where);
      CHECK_WITH(worst_grad <= (kType == AdamType::kBfloat16 ? 4e-3 : tolerance), where);
      // Both go on from the same numbers: what is compared is one step.
      for (int64_t i = 0; i < c.size; ++i) c.p[i] = as_double(c.param[i]);
      c.draw_gradient(numbers);
    }
  }
}

void test_variants() {
  std::vector<Options> all;
  for (const bool amsgrad : {false, true})
    for (const bool maximize : {false, true}) {
      Options o;
      o.amsgrad = amsgrad;
      o.maximize = maximize;
      all.push_back(o);
      o.l2 = 0.1;
      all.push_back(o);
      o.heavy = true;
      o.gradient.factor = 0.3;
      all.push_back(o);
      o.l2 = 0.0;
      o.keep = 0.97;
      o.gradient.unscale = 0.125;
      all.push_back(o);
      o.gradient.write_back = true;
      all.push_back(o);
      o.l2 = 0.1;
      all.push_back(o);
    }
  for (const Options& o : all) {
    compare_with_formula<float, float, AdamType::kFloat32>(o, 3e-7, 3e-7);
    compare_with_formula<double, double, AdamType::kFloat64>(o, 1e-14, 1e-14);
    compare_with_formula<uint16_t, float, AdamType::kBfloat16>(o, 3e-7, 4e-3);
  }
}

// A changed formula must be noticed: no weight decay, or the scalars of the step before.
void test_negative_controls() {
  Numbers numbers(3);
  for (const bool late : {false, true}) {
    Case<float, float, AdamType::kFloat32> c(1000, false, numbers);
    Options o;
    o.l2 = 0.1;
    std::vector<AdamTensor> tensors{c.tensor()};
    tensors[0].coefficients = fold_adam_scalars(scalars_of(o, 2));
    step(tensors, {}, false);
    if (!late) o.l2 = 0.0;
    adam_reference(c.reference(), scalars_of(o, late ? 3 : 2), 1.0);
    double worst = 0.0;
    for (int64_t i = 0; i < c.size; ++i) worst = std::max(worst, difference(c.param[i], c.p[i]));
    CHECK(worst > 1e-4);
  }
}

void test_sums_and_special_values() {
  Numbers numbers(11);
  Case<float, float, AdamType::kFloat32> a(9000, false, numbers);
  Case<double, double, AdamType::kFloat64> b(77, false, numbers);
  Case<uint16_t, float, AdamType::kBfloat16> c(4099, false, numbers);
  std::vector<AdamTensor> tensors{a.tensor(), b.tensor(), c.tensor()};
  std::vector<AdamChunk> chunks(adam_chunk_count(tensors.data(), 3));
  adam_make_chunks(tensors.data(), 3, chunks.data());
  std::vector<double> partial(chunks.size());
  AdamList list{tensors.data(), chunks.data(), static_cast<int64_t>(chunks.size()), false};
  double expected = 0.0;
  for (const auto* values : {&a.g, &b.g, &c.g})
    for (const double x : *values) expected += x * x;
  const double sum = adam_sum_of_squares(list, 0.5, partial.data());
  CHECK(std::abs(sum - 0.25 * expected) < 1e-12 * expected);
  CHECK(adam_gradients_finite(list));
  b.grad[76] = std::numeric_limits<double>::infinity();
  CHECK(!adam_gradients_finite(list));
  CHECK(std::isinf(adam_sum_of_squares(list, 1.0, partial.data())));
  b.grad[76] = 1e300;
  CHECK(adam_gradients_finite(list));
  c.grad[4098] = to_bfloat16(1.0f) | 0x7f80;
  CHECK(!adam_gradients_finite(list));
  tensors[2].grad = nullptr;
  CHECK(adam_gradients_finite(list));
}

// A tensor without gradient stays as it is; chunks cover every element once.
void test_chunks() {
  Numbers numbers(13);
  std::vector<Case<float, float, AdamType::kFloat32>> cases;
  for (const int64_t size : {5000, 0, 4096, 3}) cases.emplace_back(size, false, numbers);
  std::vector<AdamTensor> tensors;
  for (auto& c : cases) tensors.push_back(c.tensor());
  tensors[2].grad = nullptr;
  std::vector<AdamChunk> chunks(adam_chunk_count(tensors.data(), 4));
  CHECK(chunks.size() == 4);
  adam_make_chunks(tensors.data(), 4, chunks.data());
  int64_t covered = 0;
  for (const AdamChunk& chunk : chunks) {
    CHECK(chunk.before == covered);
    CHECK(chunk.size > 0 && chunk.size <= kAdamChunkSize);
    covered += chunk.size;
  }
  CHECK(covered == 5000 + 4096 + 3);
  for (AdamTensor& t : tensors) t.coefficients = fold_adam_scalars(scalars_of({}, 1));
  step(tensors, {}, false);
  CHECK(cases[0].param[4999] != static_cast<float>(cases[0].p[4999]));
  bool untouched = true;
  for (int64_t i = 0; i < 4096; ++i)
    untouched = untouched && cases[2].param[i] == static_cast<float>(cases[2].p[i]) &&
                cases[2].exp_avg[i] == static_cast<float>(cases[2].m[i]);
  CHECK(untouched);
}

void test_denormals() {
  volatile float tiny = 1e-40f;
  {
    const FlushDenormals flush;
    CHECK(tiny * 1.0f == 0.0f);
  }
  CHECK(tiny * 1.0f != 0.0f);
  Numbers numbers(17);
  Case<float, float, AdamType::kFloat32> c(100, false, numbers);
  for (int64_t i = 0; i < c.size; ++i) c.exp_avg[i] = 1e-40f, c.grad[i] = 0.0f;
  std::vector<AdamTensor> tensors{c.tensor()};
  tensors[0].coefficients = fold_adam_scalars(scalars_of({}, 500));
  step(tensors, {}, false);
  for (int64_t i = 0; i < c.size; ++i) {
    CHECK(c.exp_avg[i] == 0.0f);
    CHECK(c.param[i] == static_cast<float>(c.p[i]));
  }
  CHECK(tiny * 1.0f != 0.0f);
}

// The result depends neither on who runs which chunk, nor on the direction.
void test_threads_give_the_same_bits() {
  std::vector<std::vector<float>> results;
  for (const bool threads : {false, true}) {
    if (threads) fastconv::testing::use_threads();
    Numbers numbers(23);
    Case<float, float, AdamType::kFloat32> a(600'000, true, numbers), b(777, false, numbers);
    std::vector<AdamTensor> tensors{a.tensor(), b.tensor()};
    for (AdamTensor& t : tensors) t.coefficients = fold_adam_scalars(scalars_of({}, 3));
    step(tensors, {}, false, threads);
    results.emplace_back(a.param.get(), a.param.get() + a.size);
    results.back().insert(results.back().end(), b.param.get(), b.param.get() + b.size);
    fastconv::testing::use_no_threads();
  }
  CHECK(results[0] == results[1]);
}

}  // namespace

int main() {
  for_each_isa([](Isa) {
    test_variants();
    test_negative_controls();
    test_sums_and_special_values();
    test_chunks();
    test_denormals();
    test_threads_give_the_same_bits();
  });
  return fastconv::testing::report();
}
