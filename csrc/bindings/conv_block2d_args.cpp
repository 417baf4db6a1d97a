// SPDX-License-Identifier: MIT
#include "bindings/conv_block2d_args.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "bindings/conv2d_args.h"
#include "cpu/conv_block2d/conv_block2d.h"
#ifdef FASTCONV_WITH_CUDA
#include "cuda/conv_block2d/conv_block2d.h"
#endif

namespace fastconv::bindings {
namespace {

constexpr std::string_view kPoolNames[] = {"none", "max", "avg"};

bool all_equal(at::IntArrayRef values, int64_t value) {
  return std::all_of(values.begin(), values.end(), [&](int64_t v) { return v == value; });
}

constexpr int64_t kTwo[] = {2, 2};
constexpr int64_t kOne[] = {1, 1};

// Whether the fused kernels serve this pooling: 2 x 2 windows. On a GPU also an activation without
// pooling, which would be a kernel of its own.
bool pool_fuses(const Tensor& input, const ConvBlock2dOptions& o) {
  if (o.pool == PoolKind::kNone) return input.is_cuda() && o.activation != Activation::kNone;
  return o.pool_size.size() == 2 && all_equal(o.pool_size, 2) && all_equal(o.pool_stride, 2);
}

// What of the options, dtypes and layouts the fused kernels serve, sizes aside.
bool options_fuse(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const ConvBlock2dOptions& o) {
  return input.dim() == 4 && weight.dim() == 4 && pool_fuses(input, o) &&
         input.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         (!bias.has_value() || !bias->defined() ||
          (bias->dim() == 1 && bias->scalar_type() == at::kFloat)) &&
         o.conv.padding.size() == 2 && all_equal(o.conv.stride, 1) &&
         all_equal(o.conv.dilation, 1) && o.conv.groups == 1 &&
         conv2d_memory_format(input, weight) == at::MemoryFormat::Contiguous;
}

PoolKind parse_pool(std::string_view name) {
  for (int i = 0; i < 3; ++i)
    if (name == kPoolNames[i]) return static_cast<PoolKind>(i);
  TORCH_CHECK_VALUE(false, "conv_block2d: expected pool one of none, max, avg, got '", name, "'");
}

Tensor pooled_by_torch(const Tensor& x, const ConvBlock2dOptions& o) {
  if (o.pool == PoolKind::kMax) return at::max_pool2d(x, o.pool_size, o.pool_stride);
  if (o.pool == PoolKind::kAvg) return at::avg_pool2d(x, o.pool_size, o.pool_stride);
  return x;
}

// Whether the kernels of the device serve these sizes. A build without CUDA kernels answers for the
// CPU; its operators refuse the tensors themselves.
bool sizes_fuse(const Conv2dShape& s, const ConvBlock2dOptions& o, bool on_gpu) {
  const auto slope = static_cast<float>(o.negative_slope);
#ifdef FASTCONV_WITH_CUDA
  if (on_gpu)
    return cuda::conv_block2d_applies(
        {s, o.activation, slope, static_cast<cuda::BlockPool>(o.pool)});
#endif
  if (o.pool == PoolKind::kNone) return on_gpu;
  return cpu::conv_block2d_applies(
      {s, o.activation, slope,
       o.pool == PoolKind::kMax ? cpu::BlockPool::kMax : cpu::BlockPool::kAvg});
}

int64_t plain_size(const Tensor& tensor, int64_t dimension) {
  return tensor.sym_size(dimension).guard_int(__FILE__, __LINE__);
}

}  // namespace

std::string_view pool_name(PoolKind pool) {
  return kPoolNames[static_cast<int>(pool)];
}

bool conv_block2d_fuses(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& o) {
  if (!options_fuse(input, weight, bias, o)) return false;
  Conv2dShape s{};
  s.batch = 1;
  s.in_channels = plain_size(input, 1);
  s.in_height = plain_size(input, 2);
  s.in_width = plain_size(input, 3);
  s.out_channels = plain_size(weight, 0);
  s.kernel_height = plain_size(weight, 2);
  s.kernel_width = plain_size(weight, 3);
  s.stride_height = s.stride_width = s.dilation_height = s.dilation_width = s.groups = 1;
  s.padding_height = o.conv.padding[0];
  s.padding_width = o.conv.padding[1];
  constexpr int64_t kLargest = 1 << 20;  // of any size: products fit 64 bits
  for (const int64_t size : {s.in_channels, s.in_height, s.in_width, s.out_channels,
                             s.kernel_height, s.kernel_width, s.padding_height, s.padding_width})
    if (size < 0 || size > kLargest) return false;
  s.out_height = s.in_height + 2 * s.padding_height - s.kernel_height + 1;
  s.out_width = s.in_width + 2 * s.padding_width - s.kernel_width + 1;
  const int64_t window = o.pool == PoolKind::kNone ? 1 : 2;
  if (s.out_height < window || s.out_width < window || s.kernel_height < 1 || s.kernel_width < 1 ||
      plain_size(weight, 1) != s.in_channels ||
      (bias.has_value() && bias->defined() && plain_size(*bias, 0) != s.out_channels))
    return false;
  return sizes_fuse(s, o, input.is_cuda());
}

Conv2dShape parse_fused_args(const Tensor& input, const Tensor& weight, const Tensor& bias,
                             const ConvBlock2dOptions& o) {
  const Conv2dShape conv = parse_conv2d_args(input, weight, bias, o.conv);
  TORCH_CHECK_VALUE(conv_block2d_fuses(input, weight, bias, o),
                    "conv_block2d: expected a call that the fused kernels serve, got input ",
                    input.sizes(), " and weight ", weight.sizes());
  return conv;
}

ConvBlock2dOptions conv_block2d_options(at::IntArrayRef stride, at::IntArrayRef padding,
                                        at::IntArrayRef dilation, int64_t groups,
                                        std::string_view activation, double negative_slope,
                                        std::string_view pool, at::IntArrayRef pool_size,
                                        at::IntArrayRef pool_stride) {
  return {{stride, padding, dilation, groups},
          parse_activation("conv_block2d", activation),
          negative_slope,
          parse_pool(pool),
          pool_size,
          pool_stride};
}

ConvBlock2dOptions fused_options(at::IntArrayRef padding, std::string_view activation,
                                 double negative_slope, std::string_view pool) {
  return conv_block2d_options(kOne, padding, kOne, 1, activation, negative_slope, pool, kTwo, kTwo);
}

void check_fused_saved(at::IntArrayRef output_sizes, int64_t offset_bytes,
                       const Tensor& grad_output, const Tensor& output, const Tensor& offsets) {
  const int64_t taps[] = {output_sizes[0], offset_bytes};
  const auto expect = [](const char* name, const Tensor& tensor, at::IntArrayRef sizes,
                         at::ScalarType dtype) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes && tensor.scalar_type() == dtype,
                      "conv_block2d: expected ", name, " of shape ", sizes, " and ", dtype,
                      ", got ", tensor.sizes(), " and ", tensor.scalar_type());
  };
  expect("grad_output", grad_output, output_sizes, at::kFloat);
  expect("output", output, output_sizes, at::kFloat);
  expect("offsets", offsets, taps, at::kByte);
}

