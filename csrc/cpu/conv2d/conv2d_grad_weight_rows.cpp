// SPDX-License-Identifier: MIT
// Weight gradient from pixels that are rows of channels. A register tile holds 14 input channels x
// 32 output channels of one tap; a step is one pixel: 14 neighbouring floats of the input, each
// broadcast against two vectors of grad_output. Pixels whose tap lies outside the input are left
// out, so borders cost nothing.
//
// Work is cut into chunks of pixels (rows of an image, or whole small images). Per chunk and block
// of output channels grad_output is packed once and then serves all taps and input channels from
// L1; the chunk's input stays in L2, in place or transposed to [pixel][channel].
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_pixel_rows.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_weight_units.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kChunkPixels = 256;              // times 32 output channels: 32 KB of L1
constexpr int64_t kChunkInputFloats = 160 * 1024;  // stay in L2

struct WeightPlan {
  Isa isa;
  int64_t parts;   // of the input channels; need no addition, so the first choice
  int64_t slices;  // of the chunks, whose sums are added at the end
  int64_t slots;
  int64_t chunk_images;  // whole images per chunk, or
  int64_t chunk_rows;    // rows of one image
};

int64_t part_channels(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.group_in_channels(), plan.parts);
}

int64_t chunk_count(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.batch, plan.chunk_images) * ceil_div(s.out_height, plan.chunk_rows);
}

WeightUnits weight_units(const WeightPlan& plan, const Conv2dShape& s) {
  return {s.groups * plan.parts * plan.slices, plan.slices, plan.slots};
}

// Input rows from the first to the last that `rows` neighbouring output rows reach.
int64_t reached_rows(const Conv2dShape& s, int64_t rows) {
  return (rows - 1) * s.stride_height + (s.kernel_height - 1) * s.dilation_height + 1;
}

bool folded(const Conv2dShape& s) {
  return s.dilation_width == 1 && folding_pays(s.group_in_channels(), s.kernel_width);
}

// Runs of floats that a step of a tile may read together, and how many of them make up the kernel:
// the channels of a pixel for every tap, or the pixels of a kernel row for every row.
int64_t segment_floats(const Conv2dShape& s, int64_t channels) {
  return folded(s) ? s.kernel_width * channels : channels;
}
int64_t segments(const Conv2dShape& s) {
  return folded(s) ? s.kernel_height : s.taps();
}

PixelSource part_input(const Conv2dGradWeight& call, int64_t image, int64_t channel,
                       int64_t channels) {
  const Conv2dShape& s = call.shape;
  const Strides4& in = call.input_strides;
  PixelSource source{call.input + image * in.batch + channel * in.channel,
                     in,
                     channels,
                     s.in_height,
                     s.in_width,
                     0,
                     0,
                     folded(s)};
  if (source.folded) {
    const int64_t reach = (s.out_width - 1) * s.stride_width + s.kernel_width;
    source.left = s.padding_width;
    source.right = std::max<int64_t>(0, reach - s.padding_width - s.in_width);
  }
  return source;
}

struct ScratchLayout {
  ScratchLayout(const WeightPlan& plan, const Conv2dGradWeight& call) {
    const Conv2dShape& s = call.shape;
    const GemmKernels& gemm = gemm_kernels(plan.isa);
    const int64_t width = gemm.place_wide.vectors * gemm.lanes;
    out_pitch = round_up(s.group_out_channels(), gemm.lanes);
    sum_rows = part_channels(plan, s) * s.taps() + 1;  // the last one is the bias gradient
    sums = sum_rows * out_pitch;
    packed = plan.chunk_images * plan.chunk_rows * s.out_width * width;
    copy = pixel_rows_floats(part_input(call, 0, 0, part_channels(plan, s)), plan.chunk_images,
                             reached_rows(s, plan.chunk_rows));
  }
  int64_t total() const { return sums + packed + copy; }

  int64_t out_pitch;
  int64_t sum_rows;
  int64_t sums;    // [tap][channel][out_pitch], then the bias
  int64_t packed;  // grad_output of one chunk and block, [pixel][width]
  int64_t copy;    // input of one chunk, [pixel][channel]
};

// One part of the input channels of one group, over some chunks.
class RowsBlock {
 public:
  RowsBlock(const WeightPlan& plan, const Conv2dGradWeight& call, int64_t group, int64_t part,
            float* memory)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        gemm_(gemm_kernels(plan.isa)),
        kernels_(conv2d_kernels(plan.isa)),
        layout_(plan, call),
        group_(group),
        c0_(part * part_channels(plan, call.shape)),
        channels_(std::min(part_channels(plan, call.shape), call.shape.group_in_channels() - c0_)),
        with_bias_(part == 0 && call.grad_bias != nullptr),
        sums_(memory),
        packed_(sums_ + layout_.sums),
        copy_(packed_ + layout_.packed),
        segment_(segment_floats(call.shape, channels_)),
        runs_(segments(call.shape)) {}

