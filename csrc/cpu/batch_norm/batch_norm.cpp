// SPDX-License-Identifier: MIT
// How a batch normalisation is cut. All three calls sum over each channel, turn the sums into
// coefficients and apply those to every value:
//
// - groups of channels one after the other, where threads have enough of them and a channel's
// planes
//   lie together: what the sums read is in L2 when the coefficients are applied;
// - everything summed first, in at most kMostPieces pieces, then everything applied.
//
// A channel's sums are those of its pieces in order either way, so that both give the same result.
#include "cpu/batch_norm/batch_norm.h"

#include <algorithm>
#include <cmath>

#include "common/checked.h"
#include "cpu/batch_norm/batch_norm_reference.h"
#include "cpu/batch_norm/batch_norm_ukernels.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kMostPieces = 64;
constexpr int64_t kLeastRows = 256;         // of a piece
constexpr int64_t kLeastValues = 4096;      // of a channel in a piece
constexpr int64_t kGroupBytes = 512 << 10;  // half of L2

// Cuts what is summed: images of a channel, or rows of all channels.
struct Pieces {
  Pieces(const BatchNormShape& s, bool channels_last)
      : total(channels_last ? s.values() : s.batch),
        step(round_up(ceil_div(total, kMostPieces),
                      channels_last ? kLeastRows : ceil_div(kLeastValues, s.pixels))),
        count(ceil_div(total, step)) {}
  int64_t total, step, count;
};

// The arrays of a call in its scratch memory, all [channels] but for sums, which are two for each
// piece.
struct Arrays {
  Arrays(const BatchNormShape& s, float* scratch) {
    const int64_t channels = round_up(s.channels, 16);
    scale = scratch;
    shift = scale + channels;
    slope = shift + channels;
    offset = slope + channels;
    sums = reinterpret_cast<double*>(offset + channels);
  }
  static int64_t floats(const BatchNormShape& s, const Pieces& pieces) {
    return 4 * round_up(s.channels, 16) + 2 * 2 * pieces.count * s.channels;
  }
  NormCoefficients coefficients(const float* mean) const {
    return {mean, scale, shift, slope, offset};
  }
  float *scale, *shift, *slope, *offset;
  double* sums;
};

// Calls body(begin, end) for ranges of [0, count), one for each of `threads` at most.
template <class Body>
void for_ranges(int64_t count, int64_t threads, const Body& body) {
  const int64_t slots = std::min(count, threads);
  parallel_for(slots,
               [&](int64_t slot) { body(count * slot / slots, count * (slot + 1) / slots); });
}

struct Cut {
  BatchNormShape shape;
  Pieces pieces;
  int64_t threads;
  int64_t group;  // channels
};

// `pass` knows what is summed, what becomes of the sums and what is applied:
//   pass.add_planes(channel, first, images, sums), pass.finish(channel, sums),
//   pass.apply_planes(channel, channels, first, images); pass.sums and pass.applies tell whether
//   there is anything to do.
template <class Pass>
void run_on_planes(const Cut& cut, double* piece_sums, const Pass& pass) {
  const BatchNormShape& s = cut.shape;
  const Pieces& pieces = cut.pieces;
  const auto add_piece = [&](int64_t channel, int64_t piece, double sums[2]) {
    const int64_t first = piece * pieces.step;
    pass.add_planes(channel, first, std::min(pieces.step, s.batch - first), sums);
  };
  const bool shares_channels = s.channels < 4 * cut.threads && s.channels % cut.threads != 0;
  if (pass.sums && !shares_channels) {
    return for_ranges(s.channels, cut.threads, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += cut.group) {
        const int64_t channels = std::min(cut.group, end - first);
        for (int64_t c = first; c < first + channels; ++c) {
          double sums[2] = {0, 0};
          for (int64_t piece = 0; piece < pieces.count; ++piece) {
            double part[2] = {0, 0};
            add_piece(c, piece, part);
            sums[0] += part[0];
            sums[1] += part[1];
          }
          pass.finish(c, sums);
        }
        if (pass.applies) pass.apply_planes(first, channels, 0, s.batch);
      }
    });
  }
  if (pass.sums)
    for_ranges(s.channels * pieces.count, cut.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        piece_sums[2 * i] = piece_sums[2 * i + 1] = 0;
        add_piece(i / pieces.count, i % pieces.count, piece_sums + 2 * i);
      }
    });
  for (int64_t c = 0; c < s.channels; ++c) {
    double sums[2] = {0, 0};
    for (int64_t i = c * pieces.count; pass.sums && i < (c + 1) * pieces.count; ++i) {
      sums[0] += piece_sums[2 * i];
      sums[1] += piece_sums[2 * i + 1];
    }
    pass.finish(c, sums);
  }
  if (pass.applies)
    for_ranges(s.batch * s.channels, cut.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t c = i % s.channels, channels = std::min(s.channels - c, end - i);
        pass.apply_planes(c, channels, i / s.channels, 1);
        i += channels;
      }
    });
}

