// SPDX-License-Identifier: MIT
// Pooling a strip in L1, and the sparse gradients behind it, written once over Simd; instantiated
// by conv_block2d_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv_block2d/conv_block2d_ukernels.h"

namespace {

using fastconv::cpu::ConvBlock2dKernels;
using fastconv::cpu::DenseInputFn;
using fastconv::cpu::DenseInputTile;
using fastconv::cpu::GradLists;
using fastconv::cpu::ListWinners;
using fastconv::cpu::PoolChannels;
using fastconv::cpu::PoolPixels;
using fastconv::cpu::ScaleGrad;
using fastconv::cpu::SparseInputFn;
using fastconv::cpu::SparseInputTile;
using fastconv::cpu::SparseWeightFn;
using fastconv::cpu::SparseWeightTile;
using fastconv::cpu::SpreadGrad;
using fastconv::cpu::SpreadGradChannels;
using fastconv::cpu::SpreadWinners;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t lanes_left(int64_t count, int64_t done) {
  return count - done < kLanes ? count - done : kLanes;
}

// The pooled value of one window per lane, and the number of the tap that won.
struct Pooled {
  Simd::Reg value;
  Simd::Ints offset;
};

template <typename Act>
inline Pooled max_of_taps(Simd::Reg (&taps)[4], Simd::Reg slope) {
  if constexpr (Act::kBeforePool) {
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) taps[t] = Act::value(taps[t], slope);
  }
  Pooled best{taps[0], Simd::set1_int(0)};
#pragma GCC unroll 3
  for (int t = 1; t < 4; ++t) {
    const auto wins = Simd::greater_or_nan(taps[t], best.value);
    best.value = Simd::select(wins, taps[t], best.value);
    best.offset = Simd::select_int(wins, Simd::set1_int(t), best.offset);
  }
  if constexpr (!Act::kBeforePool) best.value = Act::value(best.value, slope);
  return best;
}

template <typename Act>
inline Simd::Reg mean_of_taps(Simd::Reg (&taps)[4], Simd::Reg slope) {
#pragma GCC unroll 4
  for (int t = 0; t < 4; ++t) taps[t] = Act::value(taps[t], slope);
  // In the order of the composed operator: row by row.
  const auto sum = Simd::add(Simd::add(Simd::add(taps[0], taps[1]), taps[2]), taps[3]);
  return Simd::mul(sum, Simd::set1(0.25f));
}

// The four taps of kLanes windows of a row pair.
inline void load_windows(const float* top, const float* bottom, Simd::Reg (&taps)[4]) {
  const auto t0 = Simd::load(top), t1 = Simd::load(top + kLanes);
  const auto b0 = Simd::load(bottom), b1 = Simd::load(bottom + kLanes);
  taps[0] = Simd::even_lanes(t0, t1);
  taps[1] = Simd::odd_lanes(t0, t1);
  taps[2] = Simd::even_lanes(b0, b1);
  taps[3] = Simd::odd_lanes(b0, b1);
}

template <bool Max, typename Act>
void pool_pixels(const PoolPixels& task) {
  const auto slope = Simd::set1(task.slope);
  for (int64_t i = 0; i < task.cells; i += kLanes) {
    const int64_t lanes = lanes_left(task.cells, i);
    Simd::Reg taps[4];
    load_windows(task.top + 2 * i, task.bottom + 2 * i, taps);
    if constexpr (Max) {
      const Pooled best = max_of_taps<Act>(taps, slope);
      Simd::store_masked(task.out + i, best.value, Simd::mask_first(lanes));
      if (task.offsets != nullptr) Simd::store_first(task.offsets + i, best.offset, lanes);
    } else {
      Simd::store_masked(task.out + i, mean_of_taps<Act>(taps, slope), Simd::mask_first(lanes));
    }
  }
}

