// SPDX-License-Identifier: MIT
// How much of the machine's FMA peak each GEMM tile reaches: with A and B in L1, and with B
// streamed from L2. The peak is that of the same instruction set on one core, measured next to
// every tile. Not run by default: ctest -C Benchmark -R bench_gemm --verbose. Fails when a tile
// misses its bar.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>

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
constexpr int kRounds = 40;
constexpr double kRoundSeconds = 2e-3;

struct Tile {
  const char* name;
  const GemmFamily* family;
  bool packed;
  int64_t lanes;

  int64_t rows() const { return family->max_rows; }
  int64_t columns() const { return family->vectors * lanes; }
};

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
  const int64_t rows = tile.rows(), columns = tile.columns();
  const AlignedFloats a(rows * std::max(depth, kPanelPitch)), b(panels * depth * columns);
  const AlignedFloats c(rows * columns);
  const auto sweep = [&] {
    for (int64_t p = 0; p < panels; ++p)
      tile.family->by_rows[rows - 1]({depth, a.data(), b.data() + p * depth * columns, columns,
                                      c.data(), columns, columns, nullptr, false});
  };
  int64_t sweeps = 1;
  const auto run = [&] {
    for (int64_t s = 0; s < sweeps; ++s) sweep();
  };
  double best = seconds_of(run);
  for (; best < kRoundSeconds; best = seconds_of(run)) sweeps *= 2;
  for (int round = 0; round < kRounds; ++round) best = std::min(best, seconds_of(run));
  return 2e-9 * static_cast<double>(sweeps * panels * rows * columns * depth) / best;
}

void measure(const Tile& tile, Isa isa) {
  // What the cache holds, in whole runs of kMaxTerms, as the channel counts of networks give them.
  const int64_t fits = kL1Bytes / (4 * (tile.rows() + tile.columns()));
  const int64_t depth = fits / kMaxTerms * kMaxTerms;
  const int64_t panels = kL2Bytes / (4 * depth * tile.columns());
  double peak = measure_fma_peak(isa);
  const double from_l1 = gflops(tile, depth, 1);
  const double from_l2 = gflops(tile, depth, panels);
  peak = std::max(peak, measure_fma_peak(isa));
  std::printf(
      "%-7s %-13s %2lld x %2lld depth %3lld  peak %5.1f GFLOP/s  L1 %5.1f %%  L2 %5.1f %%\n",
      isa_name(isa), tile.name, static_cast<long long>(tile.rows()),
      static_cast<long long>(tile.columns()), static_cast<long long>(depth), peak,
      100 * from_l1 / peak, 100 * from_l2 / peak);
  if (isa == Isa::kScalar) return;  // no bar: it is there to be right everywhere
  CHECK_WITH(from_l1 >= kBarL1 * peak, tile.name);
  CHECK_WITH(from_l2 >= kBarL2 * peak, tile.name);
}

void measure_all(Isa isa) {
  const GemmKernels& k = gemm_kernels(isa);
  measure({"packed_tall", &k.packed_tall, true, k.lanes}, isa);
  measure({"packed_wide", &k.packed_wide, true, k.lanes}, isa);
  measure({"panel_wide", &k.panel_wide, false, k.lanes}, isa);
  measure({"panel_narrow", &k.panel_narrow, false, k.lanes}, isa);
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  fastconv::testing::use_no_threads();
  fastconv::testing::for_each_isa(&fastconv::cpu::measure_all);
  return fastconv::testing::report();
}