// As run_on_planes, with pass.add_rows(first, rows, sum, squares) for all channels at once and
// pass.apply_rows(first, rows).
template <class Pass>
void run_on_rows(const Cut& cut, double* piece_sums, const Pass& pass) {
  const int64_t channels = cut.shape.channels;
  const Pieces& pieces = cut.pieces;
  if (pass.sums)
    for_ranges(pieces.count, cut.threads, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) {
        double* sums = piece_sums + piece * 2 * channels;
        std::fill(sums, sums + 2 * channels, 0.0);
        const int64_t first = piece * pieces.step;
        pass.add_rows(first, std::min(pieces.step, pieces.total - first), sums, sums + channels);
      }
    });
  for (int64_t c = 0; c < channels; ++c) {
    double sums[2] = {0, 0};
    for (int64_t piece = 0; pass.sums && piece < pieces.count; ++piece) {
      sums[0] += piece_sums[piece * 2 * channels + c];
      sums[1] += piece_sums[piece * 2 * channels + channels + c];
    }
    pass.finish(c, sums);
  }
  if (pass.applies)
    for_ranges(pieces.total, cut.threads,
               [&](int64_t begin, int64_t end) { pass.apply_rows(begin, end - begin); });
}

template <class Pass>
void run(const BatchNormShape& shape, bool channels_last, int64_t streams, double* piece_sums,
         const Pass& pass) {
  const int64_t bytes = streams * shape.elements() * static_cast<int64_t>(sizeof(float));
  const int64_t group = std::max<int64_t>(1, kGroupBytes * shape.channels / bytes);
  const Cut cut{shape, Pieces(shape, channels_last), worthwhile_threads(0, bytes), group};
  channels_last ? run_on_rows(cut, piece_sums, pass) : run_on_planes(cut, piece_sums, pass);
}

// Where the planes of a channel lie.
struct Planes {
  explicit Planes(const BatchNormShape& s) : shape(s) {}
  NormPlanes of(int64_t images, int64_t channels = 1) const {
    return {images, shape.channels * shape.pixels, shape.pixels, channels};
  }
  int64_t offset(int64_t channel, int64_t image) const {
    return (image * shape.channels + channel) * shape.pixels;
  }
  BatchNormShape shape;
};

// The scale and the shift of a channel, from its invstd and what the rounding of its mean left;
// forward and backward alike.
template <class Call>
void set_scale(const Call& call, int64_t c, float invstd, double rest, const Arrays& arrays) {
  arrays.scale[c] = call.weight == nullptr ? invstd : invstd * call.weight[c];
  const double bias = call.bias == nullptr ? 0.0 : call.bias[c];
  arrays.shift[c] = static_cast<float>(bias - rest * arrays.scale[c]);
}

// Applies scale and shift: half of both forward calls.
template <class Call>
struct Normalizing {
  Normalizing(const Call& call_, const BatchNormKernels& kernels_, float* scratch)
      : call(call_), kernels(kernels_), arrays(call_.shape, scratch), planes(call_.shape) {}