template <bool Max, typename Act>
void pool_channels(const PoolChannels& task) {
  const auto slope = Simd::set1(task.slope);
  for (int64_t o = 0; o < task.channels; o += kLanes) {
    const int64_t lanes = lanes_left(task.channels, o);
    const auto mask = Simd::mask_first(lanes);
    for (int64_t i = 0; i < task.cells; ++i) {
      const float* top = task.top + 2 * i * task.pixel_pitch + o;
      const float* bottom = task.bottom + 2 * i * task.pixel_pitch + o;
      Simd::Reg taps[4] = {
          Simd::load_masked(top, mask), Simd::load_masked(top + task.pixel_pitch, mask),
          Simd::load_masked(bottom, mask), Simd::load_masked(bottom + task.pixel_pitch, mask)};
      float* out = task.out + i * task.channels + o;
      if constexpr (Max) {
        const Pooled best = max_of_taps<Act>(taps, slope);
        Simd::store_masked(out, best.value, mask);
        if (task.offsets != nullptr)
          Simd::store_first(task.offsets + i * task.offset_pitch + o, best.offset, lanes);
      } else {
        Simd::store_masked(out, mean_of_taps<Act>(taps, slope), mask);
      }
    }
  }
}

template <typename Act>
void scale_grad(const ScaleGrad& task) {
  const auto slope = Simd::set1(task.slope);
  auto sum = Simd::zero();
  for (int64_t i = 0; i < task.count; i += kLanes) {
    const auto mask = Simd::mask_first(lanes_left(task.count, i));
    const auto y = Simd::load_masked(task.output + i, mask);
    const auto g = Act::grad(Simd::load_masked(task.grad + i, mask), y, slope);
    Simd::store_masked(task.scaled + i, g, mask);
    sum = Simd::add(sum, g);
  }
  *task.sum += Simd::reduce_add(sum);
}

template <typename Act>
inline Simd::Reg spread_one(Simd::Reg g, const float* z, Simd::Reg slope) {
  return Act::grad(g, Act::value(Simd::load(z), slope), slope);
}

template <typename Act>
void spread_grad(const SpreadGrad& task) {
  const auto slope = Simd::set1(task.slope);
  auto sum = Simd::zero();
  for (int64_t i = 0; i < task.cells; i += kLanes) {
    const int64_t lanes = lanes_left(task.cells, i);
    const auto g =
        Simd::mul(Simd::load_masked(task.grad + i, Simd::mask_first(lanes)), Simd::set1(0.25f));
    Simd::Reg part[2];
    Simd::interleave(g, g, &part[0], &part[1]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int64_t j = 2 * i + h * kLanes;
      const int64_t left = 2 * task.cells - j;
      const auto mask = Simd::mask_first(left < 0 ? 0 : left < kLanes ? left : kLanes);
      const auto top = spread_one<Act>(part[h], task.z_top + j, slope);
      const auto bottom = spread_one<Act>(part[h], task.z_bottom + j, slope);
      Simd::store_masked(task.top + j, top, mask);
      Simd::store_masked(task.bottom + j, bottom, mask);
      sum = Simd::add_masked(sum, mask, Simd::add(top, bottom));
    }
  }
  *task.sum += Simd::reduce_add(sum);
}

template <typename Act>
void spread_grad_channels(const SpreadGradChannels& task) {
  const auto slope = Simd::set1(task.slope);
  for (int64_t o = 0; o < task.channels; o += kLanes) {
    const auto mask = Simd::mask_first(lanes_left(task.channels, o));
    for (int64_t i = 0; i < task.cells; ++i) {
      const auto g = Simd::mul(Simd::load_masked(task.grad + i * task.grad_pitch + o, mask),
                               Simd::set1(0.25f));
#pragma GCC unroll 2
      for (int64_t j = 2 * i; j < 2 * i + 2; ++j) {
        const int64_t z = j * task.z_pitch + o, at = j * task.grad_pitch + o;
        const auto top = Act::value(Simd::load_masked(task.z_top + z, mask), slope);
        const auto bottom = Act::value(Simd::load_masked(task.z_bottom + z, mask), slope);
        Simd::store_masked(task.top + at, Act::grad(g, top, slope), mask);
        Simd::store_masked(task.bottom + at, Act::grad(g, bottom, slope), mask);
      }
    }
  }
}

