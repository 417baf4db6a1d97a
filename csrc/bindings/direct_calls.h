// SPDX-License-Identifier: MIT
// Calls of operators from Python that skip torch's general argument parser.
#pragma once

#include <pybind11/pybind11.h>

namespace fastconv::bindings {

// Adds the functions conv2d, conv_block2d, mlp, lstm_layer and lstm_cell to the module: as
// torch.ops.fastconv.*, all arguments by position, through the same dispatcher, but three
// microseconds faster; and lstm, which is what nn.LSTM does with a batch. They return
// NotImplemented for anything but plain tensors, integers, tuples and names (subclasses, proxies,
// modes of __torch_function__), which is then the operator's to serve or to refuse.
void bind_direct_calls(pybind11::module_& m);

}  // namespace fastconv::bindings
