// SPDX-License-Identifier: MIT
// What an LSTM needs beside GEMM tiles, one table per instruction set. `lanes` floats make a vector
// and the units of a block; packed gate weights of one block are [depth, 4, lanes].
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// One or more blocks of units for a few rows: all four gates of a unit end in one lane of four
// accumulators, and the cell is finished from there.
//   gates = bias + pre + x * weights_x + h * weights_h
struct LstmCellTile {
  int64_t hidden;     // distance between the gates of a unit, and between rows of c
  int64_t units;      // units that exist in all blocks of this call
  const float* bias;  // [blocks, 4, lanes]
  const float* pre;   // [rows, blocks * 4 * lanes], or nullptr
  int64_t pre_pitch;
  int64_t x_depth;  // 0: no such term
  const float* x;   // [rows, x_depth]
  int64_t x_pitch;
  const float* weights_x;  // [blocks, x_depth, 4, lanes]
  int64_t h_depth;         // 0: no such term
  const float* h;          // [rows, h_depth]
  int64_t h_pitch;
  const float* weights_h;  // [blocks, h_depth, 4, lanes]
  float* c;                // [rows, hidden], replaced in place
  float* out;              // [rows, units], o * tanh(c)
  int64_t out_pitch;
  float* gates;       // [rows, 4, hidden], or nullptr
  float* cells;       // [rows, hidden], or nullptr
  const float* soon;  // `streaming` tiles: h_depth cache lines that the caller reads soon
};

// Floats of a cache line.
inline constexpr int64_t kLstmLine = 16;

using LstmCellFn = void (*)(const LstmCellTile& tile);

// Cell tiles of a number of rows, and how many blocks one call of them computes.
struct LstmCellForm {
  int64_t blocks;
  LstmCellFn several;    // `blocks` blocks
  LstmCellFn one;        // one block
  LstmCellFn streaming;  // one block; brings `soon` nearer while it adds up
};

// The element-wise half of a backward step. All pitches that are not given are 4 * hidden for
// gates and hidden for the others.
struct LstmGateGradients {
  int64_t rows;
  int64_t units;  // columns of this call; the pointers already stand at the first one
  int64_t hidden;
  const float* gates;         // [rows, 4, hidden]
  const float* cells;         // [rows, hidden]
  const float* cells_before;  // [rows, hidden], or nullptr for zeros
  const float* grad_m;        // [rows, units] gradient of o * tanh(c); nullptr: see LstmGradTile
  int64_t grad_m_pitch;
  const float* grad_output;  // added to grad_m, or nullptr
  int64_t grad_output_pitch;
  float* grad_c;      // [rows, hidden], becomes the gradient of the cell state before
  float* grad_gates;  // [rows, 4, hidden], before the activations
  int64_t grad_gates_pitch;
};

// A backward step of some rows and the units of one panel, which is all of gates.units:
//   grad_m = gates.grad_m + later * weights, the former unless it is nullptr; then the gates.
struct LstmGradTile {
  LstmGateGradients gates;
  int64_t depth;
  const float* later;  // [rows, depth] gradients of the gates one step later
  int64_t later_pitch;
  const float* weights;  // [depth, vectors * lanes]
  bool asks;             // what `gates` points at lies far away
};

using LstmGradFn = void (*)(const LstmGradTile& tile);

struct LstmGradForms {
  int64_t max_rows;
  const LstmGradFn* by_rows;  // by_rows[rows - 1]
};

// `valid` <= lanes rows of two matrices times a column each:
//   to[l] = sum over k < x_depth of x_rows[l][k] * x[k] + sum over k < h_depth of h_rows[l][k] *
//   h[k]
struct LstmDots {
  int64_t valid;
  const float* x_rows;  // [valid, x_depth]
  const float* x;
  int64_t x_depth;
  const float* h_rows;  // [valid, h_depth]
  const float* h;
  int64_t h_depth;  // 0: no such term
  float* to;
};

// One row times a matrix as it is:
//   to[j] = sum over k < depth of a[k] * b[k * pitch + j], j < columns.
// Which terms are added first depends on the pitch, so a product may be cut into columns, and on
// `backwards`: from the last row of b to the first, so that of two products in a row the second
// begins with what the first has left in the caches.
struct LstmRowProduct {
  int64_t depth;
  const float* a;
  const float* b;
  int64_t pitch;
  int64_t columns;
  float* to;
  bool backwards;
};

struct LstmKernels {
  int64_t lanes;
  int64_t max_rows;             // rows of the highest cell tile
  const LstmCellForm* by_rows;  // by_rows[rows - 1]
  // Tiles of one narrow block: lanes / 4 units or fewer, whose weights are [depth, 4, lanes / 4]
  // and whose bias is [4, lanes / 4]; such a tile may be higher. 0 rows: there are none.
  int64_t narrow_rows;
  const LstmCellFn* narrow_by_rows;
  LstmGradForms grad_wide;    // for panels as wide as those of GemmKernels::rows_wide
  LstmGradForms grad_narrow;  // and rows_narrow
  void (*gate_gradients)(const LstmGateGradients& call);
  void (*dots)(const LstmDots& dots);
  void (*row_product)(const LstmRowProduct& product);

  // to[k * to_pitch + l] = from[l * from_pitch + k] for k < depth, l < lanes. Rows l >= valid of
  // `from` read as zero; columns l >= stored are not written.
  void (*transpose)(const float* from, int64_t from_pitch, int64_t valid, int64_t depth, float* to,
                    int64_t to_pitch, int64_t stored);
  // to[k * to_pitch + l] = from[k * pitch + l] for k < depth, l < width; l >= valid gives zero.
  void (*pack)(const float* from, int64_t pitch, int64_t depth, int64_t valid, int64_t width,
               float* to, int64_t to_pitch);
  // m[r * hidden + u] = o * tanh(c), from what the forward pass saved.
  void (*cell_outputs)(const float* gates, const float* cells, int64_t rows, int64_t hidden,
                       float* m);
};

extern const LstmKernels kLstmKernelsScalar;
extern const LstmKernels kLstmKernelsAvx2;
extern const LstmKernels kLstmKernelsAvx512;

}  // namespace fastconv::cpu
