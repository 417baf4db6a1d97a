// SPDX-License-Identifier: MIT
// LSTM microkernels for scalar. Two rows fill the sixteen SSE registers.
#include "cpu/simd/simd_scalar.h"

#include "cpu/simd/simd_math_impl.h"

#include "cpu/lstm/lstm_ukernels.h"
#include "cpu/lstm/lstm_ukernels_impl.h"

#include "cpu/lstm/lstm_grad_ukernels_impl.h"

namespace fastconv::cpu {
namespace {

constexpr LstmCellForm kForms[] = {
    cell_form<1, 2>(),
    cell_form<2, 1>(),
};

}  // namespace

const LstmKernels kLstmKernelsScalar = {
    kLanes,
    2,
    kForms,
    0,
    nullptr,
    grad_forms<4, 2>(),
    grad_forms<4, 1>(),
    &gate_gradients,
    &dots,
    &row_product<8>,
    &transpose_strip,
    &pack_rows,
    &cell_outputs,
};

}  // namespace fastconv::cpu
