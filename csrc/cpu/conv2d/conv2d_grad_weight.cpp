// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_grad_weight.h"

#include "common/checked.h"
#include "cpu/conv2d/conv2d_dots.h"
#include "cpu/conv2d/depthwise.h"
#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

enum class WeightAlgorithm {
  kPanel,
  kDirect,
  kDot,
  kImages,
  kRows,
  kWinograd,
  kWinograd4x4,
  kDepthwise,
  kImpossible
};

const char* algorithm_name(WeightAlgorithm algorithm) {
  switch (algorithm) {
    case WeightAlgorithm::kPanel:
      return "panel";
    case WeightAlgorithm::kDirect:
      return "direct";
    case WeightAlgorithm::kDot:
      return "dot";
    case WeightAlgorithm::kImages:
      return "image_vectors";
    case WeightAlgorithm::kRows:
      return "rows";
    case WeightAlgorithm::kWinograd:
      return "winograd";
    case WeightAlgorithm::kWinograd4x4:
      return "winograd_4x4";
    case WeightAlgorithm::kDepthwise:
      return "depthwise";
    case WeightAlgorithm::kImpossible:
      break;
  }
  return "impossible";
}

bool algorithm_applies(WeightAlgorithm algorithm, const Conv2dGradWeight& call) {
  switch (algorithm) {
    case WeightAlgorithm::kPanel:
    case WeightAlgorithm::kRows:
      return true;
    case WeightAlgorithm::kDirect:
      return weight_direct_applies(call.shape);
    case WeightAlgorithm::kDot:
      return weight_dot_applies(call);
    case WeightAlgorithm::kImages:
      return weight_images_applies(call);
    case WeightAlgorithm::kWinograd:
    case WeightAlgorithm::kWinograd4x4:
      return weight_winograd_applies(call.shape);
    case WeightAlgorithm::kDepthwise:
      return depthwise_applies(call);
    case WeightAlgorithm::kImpossible:
      break;
  }
  return false;
}

int64_t winograd_tiles(const Conv2dShape& s, int64_t tile) {
  return s.batch * ceil_div(s.out_height, tile) * ceil_div(s.out_width, tile);
}

// Winograd wins where there are enough tiles to pay for the transformation of the sums, which are
// nearly twice as many; the more so when they leave the cache.
bool weight_winograd_pays(const Conv2dShape& s) {
  const int64_t few_channels = s.groups > 1 ? 32 : 12;
  constexpr int64_t kFewTiles = 16;
  constexpr int64_t kManyTiles = 128;
  constexpr int64_t kCachedSums = 64 * 1024;
  const int64_t in = s.group_in_channels();
  const int64_t out = s.group_out_channels();
  if (!weight_winograd_applies(s) || in < few_channels || out < few_channels) return false;
  return winograd_tiles(s, 2) >= (in * out <= kCachedSums ? kFewTiles : kManyTiles);
}

// Of the two forms 4 x 4 has the fewer products unless the border wastes too much of its tiles, and
// nearly three times as many sums, which have to stay in the cache. The factor is the least gain in
// products that showed as a gain in time.
bool weight_tiles_of_4_pay(const Conv2dShape& s, Isa isa) {
  constexpr int64_t kFewTiles = 64;
  constexpr int64_t kCachedSums = 16 * 1024;
  constexpr double kGain = 1.15;
  const auto products = [&](int64_t tile) {
    return static_cast<double>(winograd_kernels(isa, tile).coefficients * winograd_tiles(s, tile));
  };
  return winograd_tiles(s, 4) >= kFewTiles &&
         s.group_in_channels() * s.group_out_channels() <= kCachedSums &&
         kGain * products(4) < products(2);
}

// Estimates per output row. Vectors along the pixels lose lanes to the width of the map; vectors
// along the output channels, to their number, and take a transposition of the gradient.
double dot_cycles(const Conv2dShape& s, Isa isa) {
  const int64_t vectors = ceil_div(s.out_width, gemm_kernels(isa).lanes);
  const DotBlocks blocks =
      choose_dot_blocks(conv2d_kernels(isa).dot, s.in_channels * s.taps() + 1, s.out_channels);
  return static_cast<double>(vectors) * blocks.cycles * 1.1;
}
double transposing_cycles(const Conv2dShape& s, int64_t lanes) {
  constexpr double kTranspose = 6.0;
  const double terms = static_cast<double>(s.in_channels * s.taps());
  return static_cast<double>(s.out_width * ceil_div(s.out_channels, lanes)) *
         (0.5 * terms + kTranspose);
}

