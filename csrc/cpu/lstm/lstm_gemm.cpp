// SPDX-License-Identifier: MIT
#include "cpu/lstm/lstm_gemm.h"

#include <algorithm>

#include "common/checked.h"

namespace fastconv::cpu {
namespace {

// Panels of one strip of an outer sum: its results stay in a core's cache while all rows pass.
constexpr int64_t kStripPanels = 8;
// Sources of more floats than this have left a core's own cache when a strip comes to them again.
constexpr int64_t kNearSources = 150'000;

// Longest run of rows that are added up before they are added to the runs before, for sums over so
// many rows. A tile's own kMaxTerms would leave sums over a few steps with one long run, in which
// the large terms of a first step meet every other term; from some hundred rows on it is as good.
int64_t run_of(int64_t rows) {
  return rows <= 128 ? 16 : rows <= 512 ? 32 : LstmSources::kDepth;
}

// Calls body(begin, rows) for nearly equal tiles of at most `most` rows.
template <class Body>
void for_tiles(int64_t rows, int64_t most, Body&& body) {
  const int64_t tiles = ceil_div(rows, most);
  for (int64_t i = 0; i < tiles; ++i) {
    const LstmRange tile = lstm_part(rows, tiles, i);
    body(tile.begin, tile.size());
  }
}

void multiply_panel(const GemmFamily& family, const LstmProduct& product, const float* b,
                    int64_t b_pitch, int64_t depth, int64_t column, int64_t columns) {
  for (int64_t k = 0; k < depth; k += LstmPanels::kDepth) {
    const int64_t part = std::min(LstmPanels::kDepth, depth - k);
    for_tiles(product.rows, family.max_rows, [&](int64_t row, int64_t rows) {
      const GemmTile tile{part,
                          product.a + row * product.a_pitch + k,
                          b + k * b_pitch,
                          b_pitch,
                          product.c + row * product.c_pitch + column,
                          product.c_pitch,
                          columns,
                          nullptr,
                          k > 0,
                          product.a_pitch};
      family.by_rows[rows - 1](tile);
    });
  }
}

// Rows [begin, begin + columns) of the result, at most kStripPanels panels of them.
void outer_sum_strip(const GemmKernels& gemm, const LstmKernels& kernels,
                     const LstmSources& sources, const LstmOuterSum& sum, int64_t begin,
                     int64_t columns, float* scratch) {
  const GemmFamily& family = gemm.packed_tall;
  const int64_t panel = family.vectors * gemm.lanes, pitch = kStripPanels * panel;
  float* transposed = scratch;  // [width, pitch]
  float* panels = scratch + sources.width * pitch;
  // With few tiles a copy of D costs more than it saves, and where the rows of D neither straddle
  // cache lines nor compete for the same L1 sets it saves nothing.
  const bool copies = sources.tiles > 2 && sum.d_pitch != outer_sum_pitch(gemm, sum.columns);
  const bool asks = sources.floats() > kNearSources;
  const int64_t run = run_of(sources.rows);
  for (int64_t block = 0; block < sources.depth_blocks(); ++block) {
    const int64_t depth = sources.depth_of(block);
    const float* d = sum.d + block * LstmSources::kDepth * sum.d_pitch + begin;
    const float* a = sum.sources + block * LstmSources::kDepth * sources.width;
    for (int64_t j = 0; j < columns && copies; j += panel)
      kernels.pack(d + j, sum.d_pitch, depth, std::min(panel, columns - j), panel,
                   panels + j * LstmSources::kDepth, panel);
    for (int64_t i = 0; i < sources.tiles; ++i) {
      const LstmRange rows = sources.tile(i);
      // Each panel asks for a part of the next tile of sources, which is read for the first time.
      const float* soon = a + rows.end * depth;
      const int64_t soon_size =
          asks && i + 1 < sources.tiles ? sources.tile(i + 1).size() * depth : 0;
      for (int64_t j = 0; j < columns; j += panel) {
        for (int64_t l = soon_size * j / columns; l < soon_size * (j + panel) / columns;
             l += kLstmLine)
          __builtin_prefetch(soon + l, 0, 2);
        const float* b = copies ? panels + j * LstmSources::kDepth : d + j;
        const int64_t b_pitch = copies ? panel : sum.d_pitch;
        for (int64_t k = 0; k < depth; k += run)
          family.by_rows[rows.size() - 1](
              {std::min(run, depth - k), a + rows.begin * depth + k * rows.size(), b + k * b_pitch,
               b_pitch, transposed + rows.begin * pitch + j, pitch, panel, nullptr,
               block > 0 || k > 0});
      }
    }
  }
  for (int64_t n = 0; n < sum.count; ++n) {
    const LstmRange part = sum.results[n].sources;
    float* result = sum.results[n].result + begin * part.size();
    for (int64_t i = 0; i < part.size(); i += kernels.lanes) {
      const int64_t valid = std::min(kernels.lanes, part.size() - i);
      kernels.transpose(transposed + (part.begin + i) * pitch, pitch, valid, columns, result + i,
                        part.size(), valid);
    }
  }
}

}  // namespace

LstmPanels::LstmPanels(const GemmKernels& gemm, int64_t depth_, int64_t columns_)
    : depth(depth_),
      columns(columns_),
      wide(gemm.rows_wide.vectors * gemm.lanes),
      narrow(gemm.rows_narrow.vectors * gemm.lanes) {}

void pack_panels(const LstmKernels& kernels, const LstmPanels& panels, LstmRange which,
                 const float* b, bool transposed, float* packed) {
  for (int64_t p = which.begin; p < which.end; ++p) {
    const int64_t column = p * panels.wide, width = panels.width(p);
    const int64_t valid = std::min(width, panels.columns - column);
    float* to = packed + column * panels.depth;
    if (!transposed) {
      kernels.pack(b + column, panels.columns, panels.depth, valid, width, to, width);
      continue;
    }
    for (int64_t l = 0; l < width; l += kernels.lanes)
      kernels.transpose(b + (column + l) * panels.depth, panels.depth,
                        std::clamp<int64_t>(valid - l, 0, kernels.lanes), panels.depth, to + l,
                        width, kernels.lanes);
  }
}

void pack_ragged_panel(const LstmKernels& kernels, const LstmPanels& panels, const float* b,
                       float* packed) {
  const int64_t last = panels.count() - 1;
  if (panels.columns != panels.count() * panels.wide)
    pack_panels(kernels, panels, {last, last + 1}, b, false, packed);
}

void multiply_by_panels(const GemmKernels& gemm, const LstmPanels& panels, LstmRange which,
                        const float* packed, const LstmProduct& product, const float* in_place) {
  const int64_t depth = product.depth > 0 ? product.depth : panels.depth;
  for (int64_t p = which.begin; p < which.end; ++p) {
    const int64_t column = p * panels.wide, width = panels.width(p);
    const GemmFamily& family = width == panels.wide ? gemm.rows_wide : gemm.rows_narrow;
    if (in_place != nullptr && column + panels.wide <= panels.columns) {
      multiply_panel(family, product, in_place + column, panels.columns, depth, column, width);
      continue;
    }
    multiply_panel(family, product, packed + column * panels.depth, width, depth, column,
                   std::min(width, panels.columns - column));
  }
}

void multiply_by_gates(const GemmKernels& gemm, int64_t depth, LstmRange which, const float* packed,
                       const LstmProduct& product) {
  const GemmFamily& family = gemm.rows_wide;
  const int64_t block = 4 * gemm.lanes, width = family.vectors * gemm.lanes;
  for (int64_t b = which.begin; b < which.end; ++b)
    for (int64_t column = 0; column < block; column += width)
      multiply_panel(family, product, packed + b * block * depth + column, block, depth,
                     b * block + column, width);
}

LstmSources::LstmSources(const GemmKernels& gemm, int64_t rows_, int64_t width_)
    : rows(rows_), width(width_), tiles(ceil_div(width_, gemm.packed_tall.max_rows)) {}

int64_t LstmSources::depth_of(int64_t block) const {
  return std::min(kDepth, rows - block * kDepth);
}

void pack_sources(const LstmKernels& kernels, const LstmSources& sources,
                  const LstmSourceRows& rows, float* packed) {
  const int64_t end = rows.row + rows.count;
  for (int64_t row = rows.row; row < end;) {
    const int64_t block = row / LstmSources::kDepth, inside = row % LstmSources::kDepth;
    const int64_t depth = sources.depth_of(block), here = std::min(end - row, depth - inside);
    float* to_block = packed + block * LstmSources::kDepth * sources.width;
    for (int64_t i = 0; i < sources.tiles; ++i) {
      const LstmRange tile = sources.tile(i);
      const int64_t begin = std::max(tile.begin, rows.columns.begin);
      const int64_t columns = std::min(tile.end, rows.columns.end) - begin;
      if (columns <= 0) continue;
      float* to = to_block + tile.begin * depth + inside * tile.size() + begin - tile.begin;
      if (rows.from == nullptr) {
        for (int64_t k = 0; k < here; ++k) std::fill_n(to + k * tile.size(), columns, rows.value);
        continue;
      }
      kernels.pack(rows.from + (row - rows.row) * rows.pitch + begin - rows.columns.begin,
                   rows.pitch, here, columns, columns, to, tile.size());
    }
    row += here;
  }
}

int64_t outer_sum_pitch(const GemmKernels& gemm, int64_t columns) {
  // An odd number of cache lines.
  const int64_t line = std::max<int64_t>(gemm.lanes, 16);
  return (ceil_div(columns, line) | 1) * line;
}

int64_t outer_sum_panels(const GemmKernels& gemm, int64_t columns) {
  return ceil_div(columns, gemm.packed_tall.vectors * gemm.lanes);
}

int64_t outer_sum_scratch(const GemmKernels& gemm, const LstmSources& sources) {
  const int64_t panel = gemm.packed_tall.vectors * gemm.lanes;
  return kStripPanels * panel * (sources.width + LstmSources::kDepth);
}

void outer_sum(const GemmKernels& gemm, const LstmKernels& kernels, const LstmSources& sources,
               const LstmOuterSum& sum, LstmRange which, float* scratch) {
  const int64_t panel = gemm.packed_tall.vectors * gemm.lanes;
  for (int64_t p = which.begin; p < which.end; p += kStripPanels) {
    const int64_t end = std::min({sum.columns, (p + kStripPanels) * panel, which.end * panel});
    outer_sum_strip(gemm, kernels, sources, sum, p * panel, end - p * panel, scratch);
  }
}

int64_t few_rows_scratch(const GemmKernels& gemm) {
  const GemmFamily& family = gemm.packed_tall;
  return LstmFewRows::kMost * (family.vectors * gemm.lanes + family.max_rows + gemm.lanes);
}

void outer_sum_of_few_rows(const GemmKernels& gemm, const LstmKernels& kernels,
                           const LstmFewRows& sum, LstmRange columns, float* scratch) {
  const GemmFamily& family = gemm.packed_tall;
  const int64_t panel = family.vectors * gemm.lanes;
  float* b = scratch;
  float* a = scratch + LstmFewRows::kMost * panel;
  for_tiles(columns.size(), family.max_rows, [&](int64_t begin, int64_t rows) {
    const int64_t j = columns.begin + begin;
    kernels.pack(sum.d + j, sum.d_pitch, sum.rows, rows, rows, a, rows);
    for (int64_t i = 0; i < sum.width; i += panel) {
      const int64_t valid = std::min(panel, sum.width - i);
      // Whole panels are read where they are.
      if (valid < panel) kernels.pack(sum.s + i, sum.s_pitch, sum.rows, valid, panel, b, panel);
      family.by_rows[rows - 1]({sum.rows, a, valid < panel ? b : sum.s + i,
                                valid < panel ? panel : sum.s_pitch, sum.result + j * sum.width + i,
                                sum.width, valid, nullptr, false});
    }
  });
}

void sum_of_few_rows(const GemmKernels& gemm, int64_t rows, const float* d, int64_t d_pitch,
                     LstmRange columns, float* result, float* scratch) {
  const int64_t panel = gemm.packed_tall.vectors * gemm.lanes;
  std::fill_n(scratch, rows, 1.0f);
  for (int64_t j = columns.begin; j < columns.end; j += panel)
    gemm.packed_tall.by_rows[0]({rows, scratch, d + j, d_pitch, result + j, 0,
                                 std::min(panel, columns.end - j), nullptr, false});
}

}  // namespace fastconv::cpu
