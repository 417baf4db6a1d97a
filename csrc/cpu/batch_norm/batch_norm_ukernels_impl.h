// SPDX-License-Identifier: MIT
// The batch normalisation kernels, written once over Simd; instantiated by
// batch_norm_ukernels_<isa>.cpp. Internal linkage throughout, see gemm_ukernels_impl.h.
//
// Moments of a block are taken in two passes over memory that the first one brings into L1: its
// mean, then the deviations from it, whose own sum makes up for the mean's rounding.
#pragma once

#include <cstdint>

#include "common/summation.h"
#include "cpu/batch_norm/batch_norm_ukernels.h"

namespace {

using fastconv::kMaxTerms;
using fastconv::cpu::BatchNormKernels;
using fastconv::cpu::NormCoefficients;
using fastconv::cpu::NormPlanes;
using fastconv::cpu::NormRows;

constexpr int64_t kLanes = Simd::kLanes;
constexpr int kSums = 4;  // accumulators that hide the latency of an addition

inline int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// A vector of which all lanes count, and one of which only those of a mask do.
struct Whole {
  Simd::Reg load(const float* p) const { return Simd::load(p); }
  void store(float* p, Simd::Reg x) const { Simd::store(p, x); }
  Simd::Reg only(Simd::Reg x) const { return x; }
};
struct Part {
  Simd::Mask mask;
  Simd::Reg load(const float* p) const { return Simd::load_masked(p, mask); }
  void store(float* p, Simd::Reg x) const { Simd::store_masked(p, x, mask); }
  Simd::Reg only(Simd::Reg x) const { return Simd::select(mask, x, Simd::zero()); }
};

// Calls step(u, at, part) for all vectors of a run of floats, with u < kSums changing from one
// vector to the next.
template <class Step>
[[gnu::always_inline]] inline void sweep(int64_t count, const Step& step) {
  int64_t at = 0;
  for (; at + kSums * kLanes <= count; at += kSums * kLanes) {
    step(0, at, Whole());
    step(1, at + kLanes, Whole());
    step(2, at + 2 * kLanes, Whole());
    step(3, at + 3 * kLanes, Whole());
  }
  if (at + 2 * kLanes <= count) {
    step(0, at, Whole());
    step(1, at + kLanes, Whole());
    at += 2 * kLanes;
  }
  if (at + kLanes <= count) {
    step(2, at, Whole());
    at += kLanes;
  }
  if (at < count) step(3, at, Part{Simd::mask_first(count - at)});
}

struct Sums {
  Simd::Reg part[kSums] = {Simd::zero(), Simd::zero(), Simd::zero(), Simd::zero()};
  float total() const {
    return Simd::reduce_add(Simd::add(Simd::add(part[0], part[1]), Simd::add(part[2], part[3])));
  }
};

// max returns its second operand for NaN, which relu keeps.
template <bool Relu>
[[gnu::always_inline]] inline Simd::Reg activated(Simd::Reg y) {
  return Relu ? Simd::max(Simd::zero(), y) : y;
}

// The gradient before a relu: zero where its result was.
template <bool Relu>
[[gnu::always_inline]] inline Simd::Reg unactivated(Simd::Reg grad, Simd::Reg deviation,
                                                    Simd::Reg scale, Simd::Reg shift) {
  if constexpr (!Relu) return grad;
  const auto y = Simd::fma(deviation, scale, shift);
  return Simd::select(Simd::positive_or_nan(y), grad, Simd::zero());
}

// --- Planes --------------------------------------------------------------------------------------

// Values per block: 16 to each lane of each accumulator.
constexpr int64_t kBlock = 16 * kSums * kLanes;

// Calls body(offset, images, pixels) for blocks of at most kBlock values: parts of one large image,
// or several small ones.
template <class Body>
[[gnu::always_inline]] inline void for_blocks(const NormPlanes& place, const Body& body) {
  const int64_t group = place.pixels >= kBlock ? 1 : kBlock / place.pixels;
  for (int64_t n = 0; n < place.images; n += group)
    for (int64_t p = 0; p < place.pixels; p += kBlock)
      body(n * place.image_stride + p, min_of(group, place.images - n),
           min_of(kBlock, place.pixels - p));
}

// sweep_block for pixels that fit in `Vectors` vectors and no fewer.
template <int Vectors, class Step>
[[gnu::always_inline]] inline void sweep_small(int64_t images, int64_t image_stride, int64_t pixels,
                                               const Step& step) {
  constexpr int kLast = Vectors - 1;
  const Part last{Simd::mask_first(pixels - kLast * kLanes)};
  for (int64_t n = 0; n < images; ++n) {
    const int64_t at = n * image_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kLast; ++v) step(v % kSums, at + v * kLanes, Whole());
    step(kLast % kSums, at + kLast * kLanes, last);
  }
}