// As dot, but on whole vectors of images, whose loads straddle no cache lines, and with both
// operands transposed. A slot's sums, a vector each, are cleared and added up.
double images_cycles(const Conv2dShape& s, Isa isa) {
  constexpr double kTranspose = 5.0, kSum = 8.0;
  const DotBlocks blocks =
      choose_dot_blocks(conv2d_kernels(isa).dot, s.in_channels * s.taps() + 1, s.out_channels);
  const double lanes = static_cast<double>(gemm_kernels(isa).lanes);
  const double width = static_cast<double>(s.out_width);
  const double sums = static_cast<double>(s.in_channels * s.taps() * s.out_channels);
  const double runs = std::max(1.0, lanes / static_cast<double>(s.batch));
  const double multiply = width / lanes * blocks.cycles * 1.05 / weight_images_fill(s, isa);
  const double transposes = width * static_cast<double>(s.out_channels + s.in_channels) / lanes;
  return multiply + kTranspose * runs * transposes +
         kSum * sums / static_cast<double>(s.batch * s.out_height);
}

// Which algorithm is the fastest was measured on the layers in benchmarks/shapes, see
// benchmarks/results. Rows wins where pixels are rows already; where many taps and output channels
// share the transposition of a pixel; and on small maps, where direct would add its registers to
// sums in L2 too often. Panel wins for 1 x 1 kernels on larger maps, and for few input channels.
WeightAlgorithm choose_algorithm(const Conv2dGradWeight& call, Isa isa) {
  constexpr int64_t kManyPixels = 128;
  constexpr int64_t kFewSums = 128 * 1024;
  constexpr int64_t kMaxDotSums = 8 * 1024;    // a vector each
  constexpr int64_t kMaxImageSums = 4 * 1024;  // likewise, in L2 beside both operands
  constexpr int64_t kFewChannels = 8;
  constexpr int64_t kManyChannels = 512;
  const Conv2dShape& s = call.shape;
  if (depthwise_applies(call)) return WeightAlgorithm::kDepthwise;
  const int64_t sums = s.in_channels * s.taps() * s.out_channels;
  const int64_t lanes = gemm_kernels(isa).lanes;
  const bool many_pixels = s.out_pixels() >= kManyPixels;
  // Too few to be the rows of a tile, unless those of a whole kernel row are taken together.
  const int64_t neighbours = s.dilation_width > 1 ? 1 : s.kernel_width;
  const bool few_channels = s.group_in_channels() * neighbours < kFewChannels;
  if (weight_winograd_pays(s))
    return weight_tiles_of_4_pay(s, isa) ? WeightAlgorithm::kWinograd4x4
                                         : WeightAlgorithm::kWinograd;
  // Rows reads single pixels of a strided image, which compete for the same lines of the caches
  // when they have many channels.
  const bool skips_pixels = s.taps() == 1 && s.stride_height * s.stride_width > 1;
  if (skips_pixels && s.group_in_channels() >= kManyChannels) return WeightAlgorithm::kPanel;
  if (call.input_strides.channel == 1 && !few_channels) return WeightAlgorithm::kRows;
  const bool panel_suits = skips_pixels || weight_panel_in_place(call, isa);
  const WeightAlgorithm other =
      few_channels || panel_suits ? WeightAlgorithm::kPanel : WeightAlgorithm::kRows;
  // What the two estimates leave out: loads that straddle cache lines, and storing the tiles' sums.
  const double others = std::min(1.35 * dot_cycles(s, isa), 1.16 * transposing_cycles(s, lanes));
  const bool images_pay = weight_images_applies(call) && s.taps() > 1 && sums <= kMaxImageSums &&
                          images_cycles(s, isa) < others;
  if (weight_dot_applies(call) && s.taps() > 1 && sums <= kMaxDotSums &&
      dot_cycles(s, isa) < transposing_cycles(s, lanes))
    return images_pay ? WeightAlgorithm::kImages : WeightAlgorithm::kDot;
  if (images_pay) return WeightAlgorithm::kImages;
  if (!weight_direct_applies(s)) return other;
  const bool many_taps = s.taps() >= 5 * 5 && s.group_in_channels() >= 2 * kFewChannels &&
                         s.group_out_channels() > 2 * lanes;
  return !many_taps && (many_pixels || sums <= kFewSums) ? WeightAlgorithm::kDirect : other;
}

