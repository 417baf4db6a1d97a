// SPDX-License-Identifier: MIT
// Sets up the tensor-core kernel of the weight gradient and its second pass.
//
//   workspace: [partial sums][channels-last copy of grad_output][the same of the input]
//              the copies only of tensors that cannot be read in vectors as they are
#include "common/checked.h"
#include "cuda/conv2d/conv2d_axes.h"
#include "cuda/conv2d/conv2d_grad_weight_gemm.h"
#include "cuda/conv2d/conv2d_implicit.h"
#include "cuda/conv2d/conv2d_partials.h"
#include "cuda/conv2d/conv2d_tiles.h"
#include "cuda/conv2d/conv2d_vectors.cuh"

namespace fastconv::cuda {
namespace {

constexpr int64_t kMaxGridYZ = 65535;

struct Layout {
  PixelTensor grad_output;
  PixelTensor input;
  int64_t pixels;           // of grad_output, all images
  int64_t padded_channels;  // of a group of the input
  int64_t columns;          // of the product: taps * padded_channels
  int64_t row_stride;       // of the partials
  bool copies_grad_output;
  bool copies_input;
  int64_t grad_output_bytes;  // of the copies
  int64_t input_bytes;
};

// Pixels of one stage of shared memory.
int64_t stage_pixels(Conv2dElement element) {
  return kPixelSteps * 32 / conv2d_element_bytes(element);
}

// Bytes of a channels-last copy with padded groups; false when its pixels are too many.
bool copy_bytes(const PixelTensor& t, const Conv2dCall& call, int64_t* bytes) {
  const int64_t element = conv2d_element_bytes(call.element);
  const int64_t padded = round_up(t.channels, kVectorBytes / element);
  int64_t pixels = 0, size = 0;
  if (!checked_product({call.shape.batch, t.height, t.width}, &pixels) || !fits_int32(pixels) ||
      !checked_product({pixels, call.shape.groups, padded, element}, &size) ||
      ceil_div(call.shape.groups * padded, 32) > kMaxGridYZ)
    return false;
  *bytes = round_up(size, kWorkspaceAlignment);
  return true;
}

// False when the sizes are beyond what the kernel counts in 32 bits or the grid can hold.
bool lay_out(const Conv2dGradWeight& call, Layout* layout) {
  const Conv2dShape& s = call.shape;
  const int64_t per_vector = kVectorBytes / conv2d_element_bytes(call.element);
  layout->grad_output = {call.grad_output, call.grad_output_strides, s.group_out_channels(),
                         s.out_height, s.out_width};
  layout->input = {call.input, call.input_strides, s.group_in_channels(), s.in_height, s.in_width};
  if (!axis_fits({s.in_height, s.out_height, s.kernel_height, s.stride_height, s.padding_height,
                  s.dilation_height}) ||
      !axis_fits({s.in_width, s.out_width, s.kernel_width, s.stride_width, s.padding_width,
                  s.dilation_width}))
    return false;
  layout->padded_channels = round_up(s.group_in_channels(), per_vector);
  if (!checked_product({s.batch, s.out_height, s.out_width}, &layout->pixels) ||
      !checked_product({s.kernel_height, s.kernel_width, layout->padded_channels},
                       &layout->columns) ||
      !fits_int32(layout->pixels + stage_pixels(call.element)) || !fits_int32(layout->columns) ||
      !fits_int32(s.in_channels + s.groups * per_vector) ||
      !fits_int32(s.out_channels + s.groups * per_vector))
    return false;
  int64_t weights = 0;
  if (!checked_product({s.out_channels, layout->columns}, &weights)) return false;
  layout->row_stride = round_up(conv2d_partial_row(call, layout->padded_channels), 4);
  layout->copies_grad_output = !reads_in_vectors(layout->grad_output, s.batch, call.element);
  layout->copies_input = !reads_in_vectors(layout->input, s.batch, call.element);
  layout->grad_output_bytes = 0;
  layout->input_bytes = 0;
  return (!layout->copies_grad_output ||
          copy_bytes(layout->grad_output, call, &layout->grad_output_bytes)) &&
         (!layout->copies_input || copy_bytes(layout->input, call, &layout->input_bytes)) &&
         ceil_div(s.group_out_channels(), 64) <= kMaxGridYZ && s.groups <= kMaxGridYZ;
}

int64_t partial_bytes(const Layout& layout, int64_t splits) {
  return round_up(splits * layout.row_stride * 4, kWorkspaceAlignment);
}

int64_t pixels_per_split(const Conv2dGradWeight& call, int64_t pixels, int64_t splits) {
  return round_up(ceil_div(pixels, splits), stage_pixels(call.element));
}

// Makes the copy that `tensor` needs; returns where to read, and with which strides.
cudaError_t vectors_of(const PixelTensor& tensor, bool copies, const Conv2dGradWeight& call,
                       void* to, const void** data, Strides4* strides, cudaStream_t stream) {
  *data = tensor.data;
  *strides = tensor.strides;
  strides->channel = tensor.channels;
  if (!copies) return cudaSuccess;
  const PixelCopy copy = copy_of(tensor, call.shape.batch, call.shape.groups, call.element, to);
  *data = to;
  *strides = strides_of_copy(copy);
  return launch_conv2d_copy_pixels(copy, stream);
}

GradWeightGemm gemm_of(const Conv2dGradWeight& call, const Layout& layout) {
  const Conv2dShape& s = call.shape;
  const int64_t per_vector = kVectorBytes / conv2d_element_bytes(call.element);
  const int64_t weights = conv2d_partial_weights(s, layout.padded_channels);
  GradWeightGemm g{};
  g.in_height = static_cast<int32_t>(s.in_height);
  g.in_width = static_cast<int32_t>(s.in_width);
  g.stride_row = static_cast<int32_t>(s.stride_height);
  g.stride_column = static_cast<int32_t>(s.stride_width);
  g.padding_row = static_cast<int32_t>(s.padding_height);
  g.padding_column = static_cast<int32_t>(s.padding_width);
  g.dilation_row = static_cast<int32_t>(s.dilation_height);
  g.dilation_column = static_cast<int32_t>(s.dilation_width);
  g.image_divisor = FastDivmod(s.out_pixels());
  g.columns_divisor = FastDivmod(s.out_width);
  g.vectors_divisor = FastDivmod(layout.padded_channels / per_vector);
  g.taps_divisor = FastDivmod(s.kernel_width);
  g.pixels = static_cast<int32_t>(layout.pixels);
  g.pixels_per_split =
      static_cast<int32_t>(pixels_per_split(call, layout.pixels, call.plan.splits));
  g.groups = static_cast<int32_t>(s.groups);
  g.out_channels = static_cast<int32_t>(s.group_out_channels());
  g.out_vectors = static_cast<int32_t>(ceil_div(s.group_out_channels(), per_vector));
  g.column_vectors = static_cast<int32_t>(layout.columns / per_vector);
  g.partials = static_cast<float*>(call.workspace);
  g.row_stride = layout.row_stride;
  g.bias = call.grad_bias != nullptr ? weights : -1;
  return g;
}

cudaError_t launch_gemm(const GradWeightGemm& gemm, const Conv2dPlan& plan, cudaStream_t stream) {
  switch (plan.math) {
    case Conv2dMath::kBFloat16:
      return launch_conv2d_grad_weight_bfloat16(gemm, plan.tile, stream);
    case Conv2dMath::kFloat16:
      return launch_conv2d_grad_weight_float16(gemm, plan.tile, stream);
    case Conv2dMath::kTf32:
      return launch_conv2d_grad_weight_tf32(gemm, plan.tile, stream);
    case Conv2dMath::kTf32x3:
      return launch_conv2d_grad_weight_tf32x3(gemm, plan.tile, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t choose_conv2d_splits(int64_t tiles, int64_t groups, int64_t pixels, int64_t stage_pixels,
                             const Device& device) {
  constexpr int64_t kFewestStages = 8;
  constexpr int64_t kMostSplits = 256;
  const int64_t wanted = ceil_div(2 * device.multiprocessors, tiles);
  int64_t splits = pixels / (kFewestStages * stage_pixels);
  splits = splits < wanted ? splits : wanted;
  splits = splits < kMostSplits ? splits : kMostSplits;
  splits = splits < kMaxGridYZ / groups ? splits : kMaxGridYZ / groups;
  return splits > 1 ? splits : 1;
}

bool plan_conv2d_grad_weight_implicit(const Conv2dGradWeight& call, int tile, int64_t splits,
                                      Conv2dPlan* plan) {
  const Conv2dShape& s = call.shape;
  Layout layout{};
  if (!has_tensor_cores(call) || s.in_channels == 0 || s.out_channels == 0 || s.batch == 0 ||
      !lay_out(call, &layout))
    return false;
  const Conv2dMath math = conv2d_math(call.element, call.allow_tf32);
  const int first_tile = math == Conv2dMath::kTf32x3 ? kFirstTf32x3GradWeightTile : 0;
  if (tile < 0) {
    const int half = kGradWeightTiles[0].rows / 2;
    const bool large = s.group_out_channels() > half && layout.columns > half;
    tile = large ? first_tile : kGradWeightTileCount - 1;
  }
  if (tile < first_tile || tile >= kGradWeightTileCount) return false;
  const TileShape& t = kGradWeightTiles[tile];
  const int64_t tiles =
      ceil_div(s.group_out_channels(), t.rows) * ceil_div(layout.columns, t.columns) * s.groups;
  if (splits < 1)
    splits = choose_conv2d_splits(tiles, s.groups, layout.pixels, stage_pixels(call.element),
                                  call.device);
  // Whole stages: the last splits may be left without pixels.
  splits = ceil_div(layout.pixels, pixels_per_split(call, layout.pixels, splits));
  if (s.groups * splits > kMaxGridYZ) return false;
  *plan = {Conv2dAlgorithm::kImplicitGemm, math, tile, splits,
           partial_bytes(layout, splits) + layout.grad_output_bytes + layout.input_bytes};
  return true;
}

cudaError_t launch_conv2d_grad_weight_implicit(const Conv2dGradWeight& call, cudaStream_t stream) {
  Layout layout{};
  if (!lay_out(call, &layout)) return cudaErrorInvalidValue;
  GradWeightGemm gemm = gemm_of(call, layout);
  unsigned char* copies =
      static_cast<unsigned char*>(call.workspace) + partial_bytes(layout, call.plan.splits);
  cudaError_t error = vectors_of(layout.grad_output, layout.copies_grad_output, call, copies,
                                 &gemm.grad_output, &gemm.grad_output_strides, stream);
  if (error != cudaSuccess) return error;
  error = vectors_of(layout.input, layout.copies_input, call, copies + layout.grad_output_bytes,
                     &gemm.input, &gemm.input_strides, stream);
  if (error != cudaSuccess) return error;
  error = launch_gemm(gemm, call.plan, stream);
  if (error != cudaSuccess) return error;
  return launch_conv2d_sum_partials(
      call, {call.workspace, call.plan.splits, layout.padded_channels, layout.row_stride}, stream);
}

}  // namespace fastconv::cuda
