// SPDX-License-Identifier: MIT
// The instructions of cuda/common/ptx.cuh as the emulator executes them, against what the PTX ISA
// says of them: fragments element by element, sums as written out. The tests of the kernels cannot
// tell an emulator from a GPU; this file is why they need not.
#include <string>
#include <vector>

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/common/types.cuh"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using cuda_shim::CopyAt;
using cuda_shim::Flush;
using cuda_shim::MmaMode;
using cuda_shim::Options;

// --- mma ----------------------------------------------------------------------------------------
// Matrices are [16][depth], [depth][8] and [16][8], row after row.

// The numbering of the PTX ISA: element i of a lane's fragment of A, B or C.
struct Place {
  int row, column;
};
__device__ Place place_in_a16(int lane, int i) {
  const bool upper = i < 2 || (i >= 4 && i < 6);
  return {lane / 4 + (upper ? 0 : 8), lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8)};
}
__device__ Place place_in_b16(int lane, int i) {
  return {lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8), lane / 4};
}
__device__ Place place_in_a_tf32(int lane, int i) {
  return {lane / 4 + (i == 1 || i == 3 ? 8 : 0), lane % 4 + (i >= 2 ? 4 : 0)};
}
__device__ Place place_in_b_tf32(int lane, int i) {
  return {lane % 4 + (i == 1 ? 4 : 0), lane / 4};
}
__device__ Place place_in_c(int lane, int i) {
  return {lane / 4 + (i < 2 ? 0 : 8), lane % 4 * 2 + (i & 1)};
}

template <class Tag>
__global__ void mma16_kernel(const uint16_t* a, const uint16_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t left[4] = {}, right[2] = {};
  for (int i = 0; i < 8; ++i) {
    const Place at = place_in_a16(lane, i);
    left[i / 2] |= static_cast<uint32_t>(a[16 * at.row + at.column]) << 16 * (i % 2);
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = place_in_b16(lane, i);
    right[i / 2] |= static_cast<uint32_t>(b[8 * at.row + at.column]) << 16 * (i % 2);
  }
  float sums[4];
  const auto sum_at = [&](int i) -> float& {
    const Place at = place_in_c(lane, i);
    return c[8 * at.row + at.column];
  };
  for (int i = 0; i < 4; ++i) sums[i] = sum_at(i);
  cuda::mma_m16n8k16(sums, left, right, Tag{});
  for (int i = 0; i < 4; ++i) sum_at(i) = sums[i];
}

__global__ void mma_tf32_kernel(const float* a, const float* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const Place at = place_in_a_tf32(lane, i);
    left[i] = __float_as_uint(a[8 * at.row + at.column]);
  }
  for (int i = 0; i < 2; ++i) {
    const Place at = place_in_b_tf32(lane, i);
    right[i] = __float_as_uint(b[8 * at.row + at.column]);
  }
  float sums[4];
  const auto sum_at = [&](int i) -> float& {
    const Place at = place_in_c(lane, i);
    return c[8 * at.row + at.column];
  };
  for (int i = 0; i < 4; ++i) sums[i] = sum_at(i);
  cuda::mma_m16n8k8_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) sum_at(i) = sums[i];
}

struct Matrices {
  int depth;
  std::vector<float> a, b, c;

  explicit Matrices(int depth_of_product)
      : depth(depth_of_product),
        a(static_cast<size_t>(16 * depth)),
        b(static_cast<size_t>(8 * depth)),
        c(128) {}
  float& left(int row, int k) { return a[static_cast<size_t>(row * depth + k)]; }
  float& right(int k, int column) { return b[static_cast<size_t>(8 * k + column)]; }
  float& sum(int row, int column) { return c[static_cast<size_t>(8 * row + column)]; }
};

// Small integers without a pattern: any two elements changed for each other show.
Matrices numbers(int depth) {
  Matrices m(depth);
  uint32_t state = 12345;
  const auto fill = [&](std::vector<float>& values) {
    for (float& x : values) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int>(state >> 24) % 31 - 15);
    }
  };
  fill(m.a);
  fill(m.b);
  fill(m.c);
  return m;
}

template <typename T>
std::vector<uint16_t> bits_of(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (float x : values) bits.push_back(__builtin_bit_cast(uint16_t, cuda::from_float<T>(x)));
  return bits;
}

template <typename T, class Tag>
std::vector<float> product16(const Matrices& m) {
  const std::vector<uint16_t> a = bits_of<T>(m.a), b = bits_of<T>(m.b);
  std::vector<float> c = m.c;
  CHECK(FC_LAUNCH(mma16_kernel<Tag>, 1, 32, 0, nullptr, a.data(), b.data(), c.data()) ==
        cudaSuccess);
  return c;
}

