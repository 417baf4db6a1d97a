// SPDX-License-Identifier: MIT
// Data movement of conv2d, written once over Simd; instantiated by conv2d_ukernels_<isa>.cpp.
// Internal linkage throughout, see gemm_ukernels_impl.h.
#pragma once

#include <cstdint>

#include "cpu/conv2d/conv2d_ukernels.h"

namespace {

using fastconv::cpu::BlockCopy;
using fastconv::cpu::ColumnPack;
using fastconv::cpu::ColumnUnpack;
using fastconv::cpu::PanelPack;
using fastconv::cpu::PieceCopy;
using fastconv::cpu::PixelPiece;
using fastconv::cpu::PixelRun;
using fastconv::cpu::ShiftedSum;

constexpr int64_t kLanes = Simd::kLanes;

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}

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

// Geometry of one vector of pixels at one kernel column.
struct VectorPlace {
  const float* source;  // element of lane 0 in input row 0, channel 0; read only where inside
  LaneRange inside;
};

inline void fill_zero(float* target, int64_t pitch, int64_t channels, Simd::Mask lanes) {
  for (int64_t c = 0; c < channels; ++c)
    Simd::store_masked(target + c * pitch, Simd::zero(), lanes);
}

// The movers below copy one vector of pixels of every channel: `source` is the element of lane 0 in
// channel 0, `target` its place in the panel, `pitch` the distance of channels there.

inline void move_unit_stride(const PanelPack& pack, const float* source, float* target,
                             int64_t pitch, LaneRange inside, int64_t lanes) {
  if (inside.begin == 0 && inside.end == kLanes) {
    for (int64_t c = 0; c < pack.channels; ++c)
      Simd::store(target + c * pitch, Simd::load(source + c * pack.channel_stride));
    return;
  }
  const Simd::Mask read = Simd::mask_range(inside.begin, inside.end);
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; ++c)
    Simd::store_masked(target + c * pitch,
                       Simd::load_masked(source + c * pack.channel_stride, read), write);
}

// Every second column: two loads, even lanes kept.
inline void move_stride_two(const PanelPack& pack, const float* source, float* target,
                            int64_t pitch, LaneRange inside, int64_t lanes) {
  const int64_t first = 2 * inside.begin;
  const int64_t last = max_of(2 * inside.end - 1, 0);  // no column past the last lane is read
  const Simd::Mask low = Simd::mask_range(min_of(first, kLanes), min_of(last, kLanes));
  const Simd::Mask high =
      Simd::mask_range(min_of(max_of(first - kLanes, 0), kLanes), max_of(last - kLanes, 0));
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; ++c) {
    const float* p = source + c * pack.channel_stride;
    const auto x = Simd::even_lanes(Simd::load_masked(p, low), Simd::load_masked(p + kLanes, high));
    Simd::store_masked(target + c * pitch, x, write);
  }
}

// Channels are contiguous (channels_last): kLanes pixels x kLanes channels are transposed at a
// time.
inline void move_channels_last(const PanelPack& pack, const float* source, float* target,
                               int64_t pitch, LaneRange inside, int64_t lanes) {
  const int64_t pixel_stride = pack.column_step * pack.column_stride;
  const Simd::Mask write = Simd::mask_first(lanes);
  for (int64_t c = 0; c < pack.channels; c += kLanes) {
    const int64_t count = min_of(kLanes, pack.channels - c);
    const Simd::Mask read = Simd::mask_first(count);
    Simd::Reg block[kLanes];
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l) {
      const bool valid = l >= inside.begin && l < inside.end;
      block[l] = valid ? Simd::load_masked(source + l * pixel_stride + c, read) : Simd::zero();
    }
    Simd::transpose(block);
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l)
      if (l < count) Simd::store_masked(target + (c + l) * pitch, block[l], write);
  }
}

inline void move_any_stride(const PanelPack& pack, const float* source, float* target,
                            int64_t pitch, LaneRange inside, int64_t lanes) {
  const int64_t pixel_stride = pack.column_step * pack.column_stride;
  for (int64_t c = 0; c < pack.channels; ++c) {
    const float* p = source + c * pack.channel_stride;
    float* row = target + c * pitch;
    for (int64_t l = 0; l < lanes; ++l)
      row[l] = l >= inside.begin && l < inside.end ? p[l * pixel_stride] : 0.0f;
  }
}

using Mover = void (*)(const PanelPack&, const float*, float*, int64_t, LaneRange, int64_t);

