// SPDX-License-Identifier: MIT
// Sets up the tensor-core kernel for forward and grad input, which differ only in what is the
// source, what the result, and how positions of the one map to positions of the other.
//
//   workspace: [packed weights, unless they lie packed already]
//              [channels-last copy of the source, unless it can be read in vectors as it is]
//
// Weights are packed in every call: a launcher cannot know whether they have changed since the last
// one, an optimizer's step lies between two forward passes anyway, and the packing reads and writes
// them once where the product reads them once per tile of pixels. Refused, and so left to the
// general kernels: 2^31 pixels or more, more than 16 taps a side, strides of more than 16 phases,
// and windows that a strip of the epilogue does not hold whole.
#include "cuda/conv2d/conv2d_implicit.h"

#include "common/checked.h"
#include "cuda/common/vector.cuh"
#include "cuda/conv2d/conv2d_axes.h"
#include "cuda/conv2d/conv2d_layout.h"
#include "cuda/conv2d/conv2d_tiles.h"
#include "cuda/conv2d/conv2d_vectors.cuh"

namespace fastconv::cuda {
namespace {

constexpr int64_t kMaxGridYZ = 65535;

// What the kernel computes, in terms of the tensors of the call. Channels are those of a group.
struct Problem {
  Conv2dElement element;
  int64_t batch;
  int64_t groups;
  PixelTensor source;
  PixelTensor dest;
  AxisPhases rows;
  AxisPhases columns;
  const void* weight;
  int64_t group_stride;  // of the weight, in elements
  int64_t row_stride;    // from one channel of the result to the next
  int64_t channel_stride;
  int64_t tap_row_stride;
  int64_t tap_column_stride;
  const void* bias;
  Activation activation;
  float negative_slope;
  GemmWindow window;
  uint8_t* offsets;
};

constexpr GemmWindow kNoWindow = {BlockPool::kNone, 0, 0};

// log2 of a size of a window, or a number that fits no window.
int32_t log_size(int64_t size) {
  for (int32_t log = 0; log <= kMaxLogWindowTaps; ++log)
    if (size == int64_t{1} << log) return log;
  return kMaxLogWindowTaps + 1;
}

GemmWindow window_of(const Conv2dPool& pool) {
  if (pool.kind == BlockPool::kNone) return kNoWindow;
  return {pool.kind, log_size(pool.height), log_size(pool.width)};
}

Problem forward_problem(const Conv2dForward& call) {
  const Conv2dShape& s = call.shape;
  const Strides4& w = call.weight_strides;
  const GemmWindow window = window_of(call.pool);
  return {call.element,
          s.batch,
          s.groups,
          {call.input, call.input_strides, s.group_in_channels(), s.in_height, s.in_width},
          {call.output, call.output_strides, s.group_out_channels(),
           s.out_height >> window.log_height, s.out_width >> window.log_width},
          forward_axis({s.in_height, s.out_height, s.kernel_height, s.stride_height,
                        s.padding_height, s.dilation_height},
                       window.log_height),
          forward_axis({s.in_width, s.out_width, s.kernel_width, s.stride_width, s.padding_width,
                        s.dilation_width},
                       window.log_width),
          call.weight,
          s.group_out_channels() * w.batch,
          w.batch,
          w.channel,
          w.row,
          w.column,
          call.bias,
          call.activation,
          call.negative_slope,
          window,
          call.offsets};
}

Problem grad_input_problem(const Conv2dGradInput& call) {
  const Conv2dShape& s = call.shape;
  const Strides4& w = call.weight_strides;
  return {
      call.element,
      s.batch,
      s.groups,
      {call.grad_output, call.grad_output_strides, s.group_out_channels(), s.out_height,
       s.out_width},
      {call.grad_input, call.grad_input_strides, s.group_in_channels(), s.in_height, s.in_width},
      grad_input_axis({s.in_height, s.out_height, s.kernel_height, s.stride_height,
                       s.padding_height, s.dilation_height}),
      grad_input_axis({s.in_width, s.out_width, s.kernel_width, s.stride_width, s.padding_width,
                       s.dilation_width}),
      call.weight,
      s.group_out_channels() * w.batch,
      w.channel,
      w.batch,
      w.row,
      w.column,
      nullptr,
      Activation::kNone,
      0.0f,
      kNoWindow,
      nullptr};
}

// What has to be made before the kernel can run, and the size of its result.
struct Layout {
  int64_t padded_channels;  // of a group of the source: whole vectors
  int64_t group_vectors;    // of a group of the packed weights
  int64_t phase_rows;       // of the product in the largest phase
  bool packs_weights;
  bool copies_source;
  int64_t weight_bytes;
  int64_t source_bytes;
};

bool weights_are_packed(const Problem& p, int64_t per_vector) {
  const int64_t taps = p.columns.phases[0].axis.taps;
  return p.rows.count * p.columns.count == 1 && p.rows.kernel_step == 1 &&
         p.columns.kernel_step == 1 && p.channel_stride == 1 &&
         p.tap_column_stride == p.source.channels && p.tap_row_stride == taps * p.source.channels &&
         p.row_stride == p.rows.phases[0].axis.taps * p.tap_row_stride &&
         p.group_stride == p.dest.channels * p.row_stride && p.source.channels % per_vector == 0 &&
         aligned16(p.weight);
}

// False when the sizes are beyond what the kernel counts in 32 bits or the grid can hold.
bool lay_out(const Problem& p, Layout* layout) {
  if (!p.rows.possible || !p.columns.possible || p.window.log_taps() > kMaxLogWindowTaps)
    return false;
  const int64_t bytes = conv2d_element_bytes(p.element);
  const int64_t per_vector = kVectorBytes / bytes;
  layout->padded_channels = round_up(p.source.channels, per_vector);
  layout->packs_weights = !weights_are_packed(p, per_vector);
  layout->copies_source = !reads_in_vectors(p.source, p.batch, p.element);
  layout->group_vectors = 0;
  layout->phase_rows = 0;
  for (int i = 0; i < p.rows.count; ++i) {
    for (int j = 0; j < p.columns.count; ++j) {
      const GemmAxis& rows = p.rows.phases[i].axis;
      const GemmAxis& columns = p.columns.phases[j].axis;
      int64_t vectors = 0, weights = 0, gemm_rows = 0;
      if (!checked_product({rows.taps, columns.taps, layout->padded_channels / per_vector},
                           &vectors) ||
          !checked_product({vectors, p.dest.channels}, &weights) ||
          !checked_product({p.batch, rows.size, columns.size, p.window.taps()}, &gemm_rows) ||
          !fits_int32(weights) || !fits_int32(gemm_rows))
        return false;
      layout->group_vectors += weights;
      layout->phase_rows = gemm_rows > layout->phase_rows ? gemm_rows : layout->phase_rows;
    }
  }
  int64_t source_pixels = 0, packed = 0;
  if (!checked_product({p.batch, p.source.height, p.source.width}, &source_pixels) ||
      !checked_product({layout->group_vectors, p.groups, kVectorBytes}, &packed))
    return false;
  layout->weight_bytes = layout->packs_weights ? round_up(packed, kWorkspaceAlignment) : 0;
  layout->source_bytes = layout->copies_source
                             ? round_up(source_pixels * p.groups * layout->padded_channels * bytes,
                                        kWorkspaceAlignment)
                             : 0;
  const int64_t phases = static_cast<int64_t>(p.rows.count) * p.columns.count;
  return phases <= kMaxPhases && p.groups * phases <= kMaxGridYZ && fits_int32(source_pixels) &&
         ceil_div(p.dest.channels, kConvTiles[kConvTileCount - 1].columns) <= kMaxGridYZ &&
         ceil_div(p.groups * layout->padded_channels, 32) <= kMaxGridYZ;
}

bool plan_problem(const Problem& p, const Conv2dCall& call, int tile, Conv2dPlan* plan) {
  Layout layout{};
  if (!has_tensor_cores(call) || p.source.channels == 0 || !lay_out(p, &layout)) return false;
  const Conv2dMath math = conv2d_math(call.element, call.allow_tf32);
  const int64_t products = p.groups * p.rows.count * p.columns.count;
  const int first_tile = math == Conv2dMath::kTf32x3 ? kFirstTf32x3Tile : 0;
  if (tile < 0)
    tile = choose_conv2d_tile(layout.phase_rows, p.dest.channels, products, math, call.device);
  if (tile < first_tile || tile >= kConvTileCount) return false;
  *plan = {Conv2dAlgorithm::kImplicitGemm, math, tile, 1,
           layout.weight_bytes + layout.source_bytes};
  return true;
}

cudaError_t pack_weights(const Problem& p, const ConvGemm& gemm, const Layout& layout, void* to,
                         cudaStream_t stream) {
  WeightPack pack{};
  pack.from = p.weight;
  pack.group_stride = p.group_stride;
  pack.row_stride = p.row_stride;
  pack.channel_stride = p.channel_stride;
  pack.tap_row_stride = p.tap_row_stride;
  pack.tap_column_stride = p.tap_column_stride;
  pack.to = to;
  pack.groups = gemm.groups;
  pack.rows = gemm.channels;
  pack.channels = static_cast<int32_t>(p.source.channels);
  pack.padded_channels = static_cast<int32_t>(layout.padded_channels);
  pack.tap_row_step = p.rows.kernel_step;
  pack.tap_column_step = p.columns.kernel_step;
  pack.group_vectors = layout.group_vectors;
  pack.element_bytes = static_cast<int>(conv2d_element_bytes(p.element));
  pack.phase_count = gemm.phase_count;
  for (int i = 0; i < gemm.phase_count; ++i) {
    const AxisPhase& rows = p.rows.phases[i / p.columns.count];
    const AxisPhase& columns = p.columns.phases[i % p.columns.count];
    pack.phases[i] = {rows.first_tap, rows.axis.taps, columns.first_tap, columns.axis.taps,
                      gemm.phases[i].weights};
  }
  return launch_conv2d_pack_weights(pack, stream);
}

// The kernel's arguments but for the memory that is made for it.
ConvGemm gemm_of(const Problem& p, const Layout& layout) {
  const int64_t channel_vectors =
      layout.padded_channels * conv2d_element_bytes(p.element) / kVectorBytes;
  ConvGemm g{};
  g.source_height = static_cast<int32_t>(p.source.height);
  g.source_width = static_cast<int32_t>(p.source.width);
  g.source_step_row = p.rows.source_step;
  g.source_step_column = p.columns.source_step;
  g.tap_step_row = p.rows.tap_step;
  g.tap_step_column = p.columns.tap_step;
  g.group_weights = layout.group_vectors;
  g.vectors_divisor = FastDivmod(channel_vectors);
  g.dest = const_cast<void*>(p.dest.data);
  g.dest_strides = p.dest.strides;
  g.dest_step_row = p.rows.dest_step;
  g.dest_step_column = p.columns.dest_step;
  g.vector_stores = reads_in_vectors(p.dest, p.batch, p.element) && aligned_to(p.offsets, 8);
  g.batch = static_cast<int32_t>(p.batch);
  g.groups = static_cast<int32_t>(p.groups);
  g.channels = static_cast<int32_t>(p.dest.channels);
  g.bias = p.bias;
  g.activation = p.activation;
  g.negative_slope = p.negative_slope;
  g.window = p.window;
  g.offsets = p.offsets;
  g.phase_count = p.rows.count * p.columns.count;
  int64_t weights = 0;
  for (int i = 0; i < g.phase_count; ++i) {
    GemmPhase& phase = g.phases[i];
    phase.rows = p.rows.phases[i / p.columns.count].axis;
    phase.columns = p.columns.phases[i % p.columns.count].axis;
    phase.pixels_divisor = FastDivmod(static_cast<int64_t>(phase.rows.size) * phase.columns.size);
    phase.columns_divisor = FastDivmod(phase.columns.size);
    phase.taps_divisor = FastDivmod(phase.columns.taps > 0 ? phase.columns.taps : 1);
    phase.vectors = static_cast<int32_t>(phase.rows.taps * phase.columns.taps * channel_vectors);
    phase.weights = weights;
    weights += phase.vectors * p.dest.channels;
  }
  return g;
}

cudaError_t launch_problem(const Problem& p, const Conv2dCall& call, cudaStream_t stream) {
  Layout layout{};
  if (!lay_out(p, &layout)) return cudaErrorInvalidValue;
  ConvGemm gemm = gemm_of(p, layout);
  unsigned char* workspace = static_cast<unsigned char*>(call.workspace);
  gemm.weights = p.weight;
  if (layout.packs_weights && layout.group_vectors > 0) {
    gemm.weights = workspace;
    const cudaError_t error = pack_weights(p, gemm, layout, workspace, stream);
    if (error != cudaSuccess) return error;
  }
  gemm.source = p.source.data;
  gemm.source_strides = p.source.strides;
  gemm.source_strides.channel = p.source.channels;
  if (layout.copies_source) {
    void* to = workspace + layout.weight_bytes;
    const PixelCopy copy = copy_of(p.source, p.batch, p.groups, p.element, to);
    const cudaError_t error = launch_conv2d_copy_pixels(copy, stream);
    if (error != cudaSuccess) return error;
    gemm.source = to;
    gemm.source_strides = strides_of_copy(copy);
  }
  return launch_conv2d_gemm(gemm, call.plan.math, call.plan.tile, stream);
}

}  // namespace

int choose_conv2d_tile(int64_t rows, int64_t columns, int64_t products, Conv2dMath math,
                       const Device& device) {
  const int first = math == Conv2dMath::kTf32x3 ? kFirstTf32x3Tile : 0;
  for (int tile = first; tile < kConvTileCount; ++tile) {
    const TileShape& t = kConvTiles[tile];
    const int64_t blocks = ceil_div(rows, t.rows) * ceil_div(columns, t.columns) * products;
    if (columns > t.columns / 2 && blocks >= device.multiprocessors) return tile;
  }
  return columns > kConvTiles[kConvTileCount - 1].columns ? kConvTileCount - 2 : kConvTileCount - 1;
}

Conv2dMath conv2d_math(Conv2dElement element, bool allow_tf32) {
  switch (element) {
    case Conv2dElement::kBFloat16:
      return Conv2dMath::kBFloat16;
    case Conv2dElement::kFloat16:
      return Conv2dMath::kFloat16;
    default:
      return allow_tf32 ? Conv2dMath::kTf32 : Conv2dMath::kTf32x3;
  }
}

cudaError_t launch_conv2d_gemm(const ConvGemm& gemm, Conv2dMath math, int tile,
                               cudaStream_t stream) {
  switch (math) {
    case Conv2dMath::kBFloat16:
      return launch_conv2d_gemm_bfloat16(gemm, tile, stream);
    case Conv2dMath::kFloat16:
      return launch_conv2d_gemm_float16(gemm, tile, stream);
    case Conv2dMath::kTf32:
      return launch_conv2d_gemm_tf32(gemm, tile, stream);
    case Conv2dMath::kTf32x3:
      return launch_conv2d_gemm_tf32x3(gemm, tile, stream);
  }
  return cudaErrorInvalidValue;
}

bool plan_conv2d_forward_implicit(const Conv2dForward& call, int tile, Conv2dPlan* plan) {
  return plan_problem(forward_problem(call), call, tile, plan);
}

bool plan_conv2d_grad_input_implicit(const Conv2dGradInput& call, int tile, Conv2dPlan* plan) {
  return plan_problem(grad_input_problem(call), call, tile, plan);
}

cudaError_t launch_conv2d_forward_implicit(const Conv2dForward& call, cudaStream_t stream) {
  return launch_problem(forward_problem(call), call, stream);
}

cudaError_t launch_conv2d_grad_input_implicit(const Conv2dGradInput& call, cudaStream_t stream) {
  return launch_problem(grad_input_problem(call), call, stream);
}

}  // namespace fastconv::cuda