// Calls step(u, position, part) for all vectors of a block.
template <class Step>
[[gnu::always_inline]] inline void sweep_block(int64_t images, int64_t image_stride, int64_t pixels,
                                               const Step& step) {
  if (pixels <= kLanes) return sweep_small<1>(images, image_stride, pixels, step);
  if (pixels <= 2 * kLanes) return sweep_small<2>(images, image_stride, pixels, step);
  if (pixels <= 3 * kLanes) return sweep_small<3>(images, image_stride, pixels, step);
  if (pixels <= 4 * kLanes) return sweep_small<4>(images, image_stride, pixels, step);
  for (int64_t n = 0; n < images; ++n)
    sweep(pixels, [&](int u, int64_t p, auto part)
                      __attribute__((always_inline)) { step(u, n * image_stride + p, part); });
}

void moments_of_planes(const NormPlanes& place, const float* input, const float* center,
                       double* sum, double* squares) {
  double total = 0, total_squares = 0;
  for_blocks(place, [&](int64_t offset, int64_t images, int64_t pixels) {
    const float* x = input + offset;
    Sums values;
    sweep_block(images, place.image_stride, pixels,
                [&](int u, int64_t p, auto part) __attribute__((always_inline)) {
                  values.part[u] = Simd::add(values.part[u], part.load(x + p));
                });
    const auto count = static_cast<double>(images * pixels);
    const float mean = values.total() / static_cast<float>(images * pixels);
    const auto mean_vector = Simd::set1(mean);
    Sums deviations, deviations_squared;
    sweep_block(images, place.image_stride, pixels,
                [&](int u, int64_t p, auto part) __attribute__((always_inline)) {
                  const auto d = part.only(Simd::sub(part.load(x + p), mean_vector));
                  deviations.part[u] = Simd::add(deviations.part[u], d);
                  deviations_squared.part[u] = Simd::fma(d, d, deviations_squared.part[u]);
                });
    const double rest = deviations.total(), distance = static_cast<double>(mean) - *center;
    total += count * distance + rest;
    total_squares += deviations_squared.total() + distance * (2 * rest + count * distance);
  });
  *sum += total;
  *squares += total_squares;
}

// Calls body(offset, channel) for all planes, in the order of memory: with strides of whole pages
// from one image to the next, loads would seem to wait for the stores of the image before.
template <class Body>
[[gnu::always_inline]] inline void for_planes(const NormPlanes& place, const Body& body) {
  for (int64_t n = 0; n < place.images; ++n)
    for (int64_t c = 0; c < place.channels; ++c) body(n * place.image_stride + c * place.pixels, c);
}

template <bool Relu>
void normalize_planes(const NormPlanes& place, const NormCoefficients& k, const float* input,
                      float* output) {
  for_planes(place, [&](int64_t at, int64_t c) __attribute__((always_inline)) {
    const auto mean = Simd::set1(k.mean[c]), scale = Simd::set1(k.scale[c]);
    const auto shift = Simd::set1(k.shift[c]);
    const float* x = input + at;
    float* y = output + at;
    sweep_block(1, 0, place.pixels,
                [&](int /*u*/, int64_t p, auto part) __attribute__((always_inline)) {
                  const auto d = Simd::sub(part.load(x + p), mean);
                  part.store(y + p, activated<Relu>(Simd::fma(d, scale, shift)));
                });
  });
}

