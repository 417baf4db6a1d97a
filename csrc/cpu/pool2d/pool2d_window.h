// SPDX-License-Identifier: MIT
// Where a pooling window lies along one dimension. Internal linkage: microkernels include this too.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
constexpr int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t clamp_to(int64_t x, int64_t low, int64_t high) {
  return min_of(max_of(x, low), high);
}

// Taps [begin, end) of a window that starts at `origin` lie inside [0, size). `begin` is the first
// tap at or after position 0 even if none lies inside.
struct TapRange {
  int64_t begin;
  int64_t end;
};

inline TapRange taps_inside(int64_t origin, int64_t dilation, int64_t kernel, int64_t size) {
  if (dilation == 1) return {max_of(-origin, 0), min_of(size - origin, kernel)};
  const int64_t begin = origin < 0 ? (-origin + dilation - 1) / dilation : 0;
  const int64_t end = origin >= size ? 0 : (size - origin + dilation - 1) / dilation;
  return {begin, min_of(end, kernel)};
}

// Windows [begin, end) of `windows` that have a tap at `position` (dilation 1); padded is
// position + padding.
inline TapRange windows_over(int64_t padded, int64_t kernel, int64_t stride, int64_t windows) {
  const int64_t begin = padded < kernel ? 0 : (padded - kernel) / stride + 1;
  return {begin, min_of(padded / stride + 1, windows)};
}

// Elements an average counts along one dimension: the window's extent cut at the end of the
// padding, or the taps inside the input.
inline int64_t counted_taps(int64_t origin, int64_t kernel, int64_t size, int64_t padding,
                            bool count_include_pad) {
  if (count_include_pad) return min_of(kernel, size + padding - origin);
  const TapRange taps = taps_inside(origin, 1, kernel, size);
  return taps.end - taps.begin;
}

}  // namespace
