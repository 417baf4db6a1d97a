// SPDX-License-Identifier: MIT
// What all kernels share: index arithmetic, vectors, element types and activations.
#include <string>

#include "cuda/common/activation.cuh"
#include "cuda/common/divmod.h"
#include "cuda/common/launch.h"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using cuda::FastDivmod;
using cuda::FastDivmod64;

// Quotient and remainder of numbers around every multiple and every power of two that matter.
template <class Divmod, int Bits>
void test_divmod() {
  using Index = typename Divmod::Index;
  constexpr int64_t kMost = Bits == 31 ? (int64_t{1} << 31) - 1 : INT64_MAX;
  std::vector<int64_t> numbers = {0, 1, 2, 3, 5, 7, 10, 641, 1000003, kMost - 2, kMost - 1, kMost};
  for (int bit = 2; bit < Bits; ++bit)
    for (int off = -1; off <= 1; ++off) numbers.push_back((int64_t{1} << bit) + off);
  const auto check = [](const Divmod& by, int64_t n, int64_t divisor) {
    Index remainder = -1;
    const int64_t quotient = by.divmod(static_cast<Index>(n), remainder);
    CHECK_WITH(quotient == n / divisor && remainder == n % divisor,
               std::to_string(n) + " / " + std::to_string(divisor));
    CHECK(by.divide(static_cast<Index>(n)) == n / divisor);
  };
  for (const int64_t divisor : numbers) {
    if (divisor == 0) continue;
    const Divmod by(divisor);
    CHECK(by.divisor() == divisor);
    for (const int64_t n : numbers) {
      check(by, n, divisor);
      const int64_t multiple = n / divisor * divisor;
      check(by, multiple, divisor);
      if (multiple > 0) check(by, multiple - 1, divisor);
    }
  }
}

void test_index_helpers() {
  CHECK(cuda::fits_int32((int64_t{1} << 31) - 1));
  CHECK(!cuda::fits_int32(int64_t{1} << 31));
  CHECK(cuda::ceil_div(0, 4) == 0);
  CHECK(cuda::ceil_div(7, 4) == 2);
  CHECK(cuda::ceil_div(8, 4) == 2);
  CHECK(cuda::ceil_div(INT64_MAX, 2) == int64_t{1} << 62);
  CHECK(cuda::ceil_log2(1) == 0);
  CHECK(cuda::ceil_log2(1024) == 10);
  CHECK(cuda::ceil_log2(1025) == 11);
  CHECK(cuda::grid_for(0, 256) == 0);
  CHECK(cuda::grid_for(512, 256) == 2);
  CHECK(cuda::grid_for(513, 256) == 3);
  CHECK(cuda::grid_for(INT64_MAX, 256) == cuda::kMaxGridX);
  CHECK(cuda::grid_for(256 * cuda::kMaxGridX - 255, 256) == cuda::kMaxGridX);
  CHECK(cuda::grid_for(256 * (cuda::kMaxGridX - 1), 256) == cuda::kMaxGridX - 1);
  CHECK(cuda::blocks_for(0, 256) == 0);
  CHECK(cuda::blocks_for(513, 256) == 3);
  CHECK(cuda::blocks_for(INT64_MAX, 256) > cuda::kMaxGridX);
}

template <int Count, typename T>
__global__ void copy_vectors_kernel(const T* input, T* output) {
  const int i = static_cast<int>(threadIdx.x) * Count;
  const auto vector =
      i == 0 ? cuda::load_vector<Count>(input + i) : cuda::load_vector_streaming<Count>(input + i);
  cuda::store_vector(output + i, vector);
}