std::vector<float> product_tf32(const Matrices& m) {
  std::vector<float> c = m.c;
  CHECK(FC_LAUNCH(mma_tf32_kernel, 1, 32, 0, nullptr, m.a.data(), m.b.data(), c.data()) ==
        cudaSuccess);
  return c;
}

std::vector<float> plain_product(Matrices m) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      for (int k = 0; k < m.depth; ++k) m.sum(row, column) += m.left(row, k) * m.right(k, column);
  return m.c;
}

void test_fragments() {
  const Matrices deep = numbers(16), flat = numbers(8);
  for (const MmaMode mode : {MmaMode::kExact, MmaMode::kAmpere, MmaMode::kHopper}) {
    Options options;
    options.mma = mode;
    cuda_shim::set_options(options);
    CHECK((product16<__nv_bfloat16, cuda::Bf16>(deep)) == plain_product(deep));
    CHECK((product16<__half, cuda::Half>(deep)) == plain_product(deep));
    CHECK(product_tf32(flat) == plain_product(flat));
  }
  cuda_shim::set_options({});
  CHECK((product16<__half, cuda::Bf16>(deep)) != plain_product(deep));
}

// One sum c + early (8 times) + late (8 times), of products that are exact.
float sum_of(MmaMode mode, float c, float first, float early, float late) {
  Options options;
  options.mma = mode;
  cuda_shim::set_options(options);
  Matrices m(16);
  for (int k = 0; k < 16; ++k) {
    m.left(3, k) = 1.0f;
    m.right(k, 5) = k == 0 ? first : k < 8 ? early : late;
  }
  m.sum(3, 5) = c;
  const std::vector<float> result = product16<__nv_bfloat16, cuda::Bf16>(m);
  cuda_shim::set_options({});
  return result[8 * 3 + 5];
}

void test_sums_are_exact_or_cut_off() {
  constexpr float kBig = 16777216.0f;  // 2^24: the next float is 2 above
  const auto exact = MmaMode::kExact, ampere = MmaMode::kAmpere, hopper = MmaMode::kHopper;
  // Sixteen quarters: lost one by one and by both units, not by the exact sum.
  CHECK(sum_of(exact, kBig, 0.25f, 0.25f, 0.25f) == kBig + 4);
  CHECK(sum_of(ampere, kBig, 0.25f, 0.25f, 0.25f) == kBig);
  CHECK(sum_of(hopper, kBig, 0.25f, 0.25f, 0.25f) == kBig);
  // Halves: the 25th bit, which Hopper keeps.
  CHECK(sum_of(exact, kBig, 0.5f, 0.5f, 0.5f) == kBig + 8);
  CHECK(sum_of(ampere, kBig, 0.5f, 0.5f, 0.5f) == kBig);
  CHECK(sum_of(hopper, kBig, 0.5f, 0.5f, 0.5f) == kBig + 8);
  // Three quarters: what lies below the last bit is cut off, not rounded.
  CHECK(sum_of(ampere, kBig, 0.75f, 0.75f, 0.75f) == kBig);
  CHECK(sum_of(hopper, kBig, 0.75f, 0.75f, 0.75f) == kBig + 8);
  // Ones: both keep them.
  CHECK(sum_of(ampere, kBig, 1.0f, 1.0f, 1.0f) == kBig + 16);
  CHECK(sum_of(hopper, kBig, 1.0f, 1.0f, 1.0f) == kBig + 16);
  // So is the sum: 2^24 + 3 lies between two floats, nearer to neither.
  CHECK(sum_of(exact, kBig, 3.0f, 0.0f, 0.0f) == kBig + 4);
  CHECK(sum_of(ampere, kBig, 3.0f, 0.0f, 0.0f) == kBig + 2);
  CHECK(sum_of(hopper, -kBig, -3.0f, 0.0f, 0.0f) == -kBig - 2);
  // Ampere takes two steps: what cancels in the first leaves the second all its bits.
  CHECK(sum_of(ampere, -kBig, kBig, 0.0f, 0.25f) == 2);
  CHECK(sum_of(hopper, -kBig, kBig, 0.0f, 0.25f) == 0);
  CHECK(sum_of(exact, -kBig, kBig, 0.0f, 0.25f) == 2);
  for (const MmaMode mode : {exact, ampere, hopper}) {
    CHECK(sum_of(mode, 1.0f, INFINITY, 0.0f, 0.0f) == INFINITY);
    CHECK(std::isnan(sum_of(mode, -INFINITY, INFINITY, 0.0f, 0.0f)));
    CHECK(std::isnan(sum_of(mode, 1.0f, 1.0f, kNan, 0.0f)));
    CHECK(sum_of(mode, 0.0f, 0.0f, 0.0f, 0.0f) == 0);
  }
}