// One vector of pixels at the kernel columns [q0, q0 + count) of every kernel row and channel.
template <Mover move>
void pack_vector(const PanelPack& pack, const PixelRun& run, int64_t first_pixel, int64_t q0,
                 int64_t count, const VectorPlace* places, int64_t lanes) {
  const int64_t taps = pack.tap_row_count * pack.tap_column_count;
  const int64_t pitch = taps * pack.panel_pitch;
  for (int64_t r = 0; r < pack.tap_row_count; ++r) {
    const int64_t row = run.row + pack.tap_rows[r];
    float* target = pack.panel + (r * pack.tap_column_count + q0) * pack.panel_pitch + first_pixel;
    if (row < 0 || row >= pack.height) {
      for (int64_t q = 0; q < count; ++q, target += pack.panel_pitch)
        fill_zero(target, pitch, pack.channels, Simd::mask_first(lanes));
      continue;
    }
    for (int64_t q = 0; q < count; ++q, target += pack.panel_pitch)
      move(pack, places[q].source + row * pack.row_stride, target, pitch, places[q].inside, lanes);
  }
}

template <Mover move>
void pack_runs(const PanelPack& pack) {
  constexpr int64_t kColumns = 16;  // kernel columns whose geometry is worked out at once
  int64_t run_pixel = 0;
  for (int64_t r = 0; r < pack.run_count; ++r) {
    const PixelRun& run = pack.runs[r];
    for (int64_t l = 0; l < run.length; l += kLanes) {
      const int64_t lanes = min_of(kLanes, run.length - l);
      for (int64_t q0 = 0; q0 < pack.tap_column_count; q0 += kColumns) {
        const int64_t count = min_of(kColumns, pack.tap_column_count - q0);
        VectorPlace places[kColumns];
        for (int64_t q = 0; q < count; ++q) {
          const int64_t column = run.column + pack.tap_columns[q0 + q] + l * pack.column_step;
          places[q] = {run.image + column * pack.column_stride,
                       lanes_inside(column, pack.column_step, pack.width, lanes)};
        }
        pack_vector<move>(pack, run, run_pixel + l, q0, count, places, lanes);
      }
    }
    run_pixel += run.length;
  }
}

void pack_panel(const PanelPack& pack) {
  if (pack.column_stride == 1 && pack.column_step == 1) return pack_runs<move_unit_stride>(pack);
  if (pack.column_stride == 1 && pack.column_step == 2) return pack_runs<move_stride_two>(pack);
  if (pack.channel_stride == 1) return pack_runs<move_channels_last>(pack);
  return pack_runs<move_any_stride>(pack);
}

void copy_pieces(const PieceCopy& copy) {
  for (int64_t c = 0; c < copy.channels; ++c) {
    const int64_t from = c * copy.source_channel, to = c * copy.target_channel;
    for (int64_t i = 0; i < copy.count; ++i) {
      const PixelPiece& piece = copy.pieces[i];
      if (piece.pixels == kLanes) {
        Simd::store(piece.target + to, Simd::load(piece.source + from));
      } else {
        const Simd::Mask mask = Simd::mask_first(piece.pixels);
        Simd::store_masked(piece.target + to, Simd::load_masked(piece.source + from, mask), mask);
      }
    }
  }
}

// target rows and source rows are both contiguous: rows x columns floats, whole vectors then a
// tail.
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

// target[j * target_row + i] = source[i * source_row + j] for one block of at most kLanes x kLanes.
inline void transpose_block(int64_t height, int64_t width, const float* source, int64_t source_row,
                            float* target, int64_t target_row) {
  Simd::Reg block[kLanes];
  if (height == kLanes && width == kLanes) {
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l) block[l] = Simd::load(source + l * source_row);
    Simd::transpose(block);
#pragma GCC unroll 16
    for (int64_t l = 0; l < kLanes; ++l) Simd::store(target + l * target_row, block[l]);
    return;
  }
  // Rows past the last one repeat it: they are loaded but fall outside the write mask.
  const Simd::Mask read = Simd::mask_first(width);
  const Simd::Mask write = Simd::mask_first(height);
#pragma GCC unroll 16
  for (int64_t l = 0; l < kLanes; ++l)
    block[l] = Simd::load_masked(source + min_of(l, height - 1) * source_row, read);
  Simd::transpose(block);
#pragma GCC unroll 16
  for (int64_t l = 0; l < kLanes; ++l)
    if (l < width) Simd::store_masked(target + l * target_row, block[l], write);
}

