// SPDX-License-Identifier: MIT
// The tiles that read A from where it lies, rows and columns, against the formulas in gemm.h: on
// memory that ends where the contract says it ends, with guards around C.
#include <string>
#include <vector>

#include "check.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

using testing::Floats;
using testing::Numbers;

constexpr float kGuard = 12345.0f;

enum class Start { kZero, kColumnInit, kAccumulate };

struct PlaceCase {
  const GemmPlaceFamily* family;
  int64_t lanes;
  int64_t rows;
  int64_t columns;
  int64_t blocks;
  int64_t depth;  // of a block
  Start start;

  int64_t width() const { return family->vectors * lanes; }
};

std::string describe(const char* form, const PlaceCase& c) {
  return std::string(form) + " tile of " + std::to_string(c.rows) + " rows x " +
         std::to_string(c.family->vectors) + " vectors of " + std::to_string(c.lanes) +
         ", columns " + std::to_string(c.columns) + ", blocks " + std::to_string(c.blocks) +
         ", depth " + std::to_string(c.depth) + ", start " +
         std::to_string(static_cast<int>(c.start));
}

void fill(Floats& floats, Numbers& numbers) {
  for (int64_t i = 0; i < floats.size(); ++i) floats[i] = numbers.whole();
}

bool equal(const Floats& result, const Floats& expected) {
  bool same = true;
  for (int64_t i = 0; i < result.size(); ++i) same = same && result[i] == expected[i];
  return same;
}

void check_rows(const PlaceCase& c, Numbers& numbers) {
  const int64_t width = c.width(), c_pitch = c.columns + numbers.between(0, 3), c_offset = 2;
  Floats a(c.blocks * c.rows * c.depth), b(c.blocks * c.depth * width), init(c.columns);
  Floats result(c_offset + (c.rows - 1) * c_pitch + c.columns, kGuard);
  fill(a, numbers);
  fill(b, numbers);
  fill(init, numbers);
  // Blocks of B in reverse order; rows of A and C in no order that a pitch could describe.
  std::vector<const float*> a_rows;
  std::vector<float*> c_rows;
  std::vector<int64_t> b_offsets;
  for (int64_t s = 0; s < c.blocks; ++s) {
    b_offsets.push_back((c.blocks - 1 - s) * c.depth);
    for (int64_t i = 0; i < c.rows; ++i)
      a_rows.push_back(a.data() + ((i * 3 + 1) % c.rows + s * c.rows) * c.depth);
  }
  for (int64_t i = 0; i < c.rows; ++i) c_rows.push_back(result.data() + (c.rows - 1 - i) * c_pitch);
  Floats expected(result.size(), kGuard);
  for (int64_t i = 0; i < c.rows; ++i)
    for (int64_t j = 0; j < c.columns; ++j) {
      float* at = c_rows[i] + c_offset + j;
      if (c.start == Start::kAccumulate) *at = numbers.whole();
      float sum = c.start == Start::kAccumulate ? *at : c.start == Start::kColumnInit ? init[j] : 0;
      for (int64_t s = 0; s < c.blocks; ++s)
        for (int64_t k = 0; k < c.depth; ++k)
          sum += a_rows[s * c.rows + i][k] * b[(b_offsets[s] + k) * width + j];
      expected[at - result.data()] = sum;
    }
  // A tile that accumulates must ignore column_init, even when there is one.
  const float* column_init = c.start == Start::kZero ? nullptr : init.data();
  c.family->rows[c.rows - 1]({c.blocks, c.depth, a_rows.data(), b.data(), b_offsets.data(),
                              c_rows.data(), c_offset, c.columns, column_init,
                              c.start == Start::kAccumulate});
  CHECK_WITH(equal(result, expected), describe("rows", c));
}

void check_columns(const PlaceCase& c, Numbers& numbers) {
  const int64_t width = c.width(), c_pitch = width + numbers.between(0, 3);
  const int64_t a_step = c.rows + numbers.between(0, 3);
  const int64_t lines = c.blocks * c.depth;
  Floats a(lines == 0 ? 0 : (lines - 1) * a_step + c.rows), b(lines * width);
  Floats result((c.rows - 1) * c_pitch + width, kGuard), expected(result.size(), kGuard);
  fill(a, numbers);
  fill(b, numbers);
  std::vector<GemmRun> runs;  // the blocks of B in reverse order
  for (int64_t s = 0; s < c.blocks; ++s)
    runs.push_back({s * c.depth * a_step, (c.blocks - 1 - s) * c.depth, c.depth});
  for (int64_t i = 0; i < c.rows; ++i)
    for (int64_t j = 0; j < width; ++j) {
      float& at = result[i * c_pitch + j];
      if (c.start == Start::kAccumulate) at = numbers.whole();
      float sum = c.start == Start::kAccumulate ? at : 0;
      for (const GemmRun& run : runs)
        for (int64_t k = 0; k < run.depth; ++k)
          sum += a[run.a + k * a_step + i] * b[(run.b + k) * width + j];
      expected[i * c_pitch + j] = sum;
    }
  c.family->columns[c.rows - 1]({runs.data(), c.blocks, a.data(), a_step, b.data(), result.data(),
                                 c_pitch, c.start == Start::kAccumulate});
  CHECK_WITH(equal(result, expected), describe("columns", c));
}

void check_family(const GemmPlaceFamily& family, int64_t lanes, Numbers& numbers) {
  const int64_t width = family.vectors * lanes;
  for (int64_t rows = 1; rows <= family.max_rows; ++rows)
    for (int64_t blocks : {0, 1, 3})
      for (int64_t depth : {1, 2, 7, 64, 65, 150}) {
        for (int64_t columns = 1; columns <= width; ++columns)
          for (Start start : {Start::kZero, Start::kColumnInit, Start::kAccumulate})
            check_rows({&family, lanes, rows, columns, blocks, depth, start}, numbers);
        for (Start start : {Start::kZero, Start::kAccumulate})
          check_columns({&family, lanes, rows, width, blocks, depth, start}, numbers);
      }
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::testing::Numbers numbers(1);
  fastconv::testing::for_each_isa([&](fastconv::cpu::Isa isa) {
    const fastconv::cpu::GemmKernels& kernels = fastconv::cpu::gemm_kernels(isa);
    fastconv::cpu::check_family(kernels.place_wide, kernels.lanes, numbers);
    fastconv::cpu::check_family(kernels.place_narrow, kernels.lanes, numbers);
  });
  return fastconv::testing::report();
}
