// SPDX-License-Identifier: MIT
// Register-tile microkernels: the block every matrix-shaped loop of fastconv stands on.
//
//   C[i][j] (+)= sum_k A[i][k] * B[k][j]      i < rows, j < vectors * lanes, k < depth
//
// B is always read in whole vectors; A one broadcast element at a time. Three ways to hold A:
//   packed   a[k * rows + i]                 weights, packed once per call
//   panel    a[i * kPanelPitch + k]          rows of an im2col panel, read along the pixels
//   rows     a[i * a_pitch + k]              rows of a matrix as the caller has it
// The accumulators of a tile stay in registers for kMaxTerms (common/summation.h) terms and are
// then added to C: partial sums keep the rounding error of a long reduction near that of a short
// one.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// Row pitch in floats of the panels that "panel" kernels read. A compile-time constant, so that all
// row addresses fold into displacements; 16 more than a power of two, so that the rows of a tile
// do not compete for the same L1 sets.
inline constexpr int64_t kPanelPitch = 256 + 16;

// One call of a microkernel. C must not overlap A or B. Pointers need no alignment, but a tile
// whose rows of B or C straddle cache lines loses up to a tenth of its speed. How close each tile
// comes to the machine's peak is what csrc/tests/bench_gemm.cpp measures.
struct GemmTile {
  int64_t depth;          // k, may be 0
  const float* a;         // packed, panel or rows, see above
  const float* b;         // [depth, b_pitch], `vectors * lanes` readable floats per row
  int64_t b_pitch;        // elements between rows of B
  float* c;               // [rows, c_pitch]
  int64_t c_pitch;        // elements between rows of C
  int64_t columns;        // columns of C that exist, 1 .. vectors * lanes; the rest is not written
  const float* row_init;  // initial value per row [rows] (a bias), or nullptr for zero
  bool accumulate;        // true: the sum is added to C, row_init is ignored
  int64_t a_pitch = 0;    // elements between rows of A, for the form "rows"
};

using GemmTileFn = void (*)(const GemmTile& tile);

inline constexpr int kMaxTileVectors = 4;

// Where B comes from when its columns are neighbours in at most two places per vector: lanes
// [0, split) of vector v at low[v] + k * pitch + lane, lanes [split, end) at high[v] + k * pitch +
// lane, the rest zero. `copy` receives B packed, vectors * lanes floats per row, for other tiles.
struct GemmColumnSource {
  const float* low[kMaxTileVectors];
  const float* high[kMaxTileVectors];
  int64_t split[kMaxTileVectors];
  int64_t end[kMaxTileVectors];
  int64_t pitch;
  float* copy;
};

// As the tile of the same size in packed form, but for B: `b` and `b_pitch` are ignored.
using GemmCopyTileFn = void (*)(const GemmTile& tile, const GemmColumnSource& source);

// One family of tiles: `vectors` vectors wide, 1 .. max_rows rows high.
struct GemmFamily {
  int64_t vectors;
  int64_t max_rows;
  const GemmTileFn* by_rows;                // by_rows[rows - 1]
  const GemmCopyTileFn* copying = nullptr;  // packed families only: copying[rows - 1]
};

// The two forms below take their operands from where they lie: matrices whose rows are the channels
// of a pixel (channels_last) or the features of a sample. B is packed, `vectors * lanes` floats per
// row, and the sum runs over several blocks of A and B (batch-reduce): the taps of a kernel, the
// rows of an image.

//   C[i][c_offset + j] = column_init[j] + sum_{s, k} a[s * rows + i][k] * b[b_offsets[s] + k][j]
// for s < segments, k < depth. Rows may be any pointers; only `columns` columns of C are written.
struct GemmRowsTile {
  int64_t segments;          // may be 0
  int64_t depth;             // floats read at each pointer of A
  const float* const* a;     // [segments, rows]
  const float* b;            // packed
  const int64_t* b_offsets;  // [segments], in rows of B
  float* const* c;           // [rows]
  int64_t c_offset;          // added to each pointer of C
  int64_t columns;           // 1 .. vectors * lanes
  const float* column_init;  // [columns] or nullptr for zero
  bool accumulate;           // true: the sum is added to C, column_init is ignored
};

using GemmRowsFn = void (*)(const GemmRowsTile& tile);

// A run of neighbouring rows of A and B: offsets in floats of A, in rows of B.
struct GemmRun {
  int64_t a;
  int64_t b;
  int64_t depth;
};

//   C[i][j] (+)= sum_{runs, k} a[run.a + k * a_step + i] * b[run.b + k][j]
// C has `vectors * lanes` columns. The product of a transposed matrix: weight gradients.
struct GemmColumnsTile {
  const GemmRun* runs;
  int64_t run_count;
  const float* a;
  int64_t a_step;
  const float* b;  // packed
  float* c;
  int64_t c_pitch;
  bool accumulate;  // true: the sum is added to C
};

using GemmColumnsFn = void (*)(const GemmColumnsTile& tile);

// The tiles of both forms, 1 .. max_rows rows high.
struct GemmPlaceFamily {
  int64_t vectors;
  int64_t max_rows;
  const GemmRowsFn* rows;        // rows[rows - 1]
  const GemmColumnsFn* columns;  // columns[rows - 1]
};

struct GemmKernels {
  int64_t lanes;                 // floats per vector
  GemmFamily packed_tall;        // many rows of A: the default
  GemmFamily packed_wide;        // few rows of A (at most max_rows in all): more columns instead
  GemmFamily panel_wide;         // B at least two vectors wide
  GemmFamily panel_narrow;       // B one vector wide: more rows instead
  GemmPlaceFamily place_wide;    // B two vectors wide
  GemmPlaceFamily place_narrow;  // one
  GemmFamily rows_wide;          // the default for A in rows
  GemmFamily rows_narrow;        // half as wide, twice as high
};

const GemmKernels& gemm_kernels(Isa isa);

}  // namespace fastconv::cpu