// Between few rows of pixels, `pitch` apart, and pixels side by side:
//   target[p * C + c] = source[c * pitch + p]     or, with Apart, the other way round
// Vector v of the result picks its lanes from the C vectors of kLanes pixels, pair by pair; a
// transposed block would compute kLanes rows.
template <int C, bool Apart>
struct FewRows {
  static constexpr int kPairs = (C + 1) / 2;
  int32_t lane[C][kLanes] = {};  // of the two vectors of the pair
  int32_t pair[C][kLanes] = {};

  constexpr FewRows() {
    for (int v = 0; v < C; ++v)
      for (int l = 0; l < kLanes; ++l) {
        const int flat = v * static_cast<int>(kLanes) + l;
        const int at = Apart ? l * C + v : flat % C * static_cast<int>(kLanes) + flat / C;
        lane[v][l] = at % (2 * kLanes);
        pair[v][l] = at / (2 * kLanes);
      }
  }
};

// `vectors` times kLanes pixels.
template <int C, bool Apart>
void copy_few_rows(int64_t vectors, const float* source, float* target, int64_t pitch) {
  static constexpr FewRows<C, Apart> kRows;
  constexpr int kPairs = FewRows<C, Apart>::kPairs;
  for (int64_t p = 0; p < vectors * kLanes; p += kLanes) {
    Simd::Reg x[2 * kPairs];
#pragma GCC unroll 8
    for (int v = 0; v < C; ++v)
      x[v] = Simd::load(Apart ? source + p * C + v * kLanes : source + v * pitch + p);
    x[2 * kPairs - 1] = x[C - 1];
#pragma GCC unroll 8
    for (int v = 0; v < C; ++v) {
      const Simd::Ints lane = Simd::load_ints(kRows.lane[v]), pair = Simd::load_ints(kRows.pair[v]);
      Simd::Reg y = Simd::pick_of_two(x[0], x[1], lane);
#pragma GCC unroll 4
      for (int i = 1; i < kPairs; ++i)
        y = Simd::select(Simd::equal_int(pair, Simd::set1_int(i)),
                         Simd::pick_of_two(x[2 * i], x[2 * i + 1], lane), y);
      Simd::store(target + (Apart ? v * pitch + p : p * C + v * kLanes), y);
    }
  }
}

template <bool Apart>
void copy_few_rows(int64_t rows, int64_t vectors, const float* source, float* target,
                   int64_t pitch) {
  if (rows == 2) copy_few_rows<2, Apart>(vectors, source, target, pitch);
  if (rows == 3) copy_few_rows<3, Apart>(vectors, source, target, pitch);
  if (rows == 4) copy_few_rows<4, Apart>(vectors, source, target, pitch);
  if (rows == 5) copy_few_rows<5, Apart>(vectors, source, target, pitch);
  if (rows == 6) copy_few_rows<6, Apart>(vectors, source, target, pitch);
  if (rows == 7) copy_few_rows<7, Apart>(vectors, source, target, pitch);
  if (rows == 8) copy_few_rows<8, Apart>(vectors, source, target, pitch);
}

// Where picking beats a transposed block: vectors of 16.
inline bool is_few(int64_t rows) {
  return kLanes == 16 && rows >= 2 && rows <= 8;
}

void copy_transposed(int64_t rows, int64_t columns, const float* source, int64_t source_row,
                     float* target, int64_t target_row) {
  if (is_few(rows) && target_row == rows && columns >= kLanes) {
    const int64_t vectors = columns / kLanes, done = vectors * kLanes;
    copy_few_rows<false>(rows, vectors, source, target, source_row);
    if (done == columns) return;
    return transpose_block(rows, columns - done, source + done, source_row, target + done * rows,
                           target_row);
  }
  if (is_few(columns) && source_row == columns && rows >= kLanes) {
    const int64_t vectors = rows / kLanes, done = vectors * kLanes;
    copy_few_rows<true>(columns, vectors, source, target, target_row);
    if (done == rows) return;
    return transpose_block(rows - done, columns, source + done * columns, source_row, target + done,
                           target_row);
  }
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes)
      transpose_block(min_of(kLanes, rows - i), min_of(kLanes, columns - j),
                      source + i * source_row + j, source_row, target + j * target_row + i,
                      target_row);
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

