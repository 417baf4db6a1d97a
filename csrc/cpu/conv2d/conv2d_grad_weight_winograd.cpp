// SPDX-License-Identifier: MIT
// Weight gradient by Winograd's F(2x2, 3x3) and F(4x4, 3x3), the transpose of the forward pass
// (conv2d_winograd.cpp): 16 or 46 multiplications per tile, input and output channel instead of 36
// or 144.
//
//   u[coefficient][c][o] = sum_tiles v[coefficient][tile][c] * z[coefficient][tile][o]
//
// Per block of output tiles v and z are made, channels side by side, in place from channels_last
// and from a transposed copy otherwise; then a matrix product per coefficient adds to u.
// Outputs past the border of an odd map count as zero.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_pixel_rows.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_weight_units.h"
#include "cpu/conv2d/conv2d_winograd_tiles.h"
#include "cpu/conv2d/winograd_ukernels.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kTransformedFloats = 256 * 1024;  // v and z of one block
constexpr int64_t kSumFloats = 1024 * 1024;         // u of one part of the input channels
constexpr int64_t kMinBlockTiles = 64;
constexpr int64_t kMaxBlockTiles = 128;

struct WeightPlan {
  Isa isa;
  int64_t tile;    // outputs along one side of a Winograd tile
  int64_t parts;   // of the input channels; need no addition, so the first choice for threads
  int64_t slices;  // of the blocks, whose sums are added at the end
  int64_t slots;
  int64_t block_images;  // whole images per block, or
  int64_t block_rows;    // rows of tiles of one image
};

const WinogradKernels& winograd_of(const WeightPlan& plan) {
  return winograd_kernels(plan.isa, plan.tile);
}
int64_t tile_rows(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.out_height, plan.tile);
}
int64_t row_tiles(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.out_width, plan.tile);
}
int64_t part_channels(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.group_in_channels(), plan.parts);
}
int64_t block_count(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.batch, plan.block_images) * ceil_div(tile_rows(plan, s), plan.block_rows);
}
WeightUnits weight_units(const WeightPlan& plan, const Conv2dShape& s) {
  return {s.groups * plan.parts * plan.slices, plan.slices, plan.slots};
}

PixelSource input_source(const Conv2dGradWeight& call, int64_t image, int64_t channel,
                         int64_t channels) {
  const Strides4& in = call.input_strides;
  return {call.input + image * in.batch + channel * in.channel,
          in,
          channels,
          call.shape.in_height,
          call.shape.in_width,
          0,
          0,
          false};
}

PixelSource grad_source(const Conv2dGradWeight& call, int64_t image, int64_t channel) {
  const Strides4& go = call.grad_output_strides;
  return {call.grad_output + image * go.batch + channel * go.channel,
          go,
          call.shape.group_out_channels(),
          call.shape.out_height,
          call.shape.out_width,
          0,
          0,
          false};
}

struct ScratchLayout {
  ScratchLayout(const WeightPlan& plan, const Conv2dGradWeight& call) {
    const Conv2dShape& s = call.shape;
    const int64_t lanes = gemm_kernels(plan.isa).lanes;
    const int64_t coefficients = winograd_of(plan).coefficients;
    const int64_t tiles = plan.block_images * plan.block_rows * row_tiles(plan, s);
    const int64_t channels = part_channels(plan, s);
    in_pitch = round_up(channels, lanes);
    out_pitch = round_up(s.group_out_channels(), lanes);
    // More than a power of two may be: the streams of a transform must not compete for the same
    // sets of the caches.
    v_coefficient = (tiles + 1) * in_pitch;
    z_coefficient = (tiles + 1) * out_pitch;
    u_coefficient = channels * out_pitch + 16;
    u = coefficients * u_coefficient;
    bias = out_pitch;
    zeros = std::max(in_pitch, out_pitch);
    v = coefficients * v_coefficient;
    z = coefficients * z_coefficient;
    input_copy = pixel_rows_floats(input_source(call, 0, 0, channels), plan.block_images,
                                   plan.tile * plan.block_rows + 2);
    grad_copy =
        pixel_rows_floats(grad_source(call, 0, 0), plan.block_images, plan.tile * plan.block_rows);
    taps = 9 * channels * out_pitch;  // takes the place of what follows the sums, at the end
  }
  int64_t total() const {
    return u + bias + std::max(taps, zeros + v + z + input_copy + grad_copy);
  }

  int64_t in_pitch;
  int64_t out_pitch;
  int64_t v_coefficient;
  int64_t z_coefficient;
  int64_t u_coefficient;
  int64_t u;     // [coefficient][channel][out_pitch], and a gap behind each coefficient
  int64_t bias;  // [out_pitch]
  int64_t zeros;
  int64_t v;  // [coefficient][tile][in_pitch]
  int64_t z;  // [coefficient][block of output channels][tile][width of the block]
  int64_t input_copy;
  int64_t grad_copy;
  int64_t taps;
};

