// SPDX-License-Identifier: MIT
// Calls that need none of what the dispatcher and autograd Functions are made for.
#pragma once

#include <c10/util/ArrayRef.h>

#include "bindings/ops.h"

namespace fastconv::bindings {

// True when nothing watches or changes calls on this thread: no autocast, no torch.func transform,
// no dispatch mode, no tracer.
bool nothing_intervenes();

// True when nothing intervenes and all tensors that are defined are dense, in CPU memory and
// without a tangent.
bool are_plain(at::ArrayRef<Tensor> tensors);

// True when all tensors that are defined have memory, which gradients under vmap (is_grads_batched)
// have not.
bool have_memory(at::ArrayRef<Tensor> tensors);

}  // namespace fastconv::bindings