inline void spread_winners(const SpreadWinners& task) {
  const int64_t columns = 2 * task.cells;
  for (int64_t i = 0; i < task.rows; ++i)
    for (int64_t j = 0; j < task.cells; j += kLanes) {
      const int64_t lanes = lanes_left(task.cells, j);
      const auto g = Simd::load_masked(task.grad + i * task.cells + j, Simd::mask_first(lanes));
      const auto winner =
          Simd::load_range(task.offsets + i * task.cells + j, 0, lanes, Simd::mask_first(lanes));
      Simd::Reg taps[4];
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t)
        taps[t] = Simd::select(Simd::equal_int(winner, Simd::set1_int(t)), g, Simd::zero());
      float* top = task.spread + 2 * i * columns + 2 * j;
#pragma GCC unroll 2
      for (int row = 0; row < 2; ++row) {
        Simd::Reg low, high;
        Simd::interleave(taps[2 * row], taps[2 * row + 1], &low, &high);
        float* target = top + row * columns;
        Simd::store_masked(target, low, Simd::mask_first(lanes_left(2 * lanes, 0)));
        if (2 * lanes > kLanes)
          Simd::store_masked(target + kLanes, high, Simd::mask_first(2 * lanes - kLanes));
      }
    }
}

template <int Rows, int Vectors>
inline void add_patch(Simd::Reg (&acc)[Rows][Vectors], float grad, const float* patch,
                      int64_t row_pitch) {
  const auto g = Simd::set1(grad);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      acc[r][v] = Simd::fma(g, Simd::load(patch + r * row_pitch + v * kLanes), acc[r][v]);
}

template <int Rows, int Vectors>
void sparse_weight(const SparseWeightTile& tile) {
  Simd::Reg acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::zero();
  const int64_t row_pitch = tile.row_pitch;
  if (tile.offsets == nullptr) {
    for (int64_t i = 0; i < tile.count; ++i)
      add_patch<Rows, Vectors>(acc, tile.grad[i], tile.input + tile.starts[i], row_pitch);
  } else {
    const uint8_t* offset = tile.offsets;
    for (int64_t i = 0; i < tile.count; ++i, offset += tile.offset_pitch)
      add_patch<Rows, Vectors>(acc, tile.grad[i], tile.input + tile.starts[i] + tile.steps[*offset],
                               row_pitch);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      float* sum = tile.sums + r * tile.sum_pitch + v * kLanes;
      Simd::store(sum, Simd::add(Simd::load(sum), acc[r][v]));
    }
}

template <int Rows, int Vectors, int Channels>
void dense_weight(const SparseWeightTile& tile) {
  Simd::Reg acc[Channels][Rows][Vectors];
#pragma GCC unroll 8
  for (int c = 0; c < Channels; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) acc[c][r][v] = Simd::zero();
  const int64_t row_pitch = tile.row_pitch;
  for (int64_t i = 0; i < tile.count; ++i) {
    const float* patch = tile.input + tile.starts[i];
    Simd::Reg g[Channels];
#pragma GCC unroll 8
    for (int c = 0; c < Channels; ++c) g[c] = Simd::set1(tile.grad[c * tile.grad_channel + i]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        const auto x = Simd::load(patch + r * row_pitch + v * kLanes);
#pragma GCC unroll 8
        for (int c = 0; c < Channels; ++c) acc[c][r][v] = Simd::fma(g[c], x, acc[c][r][v]);
      }
  }
#pragma GCC unroll 8
  for (int c = 0; c < Channels; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        float* sum = tile.sums + c * tile.sum_channel + r * tile.sum_pitch + v * kLanes;
        Simd::store(sum, Simd::add(Simd::load(sum), acc[c][r][v]));
      }
}

template <int Vectors>
inline void add_row(float* row, const Simd::Reg (&acc)[Vectors], Simd::Mask tail) {
#pragma GCC unroll 4
  for (int v = 0; v < Vectors - 1; ++v) {
    float* p = row + v * kLanes;
    Simd::store(p, Simd::add(Simd::load(p), acc[v]));
  }
  float* p = row + (Vectors - 1) * kLanes;
  Simd::store_masked(p, Simd::add(Simd::load_masked(p, tail), acc[Vectors - 1]), tail);
}