// One part of the input channels of one group, over some blocks of tiles.
class WinogradBlock {
 public:
  WinogradBlock(const WeightPlan& plan, const Conv2dGradWeight& call, int64_t group, int64_t part,
                float* memory)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        gemm_(gemm_kernels(plan.isa)),
        kernels_(conv2d_kernels(plan.isa)),
        form_(winograd_of(plan)),
        layout_(plan, call),
        group_(group),
        c0_(part * part_channels(plan, call.shape)),
        channels_(std::min(part_channels(plan, call.shape), call.shape.group_in_channels() - c0_)),
        with_bias_(part == 0 && call.grad_bias != nullptr),
        u_(memory),
        bias_(u_ + layout_.u),
        zeros_(bias_ + layout_.bias),
        v_(zeros_ + layout_.zeros),
        z_(v_ + layout_.v),
        input_copy_(z_ + layout_.z),
        grad_copy_(input_copy_ + layout_.input_copy) {}

  void accumulate(int64_t slice) {
    std::memset(zeros_, 0, sizeof(float) * layout_.zeros);
    const int64_t blocks = block_count(plan_, s_);
    const int64_t first = blocks * slice / plan_.slices;
    const int64_t last = blocks * (slice + 1) / plan_.slices;
    const int64_t strips = ceil_div(tile_rows(plan_, s_), plan_.block_rows);
    for (int64_t block = first; block < last; ++block) {
      image_ = block / strips * plan_.block_images;
      images_ = std::min(plan_.block_images, s_.batch - image_);
      first_row_ = block % strips * plan_.block_rows;
      rows_ = std::min(plan_.block_rows, tile_rows(plan_, s_) - first_row_);
      tiles_ = images_ * rows_ * row_tiles(plan_, s_);
      transform_input();
      transform_grad_output();
      multiply(block > first);
    }
  }

  // Adds the sums of `other` (same block, another slice).
  void add(const WinogradBlock& other) {
    for (int64_t i = 0; i < layout_.u + layout_.bias; ++i) u_[i] += other.u_[i];
  }

  void store() {
    const int64_t first_out = group_ * s_.group_out_channels();
    float* taps = zeros_;
    for (int64_t c = 0; c < channels_; ++c)
      form_.transform_weight_sums({u_ + c * layout_.out_pitch, layout_.u_coefficient,
                                   s_.group_out_channels(), taps + c * layout_.out_pitch,
                                   channels_ * layout_.out_pitch});
    store_weight_sums(kernels_, call_, {group_, c0_, channels_}, taps, layout_.out_pitch);
    if (with_bias_) std::copy_n(bias_, s_.group_out_channels(), call_.grad_bias + first_out);
  }

 private:
  void transform_input() {
    const int64_t patch = form_.patch();
    const int64_t top = form_.tile * first_row_ - s_.padding_height;
    const PixelRows input = pixel_rows(
        kernels_, input_source(call_, image_, group_ * s_.group_in_channels() + c0_, channels_),
        images_, top, top + form_.tile * rows_ + 2, input_copy_);
    WinogradInput call{};
    call.channels = channels_;
    call.coefficient_pitch = layout_.v_coefficient;
    for_each_tile(block(), [&](int64_t index, int64_t n, int64_t i, int64_t j) {
      for (int64_t r = 0; r < patch; ++r) {
        const int64_t row = i + r - s_.padding_height;
        const bool row_inside = row >= 0 && row < s_.in_height;
        const float* line = input.origin + n * input.image_pitch + row * input.row_pitch;
        for (int64_t q = 0; q < patch; ++q) {
          const int64_t column = j + q - s_.padding_width;
          const bool inside = row_inside && column >= 0 && column < s_.in_width;
          call.pixels[patch * r + q] = inside ? line + column * input.pixel_pitch : zeros_;
        }
      }
      call.v = v_ + index * layout_.in_pitch;
      form_.transform_input(call);
    });
  }

  void transform_grad_output() {
    const int64_t tile = form_.tile;
    const int64_t top = tile * first_row_;
    const PixelRows grad =
        pixel_rows(kernels_, grad_source(call_, image_, group_ * s_.group_out_channels()), images_,
                   top, top + tile * rows_, grad_copy_);
    const int64_t width = gemm_.place_wide.vectors * gemm_.lanes;
    WinogradGradOutput call{};
    call.coefficient_pitch = layout_.z_coefficient;
    for_each_tile(block(), [&](int64_t index, int64_t n, int64_t i, int64_t j) {
      const float* pixels[kMaxWinogradTile * kMaxWinogradTile];
      for (int64_t y = 0; y < tile; ++y)
        for (int64_t x = 0; x < tile; ++x) {
          const bool inside = i + y < s_.out_height && j + x < s_.out_width;
          pixels[tile * y + x] = inside ? grad.origin + n * grad.image_pitch +
                                              (i + y) * grad.row_pitch + (j + x) * grad.pixel_pitch
                                        : zeros_;
        }
      for (int64_t o = 0; o < s_.group_out_channels(); o += width) {
        call.channels = std::min(width, s_.group_out_channels() - o);
        for (int64_t p = 0; p < tile * tile; ++p)
          call.pixels[p] = pixels[p] == zeros_ ? zeros_ : pixels[p] + o;
        call.z = z_ + o * tiles_ + index * round_up(call.channels, gemm_.lanes);
        form_.transform_grad_output(call);
      }
    });
  }

