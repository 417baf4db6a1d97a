// SPDX-License-Identifier: MIT
// How much of the machine's FMA peak each GEMM tile reaches: with A and B in L1, and with B
// streamed from L2. The peak is that of the same instruction set on one core, measured next to
// every tile. Not run by default: ctest -C Benchmark -R bench_gemm --verbose. Fails when a tile
// misses its bar.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "common/summation.h"
#include "cpu/gemm/gemm.h"
#include "cpu/peak/peak.h"

namespace fastconv::cpu {
namespace {

constexpr double kBarL1 = 0.93;
constexpr double kBarL2 = 0.88;
constexpr int64_t kL1Bytes = int64_t{24} << 10;   // A and B together, for caches of 32 KB and more
constexpr int64_t kL2Bytes = int64_t{512} << 10;  // B, for caches of 1 MB and more
constexpr int64_t kMostRows = 32;
constexpr int kRounds = 30;
constexpr double kRoundSeconds = 2e-3;

using Run = std::function<void(const float* b)>;

// One tile: its size, and how to prepare calls of it at `depth` (a multiple of kMaxTerms).
struct Tile {
  const char* name;
  int64_t rows;
  int64_t columns;
  std::function<Run(int64_t depth, const float* a, float* c)> prepare;
};

Tile packed_or_panel(const char* name, const GemmFamily& family, int64_t lanes) {
  const int64_t rows = family.max_rows, columns = family.vectors * lanes;
  const GemmTileFn tile = family.by_rows[rows - 1];
  return {name, rows, columns, [=](int64_t depth, const float* a, float* c) -> Run {
            return [=](const float* b) {
              tile({depth, a, b, columns, c, columns, columns, nullptr, false});
            };
          }};
}

// Two blocks of A and B; the rows of A lie as far apart as those of a panel.
Tile place_rows(const char* name, const GemmPlaceFamily& family, int64_t lanes) {
  const int64_t rows = family.max_rows, columns = family.vectors * lanes;
  const GemmRowsFn tile = family.rows[rows - 1];
  return {name, rows, columns, [=](int64_t depth, const float* a, float* c) -> Run {
            std::vector<const float*> a_rows;
            std::vector<float*> c_rows;
            for (int64_t block = 0; block < 2; ++block)
              for (int64_t i = 0; i < rows; ++i)
                a_rows.push_back(a + i * kPanelPitch + block * depth / 2);
            for (int64_t i = 0; i < rows; ++i) c_rows.push_back(c + i * columns);
            return [=](const float* b) {
              const int64_t b_offsets[] = {0, depth / 2};
              tile({2, depth / 2, a_rows.data(), b, b_offsets, c_rows.data(), 0, columns, nullptr,
                    false});
            };
          }};
}

// Two runs of A and B; a row of A is as long as a cache line.
Tile place_columns(const char* name, const GemmPlaceFamily& family, int64_t lanes) {
  constexpr int64_t kStep = 16;
  const int64_t rows = family.max_rows, columns = family.vectors * lanes;
  const GemmColumnsFn tile = family.columns[rows - 1];
  return {name, rows, columns, [=](int64_t depth, const float* a, float* c) -> Run {
            return [=](const float* b) {
              const int64_t half = depth / 2;
              const GemmRun runs[] = {{0, 0, half}, {half * kStep, half, half}};
              tile({runs, 2, a, kStep, b, c, columns, false});
            };
          }};
}

// As the scratch memory that the kernels work in: a vector never straddles two cache lines.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t size)
      : data_(static_cast<float*>(::operator new(bytes(size), kLine)), &release) {
    std::fill_n(data_.get(), size, 0.5f);
  }
  float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  static size_t bytes(int64_t size) { return static_cast<size_t>(size) * sizeof(float); }
  static void release(float* data) { ::operator delete(data, kLine); }

  std::unique_ptr<float, void (*)(float*)> data_;
};

double seconds_of(const auto& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// GFLOP/s of the tile at `depth`, running over `panels` panels of B that lie one after another.
double gflops(const Tile& tile, int64_t depth, int64_t panels) {
  const AlignedFloats a(kMostRows * std::max(depth, kPanelPitch));
  const AlignedFloats b(panels * depth * tile.columns), c(tile.rows * tile.columns);
  const Run call = tile.prepare(depth, a.data(), c.data());
  int64_t sweeps = 1;
  const auto run = [&] {
    for (int64_t s = 0; s < sweeps; ++s)
      for (int64_t p = 0; p < panels; ++p) call(b.data() + p * depth * tile.columns);
  };
  double best = seconds_of(run);
  for (; best < kRoundSeconds; best = seconds_of(run)) sweeps *= 2;
  for (int round = 0; round < kRounds; ++round) best = std::min(best, seconds_of(run));
  return 2e-9 * static_cast<double>(sweeps * panels * tile.rows * tile.columns * depth) / best;
}

void measure(const Tile& tile, Isa isa) {
  // What the cache holds, in whole runs of kMaxTerms, as the channel counts of networks give them.
  const int64_t fits = kL1Bytes / (4 * (tile.rows + tile.columns));
  const int64_t depth = std::min(fits / kMaxTerms * kMaxTerms, kPanelPitch / kMaxTerms * kMaxTerms);
  const int64_t panels = kL2Bytes / (4 * depth * tile.columns);
  double peak = measure_fma_peak(isa);
  const double from_l1 = gflops(tile, depth, 1);
  const double from_l2 = gflops(tile, depth, panels);
  peak = std::max(peak, measure_fma_peak(isa));
  std::printf(
      "%-7s %-20s %2lld x %2lld depth %3lld  peak %5.1f GFLOP/s  L1 %5.1f %%  L2 %5.1f %%\n",
      isa_name(isa), tile.name, static_cast<long long>(tile.rows),
      static_cast<long long>(tile.columns), static_cast<long long>(depth), peak,
      100 * from_l1 / peak, 100 * from_l2 / peak);
  if (isa == Isa::kScalar) return;  // no bar: it is there to be right everywhere
  CHECK_WITH(from_l1 >= kBarL1 * peak, tile.name);
  CHECK_WITH(from_l2 >= kBarL2 * peak, tile.name);
}

void measure_all(Isa isa) {
  const GemmKernels& k = gemm_kernels(isa);
  measure(packed_or_panel("packed_tall", k.packed_tall, k.lanes), isa);
  measure(packed_or_panel("packed_wide", k.packed_wide, k.lanes), isa);
  measure(packed_or_panel("panel_wide", k.panel_wide, k.lanes), isa);
  measure(packed_or_panel("panel_narrow", k.panel_narrow, k.lanes), isa);
  measure(place_rows("place_wide rows", k.place_wide, k.lanes), isa);
  measure(place_rows("place_narrow rows", k.place_narrow, k.lanes), isa);
  measure(place_columns("place_wide columns", k.place_wide, k.lanes), isa);
  measure(place_columns("place_narrow columns", k.place_narrow, k.lanes), isa);
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::testing::use_no_threads();
  fastconv::testing::for_each_isa(&fastconv::cpu::measure_all);
  return fastconv::testing::report();
}