void test_tf32_operands() {
  // The unit does not see the low 13 bits.
  Matrices m(8);
  m.left(0, 0) = __uint_as_float(0x3f801fff);
  m.right(0, 0) = 1.0f;
  m.left(1, 0) = 1.0f;
  m.right(0, 1) = __uint_as_float(0xbf803fff);
  const std::vector<float> result = product_tf32(m);
  CHECK(result[0] == 1.0f);
  CHECK(result[8 + 1] == __uint_as_float(0xbf802000));
  const auto rounded = [](uint32_t bits) { return cuda::to_tf32(__uint_as_float(bits)); };
  CHECK(rounded(0x3f800fff) == 0x3f800000);
  CHECK(rounded(0x3f801000) == 0x3f802000);  // ties go away from zero
  CHECK(rounded(0x3f803000) == 0x3f804000);
  CHECK(rounded(0xbf801000) == 0xbf802000);
  CHECK(rounded(0x3ffff000) == 0x40000000);
  CHECK(rounded(0x7f800000) == 0x7f800000);
  CHECK(rounded(0x7f7fffff) == 0x7f800000);
  CHECK(std::isnan(__uint_as_float(rounded(0x7fffffff))));
  CHECK(std::isnan(__uint_as_float(rounded(0xff800001))));
}

// --- ldmatrix -----------------------------------------------------------------------------------

constexpr int kRowBytes = 48;  // rows apart from each other, in reverse order

__global__ void ldmatrix_kernel(uint32_t* output, bool transposed, int shift, int row_bytes) {
  FC_DYNAMIC_SHARED(unsigned char, bytes);
  const int lane = static_cast<int>(threadIdx.x);
  auto* row = reinterpret_cast<uint16_t*>(bytes + (31 - lane) * kRowBytes);
  for (int i = 0; i < 8; ++i) row[i] = static_cast<uint16_t>(8 * lane + i);
  __syncthreads();
  uint32_t words[4];
  const unsigned char* from = bytes + (31 - lane) * row_bytes + shift;
  if (transposed) {
    cuda::ldmatrix_x4_trans(words, from);
  } else {
    cuda::ldmatrix_x4(words, from);
  }
  for (int m = 0; m < 4; ++m) output[4 * lane + m] = words[m];
}

cudaError_t load_matrices(Device<uint32_t>& output, bool transposed, int shift = 0,
                          int row_bytes = kRowBytes) {
  return FC_LAUNCH(ldmatrix_kernel, 1, 32, 32 * kRowBytes, nullptr, output.data(), transposed,
                   shift, row_bytes);
}

void test_ldmatrix() {
  Device<uint32_t> output("output", 128);
  for (const bool transposed : {false, true}) {
    CHECK(load_matrices(output, transposed) == cudaSuccess);
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        for (int half = 0; half < 2; ++half) {
          const int across = 2 * (lane % 4) + half, down = lane / 4;
          const int row = transposed ? across : down, column = transposed ? down : across;
          const uint32_t element = output[4 * lane + m] >> 16 * half & 0xffff;
          CHECK(element == static_cast<uint32_t>(64 * m + 8 * row + column));
        }
      }
    }
    CHECK(load_matrices(output, transposed, 8) == cudaErrorLaunchFailure);
    CHECK(error_has("misaligned access of 16 bytes"));
    CHECK(load_matrices(output, transposed, 0, kRowBytes + 16) == cudaErrorLaunchFailure);
    CHECK(error_has("are not in the block's 1536 bytes of shared memory"));
    CHECK(error_has("test_cuda_instructions.cpp:"));
  }
}

// --- cp.async -----------------------------------------------------------------------------------

__global__ void zero_fill_kernel(const unsigned char* input, unsigned char* output, int valid) {
  FC_DYNAMIC_SHARED(unsigned char, bytes);
  cuda::cp_async_16(bytes, input, valid);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
  for (int i = 0; i < 16; ++i) output[i] = bytes[i];
}

// Where 16 bytes go wrong: shifts of the two addresses, and a count that is none.
__global__ void wrong_copy_kernel(const unsigned char* input, int to, int from, int valid) {
  FC_DYNAMIC_SHARED(unsigned char, bytes);
  cuda::cp_async_16(bytes + to, input + from, valid);
  cuda::cp_async_commit();
  cuda::cp_async_wait<0>();
}