  void multiply(bool accumulate) {
    const int64_t width = gemm_.place_wide.vectors * gemm_.lanes;
    const GemmRun run{0, 0, tiles_};
    for (int64_t k = 0; k < form_.coefficients; ++k)
      for (int64_t o = 0; o < s_.group_out_channels(); o += width) {
        const int64_t columns = std::min(width, s_.group_out_channels() - o);
        const GemmPlaceFamily& family =
            columns > gemm_.lanes ? gemm_.place_wide : gemm_.place_narrow;
        const float* z = z_ + k * layout_.z_coefficient + o * tiles_;
        const int64_t block = ceil_div(channels_, ceil_div(channels_, family.max_rows));
        for (int64_t c = 0; c < channels_; c += block)
          family.columns[std::min(block, channels_ - c) - 1](
              {&run, 1, v_ + k * layout_.v_coefficient + c, layout_.in_pitch, z,
               u_ + k * layout_.u_coefficient + c * layout_.out_pitch + o, layout_.out_pitch,
               accumulate});
        if (with_bias_ && k == form_.sum_coefficient) {
          const float one = 1.0f;
          family.columns[0]({&run, 1, &one, 0, z, bias_ + o, layout_.out_pitch, accumulate});
        }
      }
  }

  TileBlock block() const { return {images_, first_row_, rows_, row_tiles(plan_, s_), form_.tile}; }

  const WeightPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const GemmKernels& gemm_;
  const Conv2dKernels& kernels_;
  const WinogradKernels& form_;
  const ScratchLayout layout_;
  const int64_t group_;
  const int64_t c0_;
  const int64_t channels_;
  const bool with_bias_;
  float* u_;
  float* bias_;
  float* zeros_;
  float* v_;
  float* z_;
  float* input_copy_;
  float* grad_copy_;
  int64_t image_ = 0;  // the block
  int64_t images_ = 0;
  int64_t first_row_ = 0;
  int64_t rows_ = 0;
  int64_t tiles_ = 0;
};

WeightPlan plan_blocks(const Conv2dShape& s, int64_t winograd_tile, Isa isa, int64_t threads) {
  WeightPlan plan{};
  plan.isa = isa;
  plan.tile = winograd_tile;
  const int64_t coefficients = winograd_of(plan).coefficients;
  const int64_t wanted = ceil_div(threads, s.groups);
  const int64_t tile = gemm_kernels(isa).place_wide.max_rows;
  const int64_t sums = coefficients * s.group_in_channels() * s.group_out_channels();
  // As many for every thread.
  const int64_t most = ceil_div(sums, kSumFloats);
  plan.parts = std::clamp<int64_t>(s.group_in_channels() / (2 * tile), 1,
                                   most > wanted ? round_up(most, wanted) : wanted);
  plan.parts = ceil_div(s.group_in_channels(), part_channels(plan, s));
  const int64_t tile_floats = coefficients * (part_channels(plan, s) + s.group_out_channels());
  const int64_t tiles =
      std::clamp(kTransformedFloats / tile_floats, kMinBlockTiles, kMaxBlockTiles);
  const int64_t plane = tile_rows(plan, s) * row_tiles(plan, s);
  plan.block_images = std::clamp<int64_t>(tiles / plane, 1, s.batch);
  const int64_t rows = std::clamp<int64_t>(tiles / row_tiles(plan, s), 1, tile_rows(plan, s));
  plan.block_rows = ceil_div(tile_rows(plan, s), ceil_div(tile_rows(plan, s), rows));
  plan.slices = std::clamp<int64_t>(ceil_div(wanted, plan.parts), 1, block_count(plan, s));
  plan.slots = std::clamp<int64_t>(threads, 1, weight_units(plan, s).count);
  return plan;
}

}  // namespace

bool weight_winograd_applies(const Conv2dShape& s) {
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_height == 1 &&
         s.stride_width == 1 && s.dilation_height == 1 && s.dilation_width == 1;
}

int64_t weight_winograd_scratch_floats(const Conv2dGradWeight& call, int64_t tile, Isa isa,
                                       int64_t threads) {
  const WeightPlan plan = plan_blocks(call.shape, tile, isa, threads);
  return weight_units(plan, call.shape).pieces() * ScratchLayout(plan, call).total();
}

void grad_weight_winograd(const Conv2dPlan& call_plan, const Conv2dGradWeight& call, int64_t tile,
                          float* scratch) {
  const Conv2dShape& s = call.shape;
  const WeightPlan plan = plan_blocks(s, tile, call_plan.isa, call_plan.threads);
  const int64_t floats = ScratchLayout(plan, call).total();
  run_weight_units(weight_units(plan, s), [&](int64_t block, int64_t piece) {
    return WinogradBlock(plan, call, block / plan.parts, block % plan.parts,
                         scratch + piece * floats);
  });
}

}  // namespace fastconv::cpu
