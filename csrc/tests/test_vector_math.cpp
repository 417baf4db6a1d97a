// SPDX-License-Identifier: MIT
// exp, sigmoid and tanh against double precision, over a comb through all float32 bit patterns.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/simd/vector_math.h"

namespace {

using namespace fastconv;
using namespace fastconv::testing;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

const cpu::VectorMath& table(cpu::Isa isa) {
  if (isa == cpu::Isa::kAvx512) return cpu::kVectorMathAvx512;
  if (isa == cpu::Isa::kAvx2) return cpu::kVectorMathAvx2;
  return cpu::kVectorMathScalar;
}

double exact_exp(double x) {
  return std::exp(x);
}
double exact_sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
double exact_tanh(double x) {
  return std::tanh(x);
}

struct Function {
  const char* name;
  void (*cpu::VectorMath::*fast)(const float*, float*, int64_t);
  double (*exact)(double);
  double most_ulp;
  double most_absolute;  // infinity: not bounded
  float at_minus_infinity, at_infinity;
};

const Function kFunctions[] = {
    {"exp", &cpu::VectorMath::exp, &exact_exp, 1.5, kInfinity, 0.0f, kInfinity},
    {"sigmoid", &cpu::VectorMath::sigmoid, &exact_sigmoid, 3.0, 1e-7, 0.0f, 1.0f},
    {"tanh", &cpu::VectorMath::tanh, &exact_tanh, 3.0, 1e-7, -1.0f, 1.0f},
};

// Every `step`-th bit pattern that is a finite number.
std::vector<float> comb(uint32_t step) {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += step) {
    const auto low = static_cast<uint32_t>(bits);
    float x;
    std::memcpy(&x, &low, sizeof x);
    if (std::isfinite(x)) values.push_back(x);
  }
  return values;
}

double ulp_of(double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  return std::ldexp(1.0, exponent - 24);
}

void test_error(const Function& f, cpu::Isa isa, const std::vector<float>& x) {
  constexpr double kSmallest = std::numeric_limits<float>::min();
  constexpr double kLargest = std::numeric_limits<float>::max();
  const auto size = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size());
  (table(isa).*f.fast)(x.data(), y.data(), size);
  double worst_ulp = 0, worst_absolute = 0;
  float worst_at = 0;
  int64_t wrong = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = f.exact(x[i]);
    if (std::fabs(exact) > kLargest) {
      wrong += y[i] != (exact > 0 ? kInfinity : -kInfinity);
      continue;
    }
    const double error = std::fabs(y[i] - exact);
    worst_absolute = std::fmax(worst_absolute, error);
    if (std::fabs(exact) < kSmallest) {
      wrong += !(error <= kSmallest);
      continue;
    }
    wrong += !(error <= f.most_ulp * ulp_of(exact) && error <= f.most_absolute);
    if (error / ulp_of(exact) > worst_ulp) {
      worst_ulp = error / ulp_of(exact);
      worst_at = x[i];
    }
  }
  std::printf("%s %s: %.2f ulp at %g, %.2e absolute, %lld points\n", f.name, cpu::isa_name(isa),
              worst_ulp, worst_at, worst_absolute, static_cast<long long>(size));
  CHECK_WITH(wrong == 0, std::string(f.name) + " on " + cpu::isa_name(isa));
}

// Special values at every position of a vector, and every tail length.
void test_special_values(const Function& f, cpu::Isa isa) {
  for (int64_t size = 1; size <= 33; ++size) {
    for (const float special : {kNan, kInfinity, -kInfinity}) {
      for (int64_t at = 0; at < size; ++at) {
        Floats x(size, 0.25f), y(size);
        x[at] = special;
        (table(isa).*f.fast)(x.data(), y.data(), size);
        for (int64_t i = 0; i < size; ++i) {
          const std::string context = std::string(f.name) + " on " + cpu::isa_name(isa);
          if (i != at) {
            CHECK_WITH(std::fabs(y[i] - f.exact(0.25)) < 1e-6, context);
          } else if (std::isnan(special)) {
            CHECK_WITH(std::isnan(y[i]), context);
          } else {
            CHECK_WITH(y[i] == (special > 0 ? f.at_infinity : f.at_minus_infinity), context);
          }
        }
      }
    }
  }
}

}  // namespace

int main() {
  const std::vector<float> dense = comb(1009);
  for_each_isa([&](cpu::Isa isa) {
    for (const Function& f : kFunctions) {
      test_error(f, isa, dense);
      test_special_values(f, isa);
    }
  });
  return report();
}