  void accumulate(int64_t slice) {
    const int64_t chunks = chunk_count(plan_, s_);
    const int64_t first = chunks * slice / plan_.slices;
    const int64_t last = chunks * (slice + 1) / plan_.slices;
    const int64_t strips = ceil_div(s_.out_height, plan_.chunk_rows);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      image_ = chunk / strips * plan_.chunk_images;
      images_ = std::min(plan_.chunk_images, s_.batch - image_);
      first_row_ = chunk % strips * plan_.chunk_rows;
      rows_ = std::min(plan_.chunk_rows, s_.out_height - first_row_);
      locate_input();
      list_runs();
      multiply(chunk > first);
    }
  }

  // Adds the sums of `other` (same block, another slice).
  void add(const RowsBlock& other) {
    for (int64_t i = 0; i < layout_.sums; ++i) sums_[i] += other.sums_[i];
  }

  void store() const {
    const int64_t taps = s_.taps();
    const int64_t first_out = group_ * s_.group_out_channels();
    // Sums are ordered by tap, then channel, folded or not.
    store_weight_sums(kernels_, call_, {group_, c0_, channels_}, sums_, layout_.out_pitch);
    if (with_bias_)
      std::copy_n(sums_ + channels_ * taps * layout_.out_pitch, s_.group_out_channels(),
                  call_.grad_bias + first_out);
  }

 private:
  void locate_input() {
    const PixelSource source =
        part_input(call_, image_, group_ * s_.group_in_channels() + c0_, channels_);
    const int64_t top = first_row_ * s_.stride_height - s_.padding_height;
    input_ = pixel_rows(kernels_, source, images_, top, top + reached_rows(s_, rows_), copy_);
  }

  // Output columns [begin, end) at which kernel column q reads inside the input.
  struct Columns {
    int64_t begin;
    int64_t end;
  };
  Columns columns_inside(int64_t q) const {
    const int64_t shift = q * s_.dilation_width - s_.padding_width;
    const int64_t begin =
        shift >= 0 ? 0 : std::min(ceil_div(-shift, s_.stride_width), s_.out_width);
    const int64_t end =
        shift >= s_.in_width
            ? 0
            : std::min(ceil_div(s_.in_width - shift, s_.stride_width), s_.out_width);
    return {begin, std::max(begin, end)};
  }

  // The runs of pixels each segment reads inside the input; runs that continue each other are one.
  void list_runs() {
    const int64_t step = s_.stride_width * input_.pixel_pitch;
    const bool fold = folded(s_);
    const int64_t row_segments = fold ? 1 : s_.kernel_width;
    for (int64_t r = 0; r < s_.kernel_height; ++r)
      for (int64_t q = 0; q < row_segments; ++q) {
        std::vector<GemmRun>& runs = runs_[r * row_segments + q];
        runs.clear();
        const Columns columns = fold ? Columns{0, s_.out_width} : columns_inside(q);
        const int64_t depth = columns.end - columns.begin;
        if (depth == 0) continue;
        const int64_t column =
            columns.begin * s_.stride_width + q * s_.dilation_width - s_.padding_width;
        for (int64_t n = 0; n < images_; ++n)
          for (int64_t i = 0; i < rows_; ++i) {
            const int64_t row =
                (first_row_ + i) * s_.stride_height + r * s_.dilation_height - s_.padding_height;
            if (row < 0 || row >= s_.in_height) continue;
            const int64_t a =
                n * input_.image_pitch + row * input_.row_pitch + column * input_.pixel_pitch;
            const int64_t b = (n * rows_ + i) * s_.out_width + columns.begin;
            GemmRun* last = runs.empty() ? nullptr : &runs.back();
            if (last != nullptr && last->a + last->depth * step == a &&
                last->b + last->depth == b) {
              last->depth += depth;
            } else {
              runs.push_back({a, b, depth});
            }
          }
      }
  }

  void multiply(bool accumulate) {
    const int64_t width = gemm_.place_wide.vectors * gemm_.lanes;
    for (int64_t o = 0; o < s_.group_out_channels(); o += width) {
      const int64_t columns = std::min(width, s_.group_out_channels() - o);
      const GemmPlaceFamily& family = columns > gemm_.lanes ? gemm_.place_wide : gemm_.place_narrow;
      pack_grad_output(o, columns, family.vectors * gemm_.lanes);
      const int64_t blocks = ceil_div(segment_, family.max_rows);
      const int64_t block = ceil_div(segment_, blocks);
      GemmColumnsTile tile{};
      tile.a_step = s_.stride_width * input_.pixel_pitch;
      tile.b = packed_;
      tile.c_pitch = layout_.out_pitch;
      tile.accumulate = accumulate;
      for (int64_t c = 0; c < segment_; c += block) {
        const int64_t height = std::min(block, segment_ - c);
        tile.a = input_.origin + c;
        for (size_t segment = 0; segment < runs_.size(); ++segment) {
          tile.runs = runs_[segment].data();
          tile.run_count = static_cast<int64_t>(runs_[segment].size());
          tile.c = sums_ + (static_cast<int64_t>(segment) * segment_ + c) * layout_.out_pitch + o;
          family.columns[height - 1](tile);
        }
      }
      if (with_bias_) add_bias(o, family, accumulate);
    }
  }

  // The bias gradient is one more row of the product, whose input is always one.
  void add_bias(int64_t o, const GemmPlaceFamily& family, bool accumulate) {
    const float one = 1.0f;
    const GemmRun run{0, 0, images_ * rows_ * s_.out_width};
    family.columns[0]({&run, 1, &one, 0, packed_,
                       sums_ + channels_ * s_.taps() * layout_.out_pitch + o, layout_.out_pitch,
                       accumulate});
  }

  void pack_grad_output(int64_t o, int64_t columns, int64_t pitch) {
    const Strides4& go = call_.grad_output_strides;
    const int64_t pixels = rows_ * s_.out_width;
    // Columns past the last channel are multiplied but never stored; zero keeps them harmless.
    if (columns < pitch) std::memset(packed_, 0, sizeof(float) * images_ * pixels * pitch);
    const bool dense = go.row == s_.out_width * go.column;
    const int64_t pieces = dense ? 1 : rows_;
    const int64_t length = pixels / pieces;
    for (int64_t n = 0; n < images_; ++n)
      for (int64_t piece = 0; piece < pieces; ++piece)
        kernels_.copy_block({columns, length,
                             call_.grad_output + (image_ + n) * go.batch +
                                 (group_ * s_.group_out_channels() + o) * go.channel +
                                 (first_row_ + piece) * go.row,
                             go.channel, go.column, packed_ + (n * pixels + piece * length) * pitch,
                             1, pitch});
  }

  const WeightPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const GemmKernels& gemm_;
  const Conv2dKernels& kernels_;
  const ScratchLayout layout_;
  const int64_t group_;
  const int64_t c0_;
  const int64_t channels_;
  const bool with_bias_;
  float* sums_;
  float* packed_;
  float* copy_;
  const int64_t segment_;
  std::vector<std::vector<GemmRun>> runs_;  // per segment
  int64_t image_ = 0;                       // the chunk
  int64_t images_ = 0;
  int64_t first_row_ = 0;
  int64_t rows_ = 0;
  PixelRows input_{};
};