  void apply_planes(int64_t c, int64_t channels, int64_t first, int64_t images) const {
    const int64_t at = planes.offset(c, first);
    kernels.planes.normalize[call.relu](planes.of(images, channels),
                                        arrays.coefficients(call.mean).of(c), call.input + at,
                                        call.output + at);
  }
  void apply_rows(int64_t first, int64_t rows) const {
    const int64_t channels = call.shape.channels, at = first * channels;
    kernels.rows.normalize[call.relu]({rows, channels}, arrays.coefficients(call.mean),
                                      call.input + at, call.output + at);
  }

  static constexpr bool applies = true;
  const Call& call;
  const BatchNormKernels& kernels;
  Arrays arrays;
  Planes planes;
};

struct TrainingPass : Normalizing<BatchNormTraining<float>> {
  using Normalizing::Normalizing;
  static constexpr bool sums = true;

  // Moments are taken around the first value of each channel.
  const float* center(int64_t c) const {
    return call.input + (call.channels_last ? c : c * call.shape.pixels);
  }
  void add_planes(int64_t c, int64_t first, int64_t images, double sum[2]) const {
    kernels.planes.moments(planes.of(images), call.input + planes.offset(c, first), center(c), sum,
                           sum + 1);
  }
  void add_rows(int64_t first, int64_t rows, double* sum, double* squares) const {
    const int64_t channels = call.shape.channels;
    kernels.rows.moments({rows, channels}, call.input + first * channels, center(0), sum, squares);
  }
  void finish(int64_t c, const double sum[2]) const {
    const auto count = static_cast<double>(call.shape.values());
    const double distance = sum[0] / count;
    const double mean = *center(c) + distance;
    const double difference = sum[1] / count - distance * distance;
    const double var = difference < 0 ? 0 : difference;
    call.mean[c] = static_cast<float>(mean);
    call.mean[call.shape.channels + c] = static_cast<float>(mean - call.mean[c]);
    call.invstd[c] = static_cast<float>(1 / std::sqrt(var + call.eps));
    set_scale(call, c, call.invstd[c], call.mean[call.shape.channels + c], arrays);
    move_towards(call.running_mean, c, mean);
    move_towards(call.running_var, c, var * count / (count - 1));
  }
  void move_towards(float* running, int64_t c, double value) const {
    if (running == nullptr) return;
    running[c] = static_cast<float>((1 - call.momentum) * running[c] + call.momentum * value);
  }
};

struct InferencePass : Normalizing<BatchNormInference<float>> {
  using Normalizing::Normalizing;
  static constexpr bool sums = false;

  void add_planes(int64_t, int64_t, int64_t, double*) const {}
  void add_rows(int64_t, int64_t, double*, double*) const {}
  void finish(int64_t c, const double*) const {
    set_scale(call, c, static_cast<float>(1 / std::sqrt(call.var[c] + call.eps)), 0, arrays);
  }
};

struct BackwardPass {
  BackwardPass(const BatchNormBackward<float>& call_, const BatchNormKernels& kernels_,
               float* scratch)
      : call(call_),
        kernels(kernels_),
        arrays(call_.shape, scratch),
        planes(call_.shape),
        sums(call_.training || call_.grad_weight != nullptr || call_.grad_bias != nullptr),
        applies(call_.grad_input != nullptr) {
    for (int64_t c = 0; c < call.shape.channels; ++c)
      set_scale(call, c, call.invstd[c], rest_of_mean(c), arrays);
  }

  double rest_of_mean(int64_t c) const { return call.mean[call.shape.channels + c]; }