void pack_columns(const ColumnPack& p) {
  for (int64_t j = 0; j < p.columns; j += kLanes) {
    const int64_t width = min_of(kLanes, p.columns - j);
    if (p.depth == 1 && p.source_pitch == 1) {
      if (p.targets[0] < 0) continue;
      Simd::store(p.target + p.targets[0] * p.target_pitch + j,
                  Simd::load_masked(p.source + j, Simd::mask_first(width)));
      continue;
    }
    for (int64_t k = 0; k < p.depth; k += kLanes) {
      const int64_t height = min_of(kLanes, p.depth - k);
      const Simd::Mask read = Simd::mask_first(height);
      Simd::Reg block[kLanes];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        block[l] = l < width ? Simd::load_masked(p.source + (j + l) * p.source_pitch + k, read)
                             : Simd::zero();
      Simd::transpose(block);
      float* column = p.target + j;
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        if (l < height && p.targets[k + l] >= 0)
          Simd::store(column + p.targets[k + l] * p.target_pitch, block[l]);
    }
  }
}

void unpack_columns(const ColumnUnpack& u) {
  for (int64_t j = 0; j < u.columns; j += kLanes) {
    const int64_t width = min_of(kLanes, u.columns - j);
    for (int64_t k = 0; k < u.depth; k += kLanes) {
      const int64_t height = min_of(kLanes, u.depth - k);
      Simd::Reg block[kLanes];
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        block[l] = Simd::load(u.source + u.rows[k + min_of(l, height - 1)] * u.source_pitch + j);
      Simd::transpose(block);
      const Simd::Mask write = Simd::mask_first(height);
#pragma GCC unroll 16
      for (int64_t l = 0; l < kLanes; ++l)
        if (l < width) Simd::store_masked(u.target + (j + l) * u.target_pitch + k, block[l], write);
    }
  }
}

// The planes of up to kShiftedColumns kernel columns, for one vector of target pixels.
constexpr int64_t kShiftedColumns = 7;

struct ShiftedColumns {
  const float* products;  // of kernel row 0 and the first of the columns
  int64_t offset[kShiftedColumns];
  Simd::Mask inside[kShiftedColumns];
  float* target;
  Simd::Mask write;
  bool first;  // otherwise the sum is added to what is there
};

template <int Columns>
void add_shifted_columns(const ShiftedSum& s, const ShiftedColumns& at) {
  const int64_t plane_rows = s.tap_column_count * s.tap_pitch;
  for (int64_t i = 0; i < s.rows; ++i) {
    float* target = at.target + i * s.target_row;
    // Two chains of additions, for their latency.
    auto even = at.first ? Simd::set1(s.bias) : Simd::load_masked(target, at.write);
    auto odd = Simd::zero();
    for (int64_t r = 0; r < s.tap_row_count; ++r) {
      const int64_t row = s.row + i + s.tap_rows[r];
      if (row < 0 || row >= s.height) continue;
      const float* products = at.products + r * plane_rows + row * s.width;
#pragma GCC unroll 8
      for (int q = 0; q < Columns; ++q) {
        const auto x = Simd::load_masked(products + at.offset[q], at.inside[q]);
        if (q % 2 == 0)
          even = Simd::add(even, x);
        else
          odd = Simd::add(odd, x);
      }
    }
    Simd::store_masked(target, Simd::add(even, odd), at.write);
  }
}

void add_shifted(const ShiftedSum& s) {
  constexpr void (*kByColumns[])(const ShiftedSum&, const ShiftedColumns&) = {
      &add_shifted_columns<1>, &add_shifted_columns<2>, &add_shifted_columns<3>,
      &add_shifted_columns<4>, &add_shifted_columns<5>, &add_shifted_columns<6>,
      &add_shifted_columns<7>};
  ShiftedColumns at{};
  for (int64_t j = 0; j < s.columns; j += kLanes) {
    const int64_t lanes = min_of(kLanes, s.columns - j);
    at.target = s.target + j;
    at.write = Simd::mask_first(lanes);
    for (int64_t q0 = 0; q0 < s.tap_column_count; q0 += kShiftedColumns) {
      const int64_t count = min_of(kShiftedColumns, s.tap_column_count - q0);
      for (int64_t q = 0; q < count; ++q) {
        const int64_t column = j + s.tap_columns[q0 + q];
        const LaneRange inside = lanes_inside(column, 1, s.width, lanes);
        at.offset[q] = q * s.tap_pitch + column;
        at.inside[q] = Simd::mask_range(inside.begin, inside.end);
      }
      at.products = s.products + q0 * s.tap_pitch;
      at.first = q0 == 0;
      kByColumns[count - 1](s, at);
    }
  }
}

}  // namespace