// Down a column of pixels the patches slide by one row: the top row of the accumulators is complete
// after each pixel, so that a row of the strip is read and written once per column. add(i, acc)
// adds what pixel i has.
template <int Rows, int Vectors, typename Add>
inline void slide_down(int64_t rows, float* strip, int64_t row_pitch, Simd::Mask tail,
                       const Add& add) {
  Simd::Reg acc[Rows][Vectors];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[r][v] = Simd::zero();
  for (int64_t i = 0; i < rows; ++i, strip += row_pitch) {
    add(i, acc);
    add_row<Vectors>(strip, acc[0], tail);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        acc[r][v] = r + 1 < Rows ? acc[r + 1 < Rows ? r + 1 : r][v] : Simd::zero();
  }
#pragma GCC unroll 8
  for (int r = 0; r + 1 < Rows; ++r, strip += row_pitch) add_row<Vectors>(strip, acc[r], tail);
}

// Lists overlap what follows them, so that every store is a whole vector: in the order of the
// pixels, the next one's list replaces it.
inline void list_winners(const ListWinners& task) {
  const GradLists& lists = task.lists;
  for (int64_t cell = 0; cell < task.cells; ++cell) {
    const float* grad = task.grad + cell * task.grad_pitch;
    const uint8_t* offsets = task.offsets + cell * task.channels;
#pragma GCC unroll 4
    for (int64_t tap = 0; tap < 4; ++tap) {
      const int64_t pixel = 4 * cell + tap;
      int64_t at = pixel * lists.pitch;
      for (int64_t o = 0; o < task.channels; o += kLanes) {
        const int64_t lanes = lanes_left(task.channels, o);
        const auto mask = Simd::mask_first(lanes);
        const auto g = Simd::load_masked(grad + o, mask);
        const auto winner = Simd::select_int(
            Simd::nonzero(g), Simd::load_range(offsets + o, 0, lanes, mask), Simd::set1_int(-1));
        const auto weights =
            Simd::mul_int(Simd::add_int(Simd::lane_numbers(), Simd::set1_int(static_cast<int>(o))),
                          Simd::set1_int(task.weight_channel));
        at += Simd::store_selected(lists.grads + at, lists.weights + at, g, weights,
                                   Simd::equal_int(winner, Simd::set1_int(static_cast<int>(tap))));
      }
      lists.counts[pixel] = static_cast<int32_t>(at - pixel * lists.pitch);
    }
  }
}

template <int Rows, int Vectors>
void sparse_input(const SparseInputTile& tile) {
  const auto tail = Simd::mask_first(tile.tail);
  const GradLists lists = tile.lists;
  for (int64_t j = 0; j < tile.columns; ++j) {
    const int64_t first = j / 2 * 4 + j % 2;  // pixel (0, j)
    slide_down<Rows, Vectors>(
        tile.rows, tile.strip + j * tile.column_pitch, tile.row_pitch, tail,
        [&](int64_t i, Simd::Reg(&acc)[Rows][Vectors]) __attribute__((always_inline)) {
          const int64_t pixel = first + i / 2 * 2 * tile.columns + i % 2 * 2;
          const int64_t begin = pixel * lists.pitch;
          for (int64_t e = begin; e < begin + lists.counts[pixel]; ++e)
            add_patch<Rows, Vectors>(acc, lists.grads[e], tile.weights + lists.weights[e],
                                     tile.weight_pitch);
        });
  }
}

template <int Rows, int Vectors>
void dense_input(const DenseInputTile& tile) {
  const auto tail = Simd::mask_first(tile.tail);
  for (int64_t j = 0; j < tile.columns; ++j)
    slide_down<Rows, Vectors>(
        tile.rows, tile.strip + j * tile.column_pitch, tile.row_pitch, tail,
        [&](int64_t i, Simd::Reg(&acc)[Rows][Vectors]) __attribute__((always_inline)) {
          const float* grad = tile.grad + (i * tile.columns + j) * tile.grad_pitch;
          const float* weights = tile.weights;
          for (int64_t o = 0; o < tile.channels; ++o, weights += tile.channel_pitch)
            add_patch<Rows, Vectors>(acc, grad[o], weights, tile.weight_pitch);
        });
}

// Registers that may hold accumulators; the rest hold operands.
constexpr int kAccumulators = kLanes == 16 ? 24 : 12;

template <int Rows, int Vectors>
constexpr SparseWeightFn weight_tile() {
  if constexpr (Rows * Vectors <= kAccumulators) return &sparse_weight<Rows, Vectors>;
  return nullptr;
}

// Output channels whose sums the registers hold at once.
template <int Rows, int Vectors>
constexpr int dense_channels() {
  constexpr int kMost = kAccumulators / (Rows * Vectors);
  return kMost > 4 ? 4 : kMost;
}

