// SPDX-License-Identifier: MIT
// The LSTM layer as plain loops: what float64 runs on, and what the kernels are tested against.
#pragma once

#include "cpu/lstm/lstm.h"

namespace fastconv::cpu {

void lstm_forward_reference(const LstmForward<float>& call);
void lstm_forward_reference(const LstmForward<double>& call);

// `scratch` holds lstm_backward_reference_scratch(shape) elements.
int64_t lstm_backward_reference_scratch(const LstmShape& shape);
void lstm_backward_reference(const LstmBackward<float>& call, float* scratch);
void lstm_backward_reference(const LstmBackward<double>& call, double* scratch);

}  // namespace fastconv::cpu
