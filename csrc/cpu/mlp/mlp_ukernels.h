// SPDX-License-Identifier: MIT
// What the fully connected layers need from an ISA.
#pragma once

#include <cstdint>

#include "cpu/runtime/isa.h"

namespace fastconv::cpu {

// A register tile whose first factor may lie in memory either way round:
//   c[i * c_pitch + j] = init + sum_k a[i * a_row + k * a_depth] * b[k * b_pitch + j]
// for j < columns, where init is row_init[i], or what c holds (accumulate), or zero. Reads and
// writes the first `columns` only. Long reductions are cut, see common/summation.h.
struct MatrixTile {
  int64_t depth;  // at least 1
  const float* a;
  int64_t a_row;
  int64_t a_depth;
  const float* b;
  int64_t b_pitch;
  float* c;
  int64_t c_pitch;
  int64_t columns;        // 1 .. vectors * lanes
  const float* row_init;  // or nullptr
  bool accumulate;
};

// out[o] = activation(init[o] + sum_k weight[o * depth + k] * x[k]); init may be nullptr.
struct VectorProduct {
  int64_t depth;
  int64_t rows;
  const float* weight;
  const float* x;
  const float* init;
  float slope;
  float* out;
};

// x[i] = activation(x[i]).
struct Activate {
  int64_t count;
  float slope;
  float* x;
};

// grad[i] *= activation'(where the activation gave output[i]).
struct ScaleByDerivative {
  int64_t count;
  float slope;
  const float* output;
  float* grad;
};

// sums[j] = sum_i x[i * columns + j].
struct ColumnSums {
  int64_t rows;
  int64_t columns;
  const float* x;
  float* sums;
};

// target[j * target_pitch + i] = source[i * source_pitch + j].
struct Transpose {
  int64_t rows;
  int64_t columns;
  const float* source;
  int64_t source_pitch;
  float* target;
  int64_t target_pitch;
};

using MatrixTileFn = void (*)(const MatrixTile&);

struct MlpKernels {
  int64_t lanes;
  int64_t vectors;
  int64_t max_rows;
  const MatrixTileFn* whole;  // [rows - 1], all vectors full
  const MatrixTileFn* part;   // [rows - 1], any number of columns
  void (*vector_product[5])(const VectorProduct&);
  void (*activate[5])(const Activate&);
  void (*scale[5])(const ScaleByDerivative&);
  void (*column_sums)(const ColumnSums&);
  void (*transpose)(const Transpose&);
};

extern const MlpKernels kMlpKernelsScalar;
extern const MlpKernels kMlpKernelsAvx2;
extern const MlpKernels kMlpKernelsAvx512;

inline const MlpKernels& mlp_kernels(Isa isa) {
  return isa == Isa::kAvx512 ? kMlpKernelsAvx512
         : isa == Isa::kAvx2 ? kMlpKernelsAvx2
                             : kMlpKernelsScalar;
}

}  // namespace fastconv::cpu