WeightAlgorithm chosen_or_forced(const Conv2dPlan& plan, const Conv2dGradWeight& call) {
  if (plan.forced == nullptr) return choose_algorithm(call, plan.isa);
  for (WeightAlgorithm algorithm :
       {WeightAlgorithm::kPanel, WeightAlgorithm::kDirect, WeightAlgorithm::kDot,
        WeightAlgorithm::kImages, WeightAlgorithm::kRows, WeightAlgorithm::kWinograd,
        WeightAlgorithm::kWinograd4x4, WeightAlgorithm::kDepthwise})
    if (!is_other(plan.forced, algorithm_name(algorithm)) && algorithm_applies(algorithm, call))
      return algorithm;
  return WeightAlgorithm::kImpossible;
}

}  // namespace

Conv2dPlan plan_conv2d_grad_weight(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  Conv2dPlan plan{active_isa(), worthwhile_threads(s.multiply_adds(), 0), 0,
                  forced_algorithm(KernelId::kConv2dGradWeight), true};
  switch (chosen_or_forced(plan, call)) {
    case WeightAlgorithm::kPanel:
      plan.scratch_floats = weight_panel_scratch_floats(call, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDirect:
      plan.scratch_floats =
          weight_direct_scratch_floats(s, WeightVectors::kChannels, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDot:
      plan.scratch_floats =
          weight_direct_scratch_floats(s, WeightVectors::kPixels, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kImages:
      plan.scratch_floats = weight_images_scratch_floats(s, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kRows:
      plan.takes_channels_last = true;
      plan.scratch_floats = weight_rows_scratch_floats(call, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kWinograd:
      plan.takes_channels_last = true;
      plan.scratch_floats = weight_winograd_scratch_floats(call, 2, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kWinograd4x4:
      plan.takes_channels_last = true;
      plan.scratch_floats = weight_winograd_scratch_floats(call, 4, plan.isa, plan.threads);
      break;
    case WeightAlgorithm::kDepthwise:
      plan.scratch_floats = depthwise_scratch_floats(call, plan.threads);
      break;
    case WeightAlgorithm::kImpossible:
      plan.possible = false;
      break;
  }
  return plan;
}

void conv2d_grad_weight(const Conv2dPlan& plan, const Conv2dGradWeight& call, float* scratch) {
  const WeightAlgorithm algorithm = chosen_or_forced(plan, call);
  record_kernel(KernelId::kConv2dGradWeight, algorithm_name(algorithm), plan.isa);
  switch (algorithm) {
    case WeightAlgorithm::kPanel:
      return grad_weight_panel(plan, call, scratch);
    case WeightAlgorithm::kDirect:
      return grad_weight_direct(plan, call, WeightVectors::kChannels, scratch);
    case WeightAlgorithm::kDot:
      return grad_weight_direct(plan, call, WeightVectors::kPixels, scratch);
    case WeightAlgorithm::kImages:
      return grad_weight_images(plan, call, scratch);
    case WeightAlgorithm::kRows:
      return grad_weight_rows(plan, call, scratch);
    case WeightAlgorithm::kWinograd:
      return grad_weight_winograd(plan, call, 2, scratch);
    case WeightAlgorithm::kWinograd4x4:
      return grad_weight_winograd(plan, call, 4, scratch);
    case WeightAlgorithm::kDepthwise:
      return depthwise_grad_weight(plan, call, scratch);
    case WeightAlgorithm::kImpossible:
      return;
  }
}

}  // namespace fastconv::cpu