// Copies two vectors, and refuses one that starts an element too late.
template <int Count, typename T>
void test_vectors_of() {
  using Whole = cuda::Vec<T, Count>;
  static_assert(sizeof(Whole) == sizeof(T) * Count && alignof(Whole) == sizeof(Whole));
  Device<Whole> input("input", 3), output("output", 2);
  T* const from = &input[0][0];
  T* const to = &output[0][0];
  for (int i = 0; i < 3 * Count; ++i) from[i] = cuda::from_float<T>(static_cast<float>(i + 1));
  CHECK(FC_LAUNCH((copy_vectors_kernel<Count, T>), 1, 2, 0, nullptr, from, to) == cudaSuccess);
  for (int i = 0; i < 2 * Count; ++i) CHECK(cuda::to_float(to[i]) == static_cast<float>(i + 1));
  if (Count == 1) return;
  const char* const text = "misaligned access of";
  for (const int threads : {1, 2}) {
    CHECK(FC_LAUNCH((copy_vectors_kernel<Count, T>), 1, threads, 0, nullptr, from + 1, to) ==
          cudaErrorLaunchFailure);
    CHECK(error_has(text));
  }
  CHECK(FC_LAUNCH((copy_vectors_kernel<Count, T>), 1, 1, 0, nullptr, from, to + 1) ==
        cudaErrorLaunchFailure);
  CHECK(error_has(text));
}

void test_vectors() {
  test_vectors_of<1, float>();
  test_vectors_of<2, float>();
  test_vectors_of<4, float>();
  test_vectors_of<2, double>();
  test_vectors_of<4, __half>();
  test_vectors_of<8, __nv_bfloat16>();
  alignas(32) const unsigned char bytes[32] = {};
  CHECK(cuda::aligned16(bytes) && cuda::aligned16(bytes + 16) && !cuda::aligned16(bytes + 8));
  CHECK(cuda::aligned_to(bytes + 8, 8) && !cuda::aligned_to(bytes + 4, 8));
}

void test_element_types() {
  CHECK(cuda::pack_pair(cuda::from_float<__half>(1.0f), cuda::from_float<__half>(-2.0f)) ==
        0xc0003c00u);
  CHECK(cuda::to_accumulate(1.0 + 0x1p-40) == 1.0 + 0x1p-40);  // double stays double
  CHECK(cuda::from_accumulate<double>(1.0 + 0x1p-40) == 1.0 + 0x1p-40);
  CHECK(cuda::to_float(1.0 + 0x1p-40) == 1.0f);
  CHECK(cuda::to_accumulate(cuda::from_accumulate<__nv_bfloat16>(1.5f)) == 1.5f);
}

// --- Activations --------------------------------------------------------------------------------

float activated(Activation activation, float x) {
  float values[3] = {-1.0f, x, 1.0f};
  cuda::activate(values, activation, 0.25f);
  return values[1];
}

void test_activations() {
  const auto grad = [](Activation activation, float y) {
    return cuda::activation_grad(3.0f, y, activation, 0.25f);
  };
  for (const float x : {-2.0f, -0.0f, 0.0f, 0.5f, 2.0f}) {
    CHECK(activated(Activation::kNone, x) == x);
    CHECK(activated(Activation::kRelu, x) == (x > 0 ? x : 0.0f));
    CHECK(activated(Activation::kLeakyRelu, x) == (x > 0 ? x : 0.25f * x));
    CHECK(std::fabs(activated(Activation::kSigmoid, x) - 1 / (1 + std::exp(-double{x}))) < 1e-6);
    CHECK(std::fabs(activated(Activation::kTanh, x) - std::tanh(double{x})) < 1e-6);
    CHECK(grad(Activation::kNone, x) == 3.0f);
    CHECK(grad(Activation::kRelu, x) == (x > 0 ? 3.0f : 0.0f));
    CHECK(grad(Activation::kLeakyRelu, x) == (x > 0 ? 3.0f : 0.75f));
  }
  CHECK(grad(Activation::kSigmoid, 0.25f) == 3 * 0.1875f);
  CHECK(grad(Activation::kTanh, 0.5f) == 3 * 0.75f);
  for (const Activation activation : {Activation::kNone, Activation::kRelu, Activation::kLeakyRelu,
                                      Activation::kSigmoid, Activation::kTanh})
    CHECK(std::isnan(activated(activation, kNan)));
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  using namespace fastconv::testing;
  test_divmod<FastDivmod, 31>();
  test_divmod<FastDivmod64, 63>();
  test_index_helpers();
  test_vectors();
  test_element_types();
  test_activations();
  return report();
}
