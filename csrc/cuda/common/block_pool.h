// SPDX-License-Identifier: MIT
// The pooling that a convolution's kernels can do before they store their results.
#pragma once

namespace fastconv::cuda {

enum class BlockPool : int { kNone, kMax, kAvg };

}  // namespace fastconv::cuda
