// SPDX-License-Identifier: MIT
// Data movement of conv2d, written once over Simd; instantiated by conv2d_ukernels_<isa>.cpp.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv2d/conv2d_ukernels.h"

namespace {

using fastconv::cpu::BlockCopy;
using fastconv::cpu::PanelPack;
using fastconv::cpu::PixelRun;
using fastconv::cpu::TapOffset;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Lanes [begin, end) of a vector, the part that lies inside the image.
struct LaneRange {
  int64_t begin;
  int64_t end;
};

// Lanes l in [0, lanes) with 0 <= column + l * step < width.
inline LaneRange lanes_inside(int64_t column, int64_t step, int64_t width, int64_t lanes) {
  if (step == 1) {
    const int64_t begin = min_of(max_of(-column, 0), lanes);
    return {begin, max_of(begin, min_of(width - column, lanes))};
  }
  const int64_t begin = column >= 0 ? 0 : min_of((-column + step - 1) / step, lanes);
  const int64_t last = column >= width ? 0 : (width - column + step - 1) / step;
  return {begin, max_of(begin, min_of(last, lanes))};
}

inline void fill_zero(float* target, int64_t pitch, int64_t channels, Simd::Mask lanes) {
  for (int64_t c = 0; c < channels; ++c)
    Simd::store_masked(target + c * pitch, Simd::zero(), lanes);
}

// One vector of pixels of every channel; `source` is the element of lane 0 and channel 0.
inline void pack_unit_stride(const PanelPack& pack, const float* source, float* target,
                             LaneRange inside, int64_t lanes) {
  if (inside.begin == 0 && inside.end == kLanes) {
    for (int64_t c = 0; c < pack.channels; ++c)
      Simd::store(target + c * pack.panel_pitch, Simd::load(source + c * pack.channel_stride));
    return;
  }
  const Simd::Mask read = Simd::mask_range(inside.begin, inside.end);
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; ++c) {
    const auto x = Simd::load_masked(source + c * pack.channel_stride, read);
    Simd::store_masked(target + c * pack.panel_pitch, x, write);
  }
}

// As pack_unit_stride for every second column: two loads, even lanes kept.
inline void pack_stride_two(const PanelPack& pack, const float* source, float* target,
                            LaneRange inside, int64_t lanes) {
  const int64_t last = max_of(2 * inside.end - 1, 0);  // no column past the last lane is read
  const Simd::Mask low =
      Simd::mask_range(min_of(2 * inside.begin, kLanes), min_of(last, kLanes));
  const Simd::Mask high = Simd::mask_range(min_of(max_of(2 * inside.begin - kLanes, 0), kLanes),
                                           max_of(last - kLanes, 0));
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; ++c) {
    const float* p = source + c * pack.channel_stride;
    const auto x = Simd::even_lanes(Simd::load_masked(p, low), Simd::load_masked(p + kLanes, high));
    Simd::store_masked(target + c * pack.panel_pitch, x, write);
  }
}

// Channels are contiguous (channels_last): kLanes pixels x kLanes channels are transposed at a time.
inline void pack_channels_last(const PanelPack& pack, const float* source, float* target,
                               LaneRange inside, int64_t lanes) {
  const int64_t pixel_stride = pack.column_step * pack.column_stride;
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; c += kLanes) {
    const int64_t count = min_of(kLanes, pack.channels - c);
    const Simd::Mask read = Simd::mask_first(count);
    Simd::Reg block[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const bool valid = l >= inside.begin && l < inside.end;
      block[l] = valid ? Simd::load_masked(source + l * pixel_stride + c, read) : Simd::zero();
    }
    Simd::transpose(block);
    for (int64_t l = 0; l < count; ++l)
      Simd::store_masked(target + (c + l) * pack.panel_pitch, block[l], write);
  }
}

inline void pack_any_stride(const PanelPack& pack, const float* source, float* target,
                            LaneRange inside, int64_t lanes) {
  const int64_t pixel_stride = pack.column_step * pack.column_stride;
  for (int64_t c = 0; c < pack.channels; ++c) {
    const float* p = source + c * pack.channel_stride;
    float* row = target + c * pack.panel_pitch;
    for (int64_t l = 0; l < lanes; ++l)
      row[l] = l >= inside.begin && l < inside.end ? p[l * pixel_stride] : 0.0f;
  }
}