  void add_planes(int64_t c, int64_t first, int64_t images, double sum[2]) const {
    const int64_t at = planes.offset(c, first);
    kernels.planes.grad_sums[call.relu](planes.of(images), arrays.coefficients(call.mean).of(c),
                                        call.input + at, call.grad_output + at, sum, sum + 1);
  }
  void add_rows(int64_t first, int64_t rows, double* sum, double* dot) const {
    const int64_t channels = call.shape.channels, at = first * channels;
    kernels.rows.grad_sums[call.relu]({rows, channels}, arrays.coefficients(call.mean),
                                      call.input + at, call.grad_output + at, sum, dot);
  }
  void finish(int64_t c, const double sum[2]) const {
    if (call.grad_bias != nullptr) call.grad_bias[c] = static_cast<float>(sum[0]);
    const double dot = (sum[1] - rest_of_mean(c) * sum[0]) * call.invstd[c];
    if (call.grad_weight != nullptr) call.grad_weight[c] = static_cast<float>(dot);
    const double factor = -arrays.scale[c] / static_cast<double>(call.shape.values());
    const double slope = factor * dot * call.invstd[c];
    arrays.slope[c] = static_cast<float>(slope);
    arrays.offset[c] = static_cast<float>(factor * sum[0] - rest_of_mean(c) * slope);
  }
  void apply_planes(int64_t c, int64_t channels, int64_t first, int64_t images) const {
    const int64_t at = planes.offset(c, first);
    kernels.planes.grad_input[call.relu][call.training](
        planes.of(images, channels), arrays.coefficients(call.mean).of(c), call.input + at,
        call.grad_output + at, call.grad_input + at);
  }
  void apply_rows(int64_t first, int64_t rows) const {
    const int64_t channels = call.shape.channels, at = first * channels;
    kernels.rows.grad_input[call.relu][call.training](
        {rows, channels}, arrays.coefficients(call.mean), call.input + at, call.grad_output + at,
        call.grad_input + at);
  }

  const BatchNormBackward<float>& call;
  const BatchNormKernels& kernels;
  Arrays arrays;
  Planes planes;
  bool sums, applies;
};

}  // namespace

int64_t batch_norm_scratch(const BatchNormShape& shape, bool channels_last) {
  return Arrays::floats(shape, Pieces(shape, channels_last));
}

template <>
void batch_norm_training(const BatchNormTraining<double>& call, float* /*scratch*/) {
  record_kernel(KernelId::kBatchNormForward, "reference", Isa::kScalar);
  batch_norm_training_reference(call);
}

template <>
void batch_norm_inference(const BatchNormInference<double>& call, float* /*scratch*/) {
  record_kernel(KernelId::kBatchNormForward, "reference", Isa::kScalar);
  batch_norm_inference_reference(call);
}

template <>
void batch_norm_backward(const BatchNormBackward<double>& call, float* /*scratch*/) {
  record_kernel(KernelId::kBatchNormBackward, "reference", Isa::kScalar);
  batch_norm_backward_reference(call);
}

template <>
void batch_norm_training(const BatchNormTraining<float>& call, float* scratch) {
  const Isa isa = active_isa();
  record_kernel(KernelId::kBatchNormForward, call.channels_last ? "rows" : "planes", isa);
  const TrainingPass pass(call, batch_norm_kernels(isa), scratch);
  run(call.shape, call.channels_last, 2, pass.arrays.sums, pass);
}

template <>
void batch_norm_inference(const BatchNormInference<float>& call, float* scratch) {
  const Isa isa = active_isa();
  record_kernel(KernelId::kBatchNormForward, call.channels_last ? "rows" : "planes", isa);
  const InferencePass pass(call, batch_norm_kernels(isa), scratch);
  run(call.shape, call.channels_last, 2, pass.arrays.sums, pass);
}

template <>
void batch_norm_backward(const BatchNormBackward<float>& call, float* scratch) {
  const Isa isa = active_isa();
  record_kernel(KernelId::kBatchNormBackward, call.channels_last ? "rows" : "planes", isa);
  const BackwardPass pass(call, batch_norm_kernels(isa), scratch);
  run(call.shape, call.channels_last, 3, pass.arrays.sums, pass);
}

}  // namespace fastconv::cpu
