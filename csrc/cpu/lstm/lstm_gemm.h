// SPDX-License-Identifier: MIT
// The matrix products of an LSTM on GEMM tiles. Each is cut into pieces that any thread may
// compute: an element of the result is always the same sum in the same order.
#pragma once

#include <cstdint>

#include "cpu/gemm/gemm.h"
#include "cpu/lstm/lstm.h"
#include "cpu/lstm/lstm_split.h"
#include "cpu/lstm/lstm_ukernels.h"

namespace fastconv::cpu {

// --- C = A * B with the rows of A in place and B packed into panels ----------------------------

// B [depth, columns] as panels of `wide` columns; the last one is `narrow` when that is enough.
struct LstmPanels {
  LstmPanels(const GemmKernels& gemm, int64_t depth, int64_t columns);
  int64_t depth;
  int64_t columns;
  int64_t wide;
  int64_t narrow;
  int64_t count() const { return (columns + wide - 1) / wide; }
  // Terms of a sum that are added up at once: as many rows of a panel stay in a core's own cache.
  static constexpr int64_t kDepth = 512;
  int64_t width(int64_t panel) const { return columns - panel * wide <= narrow ? narrow : wide; }
  int64_t floats() const { return count() * wide * depth; }
};

// Packs the last panel only when it is not whole; the others can be read from B as it is.
void pack_ragged_panel(const LstmKernels& kernels, const LstmPanels& panels, const float* b,
                       float* packed);

// Packs panels [which] of B, given as it is (rows of `columns` floats) or transposed.
void pack_panels(const LstmKernels& kernels, const LstmPanels& panels, LstmRange which,
                 const float* b, bool transposed, float* packed);

struct LstmProduct {
  const float* a;  // [rows, depth], rows a_pitch apart
  int64_t a_pitch;
  int64_t rows;
  float* c;  // [rows, columns], rows c_pitch apart; replaced
  int64_t c_pitch;
  int64_t depth = 0;  // only the first terms of the sums; 0: all
};

// The columns of panels [which]. With `in_place`, whole panels are read from B as it is.
void multiply_by_panels(const GemmKernels& gemm, const LstmPanels& panels, LstmRange which,
                        const float* packed, const LstmProduct& product,
                        const float* in_place = nullptr);

// C = A * W^T for gate weights packed as cells read them, [blocks, depth, 4, lanes]; c has
// blocks * 4 * lanes columns of which those of blocks [which] are computed.
void multiply_by_gates(const GemmKernels& gemm, int64_t depth, LstmRange which, const float* packed,
                       const LstmProduct& product);

// --- G = D^T * S, sums over all rows: gradients of weights -------------------------------------

// The rows of S, kDepth at a time, packed for tiles that broadcast them.
struct LstmSources {
  static constexpr int64_t kDepth = 256;
  LstmSources(const GemmKernels& gemm, int64_t rows, int64_t width);
  int64_t rows;
  int64_t width;  // columns of S
  int64_t tiles;  // tiles next to each other
  LstmRange tile(int64_t index) const { return lstm_part(width, tiles, index); }
  int64_t depth_blocks() const { return (rows + kDepth - 1) / kDepth; }
  int64_t depth_of(int64_t block) const;
  int64_t floats() const { return rows * width; }
};

// Some neighbouring rows of S, and some of its columns.
struct LstmSourceRows {
  int64_t row;
  int64_t count;
  LstmRange columns;
  const float* from;  // [count, columns], rows `pitch` apart; nullptr: `value` everywhere
  int64_t pitch;
  float value;
};

void pack_sources(const LstmKernels& kernels, const LstmSources& sources,
                  const LstmSourceRows& rows, float* packed);

// Where a run of columns of S leaves its part of the result.
struct LstmResult {
  LstmRange sources;  // columns of S
  float* result;      // [columns of D, sources.size()]
};

struct LstmOuterSum {
  const float* d;  // [rows, columns], rows d_pitch apart; 2 vectors past its end are readable
  int64_t d_pitch;
  int64_t columns;
  const float* sources;  // packed
  LstmResult results[3];
  int64_t count;  // of the results
};

// The same for a few rows, from S as it is: results [begin, end) of `columns` columns of D.
struct LstmFewRows {
  static constexpr int64_t kMost = 64;
  int64_t rows;  // at most kMost
  const float* d;
  int64_t d_pitch;
  const float* s;  // [rows, width], rows s_pitch apart
  int64_t s_pitch;
  int64_t width;
  float* result;  // [columns of D, width]
};
int64_t few_rows_scratch(const GemmKernels& gemm);
void outer_sum_of_few_rows(const GemmKernels& gemm, const LstmKernels& kernels,
                           const LstmFewRows& sum, LstmRange columns, float* scratch);
// Those of the rows `columns` of the gradients that `call` asks for; its gate gradients have rows
// `pitch` apart.
void lstm_weight_sums_of_few_rows(const GemmKernels& gemm, const LstmKernels& kernels,
                                  const LstmWeightSums& call, int64_t pitch, LstmRange columns,
                                  float* scratch);
// result[j] = sum over r < rows of d[r * d_pitch + j], j in [columns].
void sum_of_few_rows(const GemmKernels& gemm, int64_t rows, const float* d, int64_t d_pitch,
                     LstmRange columns, float* result, float* scratch);

// The pitch of a matrix of so many columns that outer_sum reads fastest.
int64_t outer_sum_pitch(const GemmKernels& gemm, int64_t columns);
// Columns are cut into panels; this computes those rows of the result that belong to panels
// [which].
int64_t outer_sum_panels(const GemmKernels& gemm, int64_t columns);
int64_t outer_sum_scratch(const GemmKernels& gemm, const LstmSources& sources);
void outer_sum(const GemmKernels& gemm, const LstmKernels& kernels, const LstmSources& sources,
               const LstmOuterSum& sum, LstmRange which, float* scratch);

}  // namespace fastconv::cpu