using PackVector = void (*)(const PanelPack&, const float*, float*, LaneRange, int64_t);

template <PackVector pack_vector>
void pack_runs(const PanelPack& pack) {
  const int64_t tap_pitch = pack.channels * pack.panel_pitch;
  float* run_target = pack.panel;
  for (int64_t r = 0; r < pack.run_count; ++r) {
    const PixelRun& run = pack.runs[r];
    for (int64_t l = 0; l < run.length; l += kLanes) {
      const int64_t lanes = min_of(kLanes, run.length - l);
      float* target = run_target + l;
      for (int64_t t = 0; t < pack.tap_count; ++t, target += tap_pitch) {
        const int64_t row = run.row + pack.taps[t].row;
        const int64_t column = run.column + pack.taps[t].column + l * pack.column_step;
        const LaneRange inside = lanes_inside(column, pack.column_step, pack.width, lanes);
        if (row < 0 || row >= pack.height || inside.begin == inside.end) {
          fill_zero(target, pack.panel_pitch, pack.channels, Simd::mask_first(lanes));
          continue;
        }
        const float* source = run.image + row * pack.row_stride + column * pack.column_stride;
        pack_vector(pack, source, target, inside, lanes);
      }
    }
    run_target += run.length;
  }
}

void pack_panel(const PanelPack& pack) {
  if (pack.column_stride == 1 && pack.column_step == 1) return pack_runs<pack_unit_stride>(pack);
  if (pack.column_stride == 1 && pack.column_step == 2) return pack_runs<pack_stride_two>(pack);
  if (pack.channel_stride == 1) return pack_runs<pack_channels_last>(pack);
  return pack_runs<pack_any_stride>(pack);
}

// target rows and source rows are both contiguous: rows x columns floats, whole vectors then a tail.
void copy_rows(int64_t rows, int64_t columns, const float* source, int64_t source_row,
               float* target, int64_t target_row) {
  const int64_t whole = columns / kLanes * kLanes;
  const Simd::Mask tail = Simd::mask_first(columns - whole);
  for (int64_t r = 0; r < rows; ++r) {
    const float* s = source + r * source_row;
    float* t = target + r * target_row;
    for (int64_t j = 0; j < whole; j += kLanes) Simd::store(t + j, Simd::load(s + j));
    if (whole < columns) Simd::store_masked(t + whole, Simd::load_masked(s + whole, tail), tail);
  }
}

// target[j * target_row + i] = source[i * source_row + j]
void copy_transposed(int64_t rows, int64_t columns, const float* source, int64_t source_row,
                     float* target, int64_t target_row) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t height = min_of(kLanes, rows - i);
    const Simd::Mask write = Simd::mask_first(height);
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t width = min_of(kLanes, columns - j);
      const Simd::Mask read = Simd::mask_first(width);
      Simd::Reg block[kLanes];
      for (int64_t l = 0; l < kLanes; ++l)
        block[l] = l < height ? Simd::load_masked(source + (i + l) * source_row + j, read)
                              : Simd::zero();
      Simd::transpose(block);
      for (int64_t l = 0; l < width; ++l)
        Simd::store_masked(target + (j + l) * target_row + i, block[l], write);
    }
  }
}

void copy_block(const BlockCopy& b) {
  if (b.source_pixel == 1 && b.target_pixel == 1)
    return copy_rows(b.channels, b.pixels, b.source, b.source_channel, b.target, b.target_channel);
  if (b.source_channel == 1 && b.target_channel == 1)
    return copy_rows(b.pixels, b.channels, b.source, b.source_pixel, b.target, b.target_pixel);
  if (b.source_pixel == 1 && b.target_channel == 1)
    return copy_transposed(b.channels, b.pixels, b.source, b.source_channel, b.target,
                           b.target_pixel);
  if (b.source_channel == 1 && b.target_pixel == 1)
    return copy_transposed(b.pixels, b.channels, b.source, b.source_pixel, b.target,
                           b.target_channel);
  for (int64_t c = 0; c < b.channels; ++c)
    for (int64_t p = 0; p < b.pixels; ++p)
      b.target[c * b.target_channel + p * b.target_pixel] =
          b.source[c * b.source_channel + p * b.source_pixel];
}

}  // namespace