template <bool Relu>
void grad_sums_of_planes(const NormPlanes& place, const NormCoefficients& k, const float* input,
                         const float* grad_output, double* sum, double* dot) {
  const auto mean = Simd::set1(*k.mean), scale = Simd::set1(*k.scale), shift = Simd::set1(*k.shift);
  double total = 0, total_dot = 0;
  for_blocks(place, [&](int64_t offset, int64_t images, int64_t pixels) {
    const float *x = input + offset, *go = grad_output + offset;
    Sums grads, products;
    sweep_block(images, place.image_stride, pixels,
                [&](int u, int64_t p, auto part) __attribute__((always_inline)) {
                  const auto d = part.only(Simd::sub(part.load(x + p), mean));
                  const auto g = unactivated<Relu>(part.load(go + p), d, scale, shift);
                  grads.part[u] = Simd::add(grads.part[u], g);
                  products.part[u] = Simd::fma(g, d, products.part[u]);
                });
    total += grads.total();
    total_dot += products.total();
  });
  *sum += total;
  *dot += total_dot;
}

template <bool Relu, bool Centered>
void grad_input_of_planes(const NormPlanes& place, const NormCoefficients& k, const float* input,
                          const float* grad_output, float* grad_input) {
  for_planes(place, [&](int64_t at, int64_t c) __attribute__((always_inline)) {
    const auto mean = Simd::set1(k.mean[c]), scale = Simd::set1(k.scale[c]);
    const auto shift = Simd::set1(k.shift[c]);
    const auto slope = Simd::set1(Centered ? k.slope[c] : 0.0f);
    const auto offset = Simd::set1(Centered ? k.offset[c] : 0.0f);
    const float *x = input + at, *go = grad_output + at;
    float* gi = grad_input + at;
    sweep_block(1, 0, place.pixels,
                [&](int /*u*/, int64_t p, auto part) __attribute__((always_inline)) {
                  auto g = part.load(go + p);
                  auto d = Simd::zero();
                  if constexpr (Relu || Centered) d = Simd::sub(part.load(x + p), mean);
                  g = unactivated<Relu>(g, d, scale, shift);
                  part.store(gi + p, Centered ? Simd::fma(g, scale, Simd::fma(d, slope, offset))
                                              : Simd::mul(g, scale));
                });
  });
}

// --- Rows ----------------------------------------------------------------------------------------

// Rows whose sums stay in registers, for up to kVectors vectors of channels at a time.
constexpr int64_t kBlockRows = 256;
constexpr int kVectors = 4;

// Vectors of neighbouring channels, of which the last may be a part.
template <int Vectors, class Part>
struct Columns {
  static constexpr int kCount = Vectors;
  int64_t first;
  Part part;
};

// Calls body(columns) for all channels.
template <class Body>
[[gnu::always_inline]] inline void for_columns(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kVectors * kLanes <= channels; c += kVectors * kLanes)
    body(Columns<kVectors, Whole>{c, {}});
  for (; c + kLanes <= channels; c += kLanes) body(Columns<1, Whole>{c, {}});
  if (c < channels) body(Columns<1, Part>{c, {Simd::mask_first(channels - c)}});
}

// Calls body(first row, rows) for blocks of at most kBlockRows.
template <class Body>
[[gnu::always_inline]] inline void for_row_blocks(int64_t rows, const Body& body) {
  for (int64_t r = 0; r < rows; r += kBlockRows) body(r, min_of(kBlockRows, rows - r));
}

// One sum per channel, in runs of kMaxTerms additions.
template <int Vectors>
struct ColumnSums {
  Simd::Reg sum[Vectors], run[Vectors];

