// SPDX-License-Identifier: MIT
// LSTM microkernels for avx512. Six rows of four gates keep 24 of 32 registers as accumulators;
// fewer rows take two blocks at once, so that enough multiply-adds are independent of each other.
#include "cpu/simd/simd_avx512.h"

#include "cpu/simd/simd_math_impl.h"

#include "cpu/lstm/lstm_ukernels.h"
#include "cpu/lstm/lstm_ukernels_impl.h"

#include "cpu/lstm/lstm_grad_ukernels_impl.h"

namespace fastconv::cpu {
namespace {

constexpr LstmCellForm kForms[] = {
    cell_form<1, 2>(), cell_form<2, 2>(), cell_form<3, 2>(),
    cell_form<4, 1>(), cell_form<5, 1>(), cell_form<6, 1>(),
};

constexpr int kNarrowRows = 12;
constexpr auto kNarrow = NarrowTiles<std::make_integer_sequence<int, kNarrowRows>>::kByRows;

}  // namespace

const LstmKernels kLstmKernelsAvx512 = {
    kLanes,
    6,
    kForms,
    kNarrowRows,
    kNarrow,
    grad_forms<6, 4>(),
    grad_forms<12, 2>(),
    &gate_gradients,
    &dots,
    &row_product<16>,
    &transpose_strip,
    &pack_rows,
    &cell_outputs,
};

}  // namespace fastconv::cpu
