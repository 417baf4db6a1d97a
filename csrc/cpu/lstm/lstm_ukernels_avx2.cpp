// SPDX-License-Identifier: MIT
// LSTM microkernels for avx2. Three rows of four gates keep twelve of sixteen registers as
// accumulators.
#include "cpu/simd/simd_avx2.h"

#include "cpu/simd/simd_math_impl.h"

#include "cpu/lstm/lstm_ukernels.h"
#include "cpu/lstm/lstm_ukernels_impl.h"

#include "cpu/lstm/lstm_grad_ukernels_impl.h"

namespace fastconv::cpu {
namespace {

constexpr LstmCellForm kForms[] = {
    cell_form<1, 2>(),
    cell_form<2, 1>(),
    cell_form<3, 1>(),
};

constexpr int kNarrowRows = 6;
constexpr auto kNarrow = NarrowTiles<std::make_integer_sequence<int, kNarrowRows>>::kByRows;

}  // namespace

const LstmKernels kLstmKernelsAvx2 = {
    kLanes,
    3,
    kForms,
    kNarrowRows,
    kNarrow,
    grad_forms<6, 2>(),
    grad_forms<12, 1>(),
    &gate_gradients,
    &dots,
    &row_product<8>,
    &transpose_strip,
    &pack_rows,
    &cell_outputs,
};

}  // namespace fastconv::cpu