  [[gnu::always_inline]] inline void clear() {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[v] = run[v] = Simd::zero();
  }
  [[gnu::always_inline]] inline void end_run() {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      sum[v] = Simd::add(sum[v], run[v]);
      run[v] = Simd::zero();
    }
  }
};

// Calls step(row) for all rows and end_run() after each kMaxTerms of them.
template <class Step, class End>
[[gnu::always_inline]] inline void for_runs(int64_t rows, const Step& step, const End& end_run) {
  for (int64_t first = 0; first < rows; first += kMaxTerms) {
    const int64_t end = min_of(first + kMaxTerms, rows);
    for (int64_t r = first; r < end; ++r) step(r);
    end_run();
  }
}

// Values of up to kVectors vectors of channels, in memory.
using ColumnValues = float[kVectors * kLanes];

template <class C>
[[gnu::always_inline]] inline void moments_of_columns(const C& columns, int64_t rows,
                                                      int64_t channels, const float* x,
                                                      const float* center, double* sum,
                                                      double* squares) {
  constexpr int kCount = C::kCount;
  const auto part = columns.part;
  ColumnSums<kCount> values, deviations, deviations_squared;
  values.clear();
  for_runs(
      rows,
      [&](int64_t r) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v)
          values.run[v] = Simd::add(values.run[v], part.load(x + r * channels + v * kLanes));
      },
      [&]() __attribute__((always_inline)) { values.end_run(); });
  Simd::Reg mean[kCount];
  const auto factor = Simd::set1(1.0f / static_cast<float>(rows));
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) mean[v] = Simd::mul(values.sum[v], factor);
  deviations.clear();
  deviations_squared.clear();
  for_runs(
      rows,
      [&](int64_t r) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          const auto d = Simd::sub(part.load(x + r * channels + v * kLanes), mean[v]);
          deviations.run[v] = Simd::add(deviations.run[v], d);
          deviations_squared.run[v] = Simd::fma(d, d, deviations_squared.run[v]);
        }
      },
      [&]() __attribute__((always_inline)) {
        deviations.end_run();
        deviations_squared.end_run();
      });
  ColumnValues means, rests, rests_squared;
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    Simd::store(means + v * kLanes, mean[v]);
    Simd::store(rests + v * kLanes, deviations.sum[v]);
    Simd::store(rests_squared + v * kLanes, deviations_squared.sum[v]);
  }
  const auto count = static_cast<double>(rows);
  const int64_t width = min_of(kCount * kLanes, channels - columns.first);
  for (int64_t l = 0; l < width; ++l) {
    const double rest = rests[l], distance = static_cast<double>(means[l]) - center[l];
    sum[l] += count * distance + rest;
    squares[l] += rests_squared[l] + distance * (2 * rest + count * distance);
  }
}

void moments_of_rows(const NormRows& place, const float* input, const float* center, double* sum,
                     double* squares) {
  for_row_blocks(place.rows, [&](int64_t first, int64_t rows) {
    for_columns(place.channels, [&](const auto& columns) {
      const int64_t c = columns.first;
      moments_of_columns(columns, rows, place.channels, input + first * place.channels + c,
                         center + c, sum + c, squares + c);
    });
  });
}

template <bool Relu>
void normalize_rows(const NormRows& place, const NormCoefficients& k, const float* input,
                    float* output) {
  for (int64_t r = 0; r < place.rows; ++r) {
    const float* x = input + r * place.channels;
    float* y = output + r * place.channels;
    sweep(place.channels, [&](int /*u*/, int64_t c, auto part) __attribute__((always_inline)) {
      const auto d = Simd::sub(part.load(x + c), part.load(k.mean + c));
      part.store(y + c,
                 activated<Relu>(Simd::fma(d, part.load(k.scale + c), part.load(k.shift + c))));
    });
  }
}