template <int Rows, int Vectors>
constexpr SparseWeightFn dense_tile() {
  if constexpr (dense_channels<Rows, Vectors>() > 0)
    return &dense_weight<Rows, Vectors, dense_channels<Rows, Vectors>()>;
  return nullptr;
}

template <int Rows, int Vectors>
constexpr SparseInputFn input_tile() {
  if constexpr (Rows * Vectors <= kAccumulators) return &sparse_input<Rows, Vectors>;
  return nullptr;
}

template <int Rows, int Vectors>
constexpr DenseInputFn dense_input_tile() {
  if constexpr (Rows * Vectors <= kAccumulators) return &dense_input<Rows, Vectors>;
  return nullptr;
}

template <bool Max>
constexpr void fill_pools(ConvBlock2dKernels* k, int pool) {
  k->pool_pixels[pool][0] = &pool_pixels<Max, NoActivation>;
  k->pool_pixels[pool][1] = &pool_pixels<Max, Relu>;
  k->pool_pixels[pool][2] = &pool_pixels<Max, LeakyRelu>;
  k->pool_pixels[pool][3] = &pool_pixels<Max, Sigmoid>;
  k->pool_pixels[pool][4] = &pool_pixels<Max, Tanh>;
  k->pool_channels[pool][0] = &pool_channels<Max, NoActivation>;
  k->pool_channels[pool][1] = &pool_channels<Max, Relu>;
  k->pool_channels[pool][2] = &pool_channels<Max, LeakyRelu>;
  k->pool_channels[pool][3] = &pool_channels<Max, Sigmoid>;
  k->pool_channels[pool][4] = &pool_channels<Max, Tanh>;
}

template <int Rows, int Vectors>
constexpr void fill_tile(ConvBlock2dKernels* k) {
  constexpr int r = Rows - 1, v = Vectors - 1;
  k->sparse_weight[r][v] = weight_tile<Rows, Vectors>();
  k->dense_weight[r][v] = dense_tile<Rows, Vectors>();
  k->dense_channels[r][v] = dense_channels<Rows, Vectors>();
  k->sparse_input[r][v] = input_tile<Rows, Vectors>();
  k->dense_input[r][v] = dense_input_tile<Rows, Vectors>();
}

template <int Rows>
constexpr void fill_tiles(ConvBlock2dKernels* k) {
  fill_tile<Rows, 1>(k);
  fill_tile<Rows, 2>(k);
  fill_tile<Rows, 3>(k);
  fill_tile<Rows, 4>(k);
}

constexpr ConvBlock2dKernels make_kernels() {
  ConvBlock2dKernels k{};
  k.lanes = kLanes;
  fill_pools<true>(&k, 0);
  fill_pools<false>(&k, 1);
  k.scale_grad[0] = &scale_grad<NoActivation>;
  k.scale_grad[1] = &scale_grad<Relu>;
  k.scale_grad[2] = &scale_grad<LeakyRelu>;
  k.scale_grad[3] = &scale_grad<Sigmoid>;
  k.scale_grad[4] = &scale_grad<Tanh>;
  k.spread_grad[0] = &spread_grad<NoActivation>;
  k.spread_grad[1] = &spread_grad<Relu>;
  k.spread_grad[2] = &spread_grad<LeakyRelu>;
  k.spread_grad[3] = &spread_grad<Sigmoid>;
  k.spread_grad[4] = &spread_grad<Tanh>;
  k.spread_grad_channels[0] = &spread_grad_channels<NoActivation>;
  k.spread_grad_channels[1] = &spread_grad_channels<Relu>;
  k.spread_grad_channels[2] = &spread_grad_channels<LeakyRelu>;
  k.spread_grad_channels[3] = &spread_grad_channels<Sigmoid>;
  k.spread_grad_channels[4] = &spread_grad_channels<Tanh>;
  k.spread_winners = &spread_winners;
  k.list_winners = &list_winners;
  fill_tiles<1>(&k);
  fill_tiles<2>(&k);
  fill_tiles<3>(&k);
  fill_tiles<4>(&k);
  fill_tiles<5>(&k);
  fill_tiles<6>(&k);
  fill_tiles<7>(&k);
  return k;
}

}  // namespace
