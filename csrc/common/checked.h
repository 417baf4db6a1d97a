// SPDX-License-Identifier: MIT
// int64 size arithmetic that reports overflow instead of wrapping.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace fastconv {

// Stores a * b in *out; returns false when the product does not fit.
inline bool checked_mul(int64_t a, int64_t b, int64_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}

inline bool checked_add(int64_t a, int64_t b, int64_t* out) {
  return !__builtin_add_overflow(a, b, out);
}

// Stores the product of all factors in *out; returns false on overflow.
inline bool checked_product(std::initializer_list<int64_t> factors, int64_t* out) {
  *out = 1;
  for (int64_t factor : factors) {
    if (!checked_mul(*out, factor, out)) return false;
  }
  return true;
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t multiple) {
  return ceil_div(a, multiple) * multiple;
}

}  // namespace fastconv