template <bool Relu, class C>
[[gnu::always_inline]] inline void grad_sums_of_columns(const C& columns, int64_t rows,
                                                        int64_t channels, const NormCoefficients& k,
                                                        const float* x, const float* go,
                                                        double* sum, double* dot) {
  constexpr int kCount = C::kCount;
  const auto part = columns.part;
  Simd::Reg mean[kCount], scale[kCount], shift[kCount];
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    const int64_t c = columns.first + v * kLanes;
    mean[v] = part.load(k.mean + c);
    scale[v] = part.load(k.scale + c);
    shift[v] = part.load(k.shift + c);
  }
  ColumnSums<kCount> grads, products;
  grads.clear();
  products.clear();
  for_runs(
      rows,
      [&](int64_t r) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          const int64_t at = r * channels + v * kLanes;
          const auto d = Simd::sub(part.load(x + at), mean[v]);
          const auto g = unactivated<Relu>(part.load(go + at), d, scale[v], shift[v]);
          grads.run[v] = Simd::add(grads.run[v], g);
          products.run[v] = Simd::fma(g, d, products.run[v]);
        }
      },
      [&]() __attribute__((always_inline)) {
        grads.end_run();
        products.end_run();
      });
  ColumnValues sums, dots;
#pragma GCC unroll 4
  for (int v = 0; v < kCount; ++v) {
    Simd::store(sums + v * kLanes, grads.sum[v]);
    Simd::store(dots + v * kLanes, products.sum[v]);
  }
  const int64_t width = min_of(kCount * kLanes, channels - columns.first);
  for (int64_t l = 0; l < width; ++l) {
    sum[l] += sums[l];
    dot[l] += dots[l];
  }
}

template <bool Relu>
void grad_sums_of_rows(const NormRows& place, const NormCoefficients& k, const float* input,
                       const float* grad_output, double* sum, double* dot) {
  for_row_blocks(place.rows, [&](int64_t first, int64_t rows) {
    for_columns(place.channels, [&](const auto& columns) {
      const int64_t c = columns.first, at = first * place.channels + c;
      grad_sums_of_columns<Relu>(columns, rows, place.channels, k, input + at, grad_output + at,
                                 sum + c, dot + c);
    });
  });
}

template <bool Relu, bool Centered>
void grad_input_of_rows(const NormRows& place, const NormCoefficients& k, const float* input,
                        const float* grad_output, float* grad_input) {
  for (int64_t r = 0; r < place.rows; ++r) {
    const int64_t row = r * place.channels;
    sweep(place.channels, [&](int /*u*/, int64_t c, auto part) __attribute__((always_inline)) {
      const auto scale = part.load(k.scale + c);
      auto g = part.load(grad_output + row + c);
      auto d = Simd::zero();
      if constexpr (Relu || Centered)
        d = Simd::sub(part.load(input + row + c), part.load(k.mean + c));
      if constexpr (Relu) g = unactivated<true>(g, d, scale, part.load(k.shift + c));
      if constexpr (Centered) {
        const auto through_moments = Simd::fma(d, part.load(k.slope + c), part.load(k.offset + c));
        part.store(grad_input + row + c, Simd::fma(g, scale, through_moments));
      } else {
        part.store(grad_input + row + c, Simd::mul(g, scale));
      }
    });
  }
}

constexpr BatchNormKernels kBatchNormKernels = {
    {&moments_of_planes,
     {&normalize_planes<false>, &normalize_planes<true>},
     {&grad_sums_of_planes<false>, &grad_sums_of_planes<true>},
     {{&grad_input_of_planes<false, false>, &grad_input_of_planes<false, true>},
      {&grad_input_of_planes<true, false>, &grad_input_of_planes<true, true>}}},
    {&moments_of_rows,
     {&normalize_rows<false>, &normalize_rows<true>},
     {&grad_sums_of_rows<false>, &grad_sums_of_rows<true>},
     {{&grad_input_of_rows<false, false>, &grad_input_of_rows<false, true>},
      {&grad_input_of_rows<true, false>, &grad_input_of_rows<true, true>}}},
};

}  // namespace
