// SPDX-License-Identifier: MIT
// Every register tile of every family against the formula in gemm.h, on memory that ends where the
// contract says it ends, with guards around C.
#include <string>

#include "check.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

using testing::Floats;
using testing::Numbers;

constexpr float kGuard = 12345.0f;

enum class Start { kZero, kRowInit, kAccumulate };

struct TileCase {
  const GemmFamily* family;
  bool packed;
  int64_t lanes;
  int64_t rows;
  int64_t columns;
  int64_t depth;
  Start start;
};

std::string describe(const TileCase& c) {
  return std::string(c.packed ? "packed" : "panel") + " tile of " + std::to_string(c.rows) +
         " rows x " + std::to_string(c.family->vectors) + " vectors of " + std::to_string(c.lanes) +
         ", columns " + std::to_string(c.columns) + ", depth " + std::to_string(c.depth) +
         ", start " + std::to_string(static_cast<int>(c.start));
}

void check_tile(const TileCase& c, Numbers& numbers) {
  const int64_t width = c.family->vectors * c.lanes;
  const int64_t b_pitch = width + numbers.between(0, 3);
  const int64_t c_pitch = width + numbers.between(0, 3);
  const int64_t a_size =
      c.packed ? c.depth * c.rows : (c.depth == 0 ? 0 : (c.rows - 1) * kPanelPitch + c.depth);
  Floats a(a_size);
  Floats b(c.depth == 0 ? 0 : (c.depth - 1) * b_pitch + width);
  Floats result((c.rows - 1) * c_pitch + c.columns, kGuard);
  Floats init(c.rows);
  const auto a_index = [&](int64_t i, int64_t k) {
    return c.packed ? k * c.rows + i : i * kPanelPitch + k;
  };
  for (int64_t i = 0; i < c.rows; ++i) {
    init[i] = numbers.whole();
    for (int64_t k = 0; k < c.depth; ++k) a[a_index(i, k)] = numbers.whole();
    if (c.start == Start::kAccumulate)
      for (int64_t j = 0; j < c.columns; ++j) result[i * c_pitch + j] = numbers.whole();
  }
  for (int64_t i = 0; i < b.size(); ++i) b[i] = numbers.whole();
  Floats expected(result.size());
  for (int64_t i = 0; i < result.size(); ++i) expected[i] = result[i];
  for (int64_t i = 0; i < c.rows; ++i) {
    for (int64_t j = 0; j < c.columns; ++j) {
      float sum = c.start == Start::kRowInit      ? init[i]
                  : c.start == Start::kAccumulate ? result[i * c_pitch + j]
                                                  : 0.0f;
      for (int64_t k = 0; k < c.depth; ++k) sum += a[a_index(i, k)] * b[k * b_pitch + j];
      expected[i * c_pitch + j] = sum;
    }
  }

  // A tile that accumulates must ignore row_init, even when there is one.
  const float* row_init = c.start == Start::kZero ? nullptr : init.data();
  c.family->by_rows[c.rows - 1]({c.depth, a.data(), b.data(), b_pitch, result.data(), c_pitch,
                                 c.columns, row_init, c.start == Start::kAccumulate});
  bool equal = true;
  for (int64_t i = 0; i < result.size(); ++i) equal = equal && result[i] == expected[i];
  CHECK_WITH(equal, describe(c));
}

void check_family(const GemmFamily& family, bool packed, int64_t lanes, Numbers& numbers) {
  const int64_t width = family.vectors * lanes;
  for (int64_t rows = 1; rows <= family.max_rows; ++rows)
    for (int64_t columns = 1; columns <= width; ++columns)
      for (int64_t depth : {0, 1, 2, 7, 150})
        for (Start start : {Start::kZero, Start::kRowInit, Start::kAccumulate})
          check_tile({&family, packed, lanes, rows, columns, depth, start}, numbers);
  check_tile({&family, packed, lanes, family.max_rows, width, 256, Start::kZero}, numbers);
}

// A copying tile against the packed tile of the same size, on columns that start in one image and
// end in the next.
void check_copying(const GemmFamily& family, int64_t lanes, int64_t rows, int64_t columns,
                   int64_t depth, Numbers& numbers) {
  const int64_t width = family.vectors * lanes;
  const int64_t plane = width + numbers.between(0, 4);  // columns of an image
  const int64_t first = plane - numbers.between(1, static_cast<int>(plane));
  Floats a(depth * rows), init(rows);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = numbers.whole();
  for (int64_t i = 0; i < rows; ++i) init[i] = numbers.whole();
  Floats images(2 * depth * plane);  // [image][k][column]
  for (int64_t i = 0; i < images.size(); ++i) images[i] = numbers.whole();
  Floats packed(depth * width, 0.0f), copy(depth * width);
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = 0; j < columns; ++j)
      packed[k * width + j] =
          images[((first + j) / plane * depth + k) * plane + (first + j) % plane];
  GemmColumnSource source{};
  source.pitch = plane;
  source.copy = copy.data();
  for (int64_t v = 0; v < family.vectors; ++v) {
    const int64_t at = first + v * lanes;
    const int64_t end = columns - v * lanes;
    source.end[v] = end < 0 ? 0 : end > lanes ? lanes : end;
    const int64_t left = plane - at % plane;
    source.split[v] = left < source.end[v] ? left : source.end[v];
    source.low[v] = images.data() + at / plane * depth * plane + at % plane;
    source.high[v] = images.data() + (at / plane + 1) * depth * plane - source.split[v];
  }
  Floats result(rows * width, kGuard), expected(rows * width, kGuard);
  const GemmTile tile{depth, a.data(), packed.data(), width, expected.data(),
                      width, columns,  init.data(),   false};
  family.by_rows[rows - 1](tile);
  GemmTile copying = tile;
  copying.b = nullptr;
  copying.c = result.data();
  family.copying[rows - 1](copying, source);
  bool equal = true;
  for (int64_t i = 0; i < result.size(); ++i) equal = equal && result[i] == expected[i];
  for (int64_t i = 0; i < copy.size(); ++i) equal = equal && copy[i] == packed[i];
  CHECK_WITH(equal, "copying tile of " + std::to_string(rows) + " rows, columns " +
                        std::to_string(columns) + " from " + std::to_string(first) + " of " +
                        std::to_string(plane) + ", depth " + std::to_string(depth));
}

void check_copying_family(const GemmFamily& family, int64_t lanes, Numbers& numbers) {
  for (int64_t rows = 1; rows <= family.max_rows; ++rows)
    for (int64_t columns = 1; columns <= family.vectors * lanes; ++columns)
      for (int64_t depth : {1, 2, 67}) check_copying(family, lanes, rows, columns, depth, numbers);
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  using fastconv::cpu::GemmKernels;
  fastconv::testing::Numbers numbers(1);
  fastconv::testing::for_each_isa([&](fastconv::cpu::Isa isa) {
    const GemmKernels& kernels = fastconv::cpu::gemm_kernels(isa);
    fastconv::cpu::check_family(kernels.packed_tall, true, kernels.lanes, numbers);
    fastconv::cpu::check_family(kernels.packed_wide, true, kernels.lanes, numbers);
    fastconv::cpu::check_copying_family(kernels.packed_tall, kernels.lanes, numbers);
    fastconv::cpu::check_copying_family(kernels.packed_wide, kernels.lanes, numbers);
    fastconv::cpu::check_family(kernels.panel_wide, false, kernels.lanes, numbers);
    fastconv::cpu::check_family(kernels.panel_narrow, false, kernels.lanes, numbers);
  });
  return fastconv::testing::report();
}