WeightPlan plan_blocks(const Conv2dGradWeight& call, Isa isa, int64_t threads) {
  const Conv2dShape& s = call.shape;
  WeightPlan plan{};
  plan.isa = isa;
  const int64_t wanted = ceil_div(threads, s.groups);
  const int64_t tile = gemm_kernels(isa).place_wide.max_rows;
  plan.parts = folded(s) ? 1 : std::clamp<int64_t>(s.group_in_channels() / (2 * tile), 1, wanted);
  plan.parts = ceil_div(s.group_in_channels(), part_channels(plan, s));
  const int64_t pixel_floats = part_channels(plan, s) * s.stride_height * s.stride_width;
  const int64_t pixels = std::clamp<int64_t>(kChunkInputFloats / pixel_floats, 32, kChunkPixels);
  plan.chunk_images = std::clamp<int64_t>(pixels / s.out_pixels(), 1, s.batch);
  const int64_t rows = std::clamp<int64_t>(pixels / s.out_width, 1, s.out_height);
  plan.chunk_rows = ceil_div(s.out_height, ceil_div(s.out_height, rows));
  plan.slices = std::clamp<int64_t>(ceil_div(wanted, plan.parts), 1, chunk_count(plan, s));
  plan.slots = std::clamp<int64_t>(threads, 1, weight_units(plan, s).count);
  return plan;
}

}  // namespace

int64_t weight_rows_scratch_floats(const Conv2dGradWeight& call, Isa isa, int64_t threads) {
  const WeightPlan plan = plan_blocks(call, isa, threads);
  return weight_units(plan, call.shape).pieces() * ScratchLayout(plan, call).total();
}

void grad_weight_rows(const Conv2dPlan& call_plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const WeightPlan plan = plan_blocks(call, call_plan.isa, call_plan.threads);
  const int64_t floats = ScratchLayout(plan, call).total();
  run_weight_units(weight_units(plan, s), [&](int64_t block, int64_t piece) {
    return RowsBlock(plan, call, block / plan.parts, block % plan.parts, scratch + piece * floats);
  });
}

}  // namespace fastconv::cpu
