// SPDX-License-Identifier: MIT
// relu and its backward pass against the definition, bit for bit: every instruction set, lengths
// with and without a rest, with and without threads, NaN, in place.
#include <cmath>
#include <cstdint>
#include <string>

#include "check.h"
#include "cpu/relu/relu.h"

namespace {

using namespace fastconv::cpu;
using fastconv::testing::Floats;
using fastconv::testing::Numbers;

bool same(float a, float b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

// The first index at which a result is wrong; -1 if none is.
int64_t wrong_output(const Floats& input, const Floats& output) {
  for (int64_t i = 0; i < input.size(); ++i)
    if (!same(output[i], input[i] <= 0 ? 0.0f : input[i])) return i;
  return -1;
}

void test_count(int64_t count, const std::string& what) {
  Numbers numbers(static_cast<uint64_t>(count));
  Floats input(count), output(count), grad_output(count), grad_input(count);
  for (int64_t i = 0; i < count; ++i) {
    input[i] = i % 7 == 3 ? fastconv::testing::kNan : numbers.whole();
    grad_output[i] = numbers.real();
  }
  relu_forward<float>({count, input.data(), output.data()});
  CHECK_WITH(wrong_output(input, output) == -1, what + " forward");
  relu_backward<float>({count, grad_output.data(), output.data(), grad_input.data()});
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i)
    wrong += !same(grad_input[i], output[i] <= 0 ? 0.0f : grad_output[i]);
  CHECK_WITH(wrong == 0, what + " backward");
  relu_forward<float>({count, output.data(), output.data()});
  CHECK_WITH(wrong_output(input, output) == -1, what + " in place");
  if (count > 0) {
    output[count - 1] = -1;
    CHECK_WITH(wrong_output(input, output) == count - 1, "negative control");
  }
}

}  // namespace

int main() {
  fastconv::testing::for_each_isa([](Isa isa) {
    for (const int64_t count : {0, 1, 15, 16, 17, 33, 100, 1000})
      test_count(count, std::string(isa_name(isa)) + " " + std::to_string(count));
    fastconv::testing::use_threads();
    for (const int64_t count : {100000, 100015}) test_count(count, isa_name(isa));
    fastconv::testing::use_no_threads();
  });
  return fastconv::testing::report();
}