// Three groups of one copy; output: what each one's place holds when at most 2, 1, 0 are pending.
// What is added to a place while its copy is pending stays only if the copy has already happened.
__global__ void groups_kernel(const float4* input, float* output) {
  FC_DYNAMIC_SHARED(float4, places);
  for (int i = 0; i < 3; ++i) {
    places[i].x = -1.0f;
    cuda::cp_async_16(places + i, input + i, 16);
    cuda::cp_async_commit();
  }
  const auto look = [&](int at) {
    for (int i = 0; i < 3; ++i) output[3 * at + i] = places[i].x;
  };
  cuda::cp_async_wait<2>();
  look(0);
  cuda::cp_async_wait<1>();
  look(1);
  places[2].x += 10.0f;
  cuda::cp_async_wait<0>();
  look(2);
}

void test_copies_fill_with_zeros() {
  for (const CopyAt copy_at : {CopyAt::kIssue, CopyAt::kWait}) {
    Options options;
    options.copy_at = copy_at;
    cuda_shim::set_options(options);
    const auto copy = [](const unsigned char* from, Device<unsigned char>& output, int valid) {
      return FC_LAUNCH(zero_fill_kernel, 1, 1, 16, nullptr, from, output.data(), valid);
    };
    Device<unsigned char> input("input", 16, Flush::kEnd, 16), output("output", 16);
    for (int i = 0; i < 16; ++i) input[i] = static_cast<unsigned char>(i + 1);
    for (int valid = 0; valid <= 16; ++valid) {
      CHECK(copy(input.data(), output, valid) == cudaSuccess);
      for (int i = 0; i < 16; ++i) CHECK(output[i] == (i < valid ? i + 1 : 0));
    }
    // Nothing is read of what is not valid: an unmapped page begins there.
    CHECK(copy(input.data() + 16, output, 0) == cudaSuccess);
    CHECK(output[15] == 0);
    CHECK(copy(input.data() + 16, output, 1) == cudaErrorLaunchFailure);
    CHECK(error_has("0 bytes past the end of the 16 bytes of 'input'"));
  }
  cuda_shim::set_options({});
}

void test_copies_come_in_groups() {
  Device<float4> input("input", 3);
  Device<float> output("output", 9);
  for (int i = 0; i < 3; ++i) input[i] = {static_cast<float>(i + 1), 0, 0, 0};
  for (const CopyAt copy_at : {CopyAt::kIssue, CopyAt::kWait}) {
    Options options;
    options.copy_at = copy_at;
    cuda_shim::set_options(options);
    CHECK(FC_LAUNCH(groups_kernel, 1, 1, 48, nullptr, input.data(), output.data()) == cudaSuccess);
    for (int at = 0; at < 3; ++at) {
      for (int i = 0; i < 3; ++i) {
        const bool early = copy_at == CopyAt::kIssue, added = early && at == 2 && i == 2;
        CHECK(early || i <= at
                  ? output[3 * at + i] == static_cast<float>(i + 1) + (added ? 10.0f : 0.0f)
                  : std::isnan(output[3 * at + i]));
      }
    }
  }
  cuda_shim::set_options({});
}

void test_wrong_copies_are_reported() {
  Device<float4> input("input", 2);
  const auto* from = reinterpret_cast<const unsigned char*>(input.data());
  const auto copy = [&](int to, int shift, int valid) {
    return FC_LAUNCH(wrong_copy_kernel, 1, 1, 32, nullptr, from, to, shift, valid);
  };
  CHECK(copy(0, 0, 16) == cudaSuccess);
  CHECK(copy(8, 0, 16) == cudaErrorLaunchFailure);
  CHECK(error_has("misaligned cp.async"));
  CHECK(copy(0, 4, 16) == cudaErrorLaunchFailure);
  CHECK(error_has("misaligned cp.async"));
  CHECK(copy(32, 0, 16) == cudaErrorLaunchFailure);
  CHECK(error_has("16 bytes at offset 32 are not in the block's 32 bytes of shared memory"));
  CHECK(copy(-16, 0, 16) == cudaErrorLaunchFailure);
  CHECK(error_has("16 bytes at offset -16 are not in"));
  CHECK(copy(0, 0, 17) == cudaErrorLaunchFailure);
  CHECK(error_has("cp.async of 17 valid bytes"));
  CHECK(copy(0, 0, -1) == cudaErrorLaunchFailure);
  CHECK(copy(0, 32, 16) == cudaErrorLaunchFailure);
  CHECK(error_has("of 'input'"));
}

}  // namespace
}  // namespace fastconv::testing

int main() {
  using namespace fastconv::testing;
  test_fragments();
  test_sums_are_exact_or_cut_off();
  test_tf32_operands();
  test_ldmatrix();
  test_copies_fill_with_zeros();
  test_copies_come_in_groups();
  test_wrong_copies_are_reported();
  return report();
}