Tensor pooled_block2d(const Tensor& x, const ConvBlock2dOptions& o) {
  const int64_t none[] = {0, 0}, one[] = {1, 1};
  if (o.pool == PoolKind::kMax)
    return call_max_pool2d(x, {o.pool_size, o.pool_stride, none, one, false});
  if (o.pool == PoolKind::kAvg)
    return call_avg_pool2d(x, {o.pool_size, o.pool_stride, none, false, true, std::nullopt});
  return x;
}

Tensor composed_block2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const ConvBlock2dOptions& o, bool on_torch) {
  if (on_torch)
    return pooled_by_torch(activate(at::conv2d(input, weight, bias, o.conv.stride, o.conv.padding,
                                               o.conv.dilation, o.conv.groups),
                                    o.activation, o.negative_slope),
                           o);
  const Tensor x = call_conv2d(input, weight, bias, o.conv);
  const bool has_graph = differentiates(x);
  // ReLU and the maximum commute, gradients included: ties among positive values stay ties, and
  // windows without one pass nothing on. The smaller map is the cheaper one to clamp. Where torch's
  // layers would not need the result again in the backward pass, neither may these, for a user may
  // overwrite it: threshold is a relu that saves its input.
  if (o.pool == PoolKind::kMax && o.activation == Activation::kRelu) {
    const Tensor pooled = pooled_block2d(x, o);
    return has_graph ? at::threshold(pooled, 0, 0) : pooled.relu_();
  }
  if (o.pool == PoolKind::kNone && o.activation == Activation::kLeakyRelu && has_graph)
    return activate(x, o.activation, o.negative_slope);
  return pooled_block2d(activate_in_place(x, o.activation, o.negative_slope), o);
}

}  // namespace fastconv::bindings
