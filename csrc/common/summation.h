// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace fastconv {

// Longest run of additions into one register; longer reductions are cut into partial sums. 64 costs
// 2-4 % of the time and keeps the error at torch's level; one unbroken run over the 4608 terms of a
// 512-channel layer was 3x above what the parity rule allows.
inline constexpr int64_t kMaxTerms = 64;

}  // namespace fastconv
