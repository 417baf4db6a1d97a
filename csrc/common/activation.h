// SPDX-License-Identifier: MIT
#pragma once

namespace fastconv {

// Kernel tables by activation are in this order.
enum class Activation : int { kNone, kRelu, kLeakyRelu, kSigmoid, kTanh };

inline constexpr int kActivations = 5;

}  // namespace fastconv
