// SPDX-License-Identifier: MIT
// The panel algorithm of conv2d_grad_weight.h. The bias gradient is one more panel row, all ones.
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_grad_weight.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/conv2d/conv2d_weight_units.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kChunkPixels = 256;  // pixels per pass: kPanelPitch without its padding
constexpr int64_t kMaxRows = 256;      // panel rows: 256 x 272 floats are 272 KB of L2

// Per task: the panel, the transposed grad_output of one block of output channels, the sums.
struct ScratchLayout {
  int64_t out_pitch;  // output channels of a group rounded up to whole vectors
  int64_t rows;       // panel rows, the row of ones included
  int64_t panel() const { return rows * kPanelPitch; }
  int64_t sums() const { return rows * out_pitch; }
  int64_t task(int64_t transposed) const { return panel() + transposed + sums(); }
};

int64_t wide_columns(const GemmKernels& kernels) {
  return kernels.panel_wide.vectors * kernels.lanes;
}

// The blocking of one call.
struct WeightPlan {
  Isa isa;
  int64_t slots;           // pieces that run in parallel
  int64_t block_channels;  // input channels of one panel
  int64_t pixel_slices;    // independent partial sums over the pixels
  int64_t image_chunks;    // in place: pieces of an image, each a run of pixels; 0: by panel
};

// The tiles that read rows of pixels in place.
const GemmFamily& in_place_family(const GemmKernels& kernels) {
  return kernels.rows_narrow.vectors > 1 ? kernels.rows_narrow : kernels.rows_wide;
}

// Whether the input's pixels are numbered as those of the output, without gaps.
bool reads_flat_images(const Conv2dGradWeight& call) {
  const Conv2dShape& s = call.shape;
  return s.taps() == 1 && s.stride_height == 1 && s.stride_width == 1 && s.padding_height == 0 &&
         s.padding_width == 0 && call.input_strides.column == 1 &&
         call.input_strides.row == s.in_width;
}

ScratchLayout scratch_layout(const WeightPlan& plan, const Conv2dShape& s) {
  return {round_up(s.group_out_channels(), gemm_kernels(plan.isa).lanes),
          s.taps() * plan.block_channels + 1};
}

int64_t task_floats(const WeightPlan& plan, const Conv2dShape& s) {
  return scratch_layout(plan, s).task(kChunkPixels * wide_columns(gemm_kernels(plan.isa)));
}

int64_t channel_blocks(const WeightPlan& plan, const Conv2dShape& s) {
  return ceil_div(s.group_in_channels(), plan.block_channels);
}

WeightUnits weight_units(const WeightPlan& plan, const Conv2dShape& s) {
  return {s.groups * channel_blocks(plan, s) * plan.pixel_slices, plan.pixel_slices, plan.slots};
}

// Input position of each kernel row and column relative to tap offset (0, 0).
struct KernelTaps {
  std::vector<int64_t> rows;
  std::vector<int64_t> columns;
};

// Sums over the pixels of one slice, for one group and one block of input channels.
class WeightBlock {
 public:
  WeightBlock(const WeightPlan& plan, const Conv2dGradWeight& call, const KernelTaps& taps,
              int64_t group, int64_t block, float* scratch)
      : plan_(plan),
        call_(call),
        s_(call.shape),
        taps_(taps),
        gemm_(gemm_kernels(plan.isa)),
        kernels_(conv2d_kernels(plan.isa)),
        layout_(scratch_layout(plan, call.shape)),
        group_(group),
        c0_(block * plan.block_channels),
        channels_(std::min(plan.block_channels, call.shape.group_in_channels() - c0_)),
        weight_rows_(call.shape.taps() * channels_),
        has_ones_(call.grad_bias != nullptr && block == 0),
        panel_(scratch),
        transposed_(panel_ + layout_.panel()),
        sums_(transposed_ + kChunkPixels * wide_columns(gemm_)) {}

  void accumulate(int64_t slice) {
    if (plan_.image_chunks > 0) {
      accumulate_in_place(slice);
      return;
    }
    const int64_t pixels = s_.batch * s_.out_pixels();
    const int64_t begin = pixels * slice / plan_.pixel_slices;
    const int64_t end = pixels * (slice + 1) / plan_.pixel_slices;
    if (has_ones_) std::fill_n(panel_ + weight_rows_ * kPanelPitch, kChunkPixels, 1.0f);
    if (begin == end) std::memset(sums_, 0, sizeof(float) * layout_.sums());
    for (int64_t first = begin; first < end; first += kChunkPixels) {
      const int64_t count = std::min(kChunkPixels, end - first);
      pack_input(first, count);
      for (int64_t o = 0; o < s_.group_out_channels();) {
        const int64_t left = s_.group_out_channels() - o;
        const bool wide = left > gemm_.lanes;
        multiply(first, count, o, std::min(left, wide ? wide_columns(gemm_) : gemm_.lanes),
                 wide ? gemm_.panel_wide : gemm_.panel_narrow, first > begin);
        o += wide ? wide_columns(gemm_) : gemm_.lanes;
      }
    }
  }

  // Adds the sums of `other` (same block, next slice).
  void add(const WeightBlock& other) {
    for (int64_t i = 0; i < layout_.sums(); ++i) sums_[i] += other.sums_[i];
  }

  void store() const {
    const int64_t taps = s_.taps();
    const int64_t first_out = group_ * s_.group_out_channels();
    const int64_t out_stride = s_.group_in_channels() * taps;
    kernels_.copy_block({weight_rows_, s_.group_out_channels(), sums_, layout_.out_pitch, 1,
                         call_.grad_weight + first_out * out_stride + c0_ * taps, 1, out_stride});
    if (has_ones_)
      std::copy_n(sums_ + weight_rows_ * layout_.out_pitch, s_.group_out_channels(),
                  call_.grad_bias + first_out);
  }

 private:
  // Without a strip: neighbouring pixels of one image, read where they lie.
  struct Chunk {
    int64_t image;
    int64_t first;
    int64_t count;
  };
  Chunk chunk_at(int64_t index) const {
    const int64_t part = index % plan_.image_chunks;
    const int64_t first = s_.out_pixels() * part / plan_.image_chunks;
    const int64_t last = s_.out_pixels() * (part + 1) / plan_.image_chunks;
    return {index / plan_.image_chunks, first, last - first};
  }
  const float* chunk_input(const Chunk& chunk) const {
    const Strides4& in = call_.input_strides;
    return call_.input + chunk.image * in.batch +
           (group_ * s_.group_in_channels() + c0_) * in.channel + chunk.first;
  }

  void accumulate_in_place(int64_t slice) {
    const int64_t chunks = s_.batch * plan_.image_chunks;
    const int64_t begin = chunks * slice / plan_.pixel_slices;
    const int64_t end = chunks * (slice + 1) / plan_.pixel_slices;
    if (begin == end) std::memset(sums_, 0, sizeof(float) * layout_.sums());
    if (has_ones_) std::fill_n(panel_, kChunkPixels, 1.0f);
    for (int64_t index = begin; index < end; ++index) {
      prefetch_.clear();
      if (index + 1 < end) expect(chunk_at(index + 1));
      multiply_in_place(chunk_at(index), index > begin);
    }
  }

  // Lists what the next chunk is going to read.
  void expect(const Chunk& chunk) {
    const Strides4& go = call_.grad_output_strides;
    prefetch_.add(chunk_input(chunk), channels_, call_.input_strides.channel, chunk.count);
    if (go.column == 1 && go.row == s_.out_width)
      prefetch_.add(call_.grad_output + chunk.image * go.batch +
                        group_ * s_.group_out_channels() * go.channel + chunk.first,
                    s_.group_out_channels(), go.channel, chunk.count);
    const GemmFamily& family = in_place_family(gemm_);
    prefetch_.start(ceil_div(channels_, family.max_rows) *
                    ceil_div(s_.group_out_channels(), family.vectors * gemm_.lanes));
  }

  void multiply_in_place(const Chunk& chunk, bool accumulate) {
    const GemmFamily& family = in_place_family(gemm_);
    const int64_t width = family.vectors * gemm_.lanes;
    const int64_t block_rows = ceil_div(channels_, ceil_div(channels_, family.max_rows));
    const float* input = chunk_input(chunk);
    GemmTile tile{};
    tile.depth = chunk.count;
    tile.a_pitch = call_.input_strides.channel;
    tile.b = transposed_;
    tile.b_pitch = width;
    tile.c_pitch = layout_.out_pitch;
    tile.accumulate = accumulate;
    for (int64_t o = 0; o < s_.group_out_channels(); o += width) {
      tile.columns = std::min(width, s_.group_out_channels() - o);
      transpose_grad_output(chunk.image * s_.out_pixels() + chunk.first, chunk.count, o,
                            tile.columns, width);
      for (int64_t c = 0; c < channels_; c += block_rows) {
        tile.a = input + c * tile.a_pitch;
        tile.c = sums_ + c * layout_.out_pitch + o;
        family.by_rows[std::min(block_rows, channels_ - c) - 1](tile);
        prefetch_.step();
      }
      if (!has_ones_) continue;
      tile.a = panel_;
      tile.c = sums_ + channels_ * layout_.out_pitch + o;
      family.by_rows[0](tile);
    }
  }

  void pack_input(int64_t first, int64_t count) {
    const Strides4& in = call_.input_strides;
    if (reads_flat_images(call_)) return pack_flat_input(first, count);
    PixelRun runs[kChunkPixels];
    int64_t run_count = 0;
    for_each_pixel_run(
        first, count, s_.out_height, s_.out_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t) {
          runs[run_count++] = {
              length,
              call_.input + n * in.batch + (group_ * s_.group_in_channels() + c0_) * in.channel,
              i * s_.stride_height, j * s_.stride_width};
        });
    kernels_.pack_panel({runs, run_count, taps_.rows.data(), s_.kernel_height, taps_.columns.data(),
                         s_.kernel_width, channels_, in.channel, in.row, in.column, s_.stride_width,
                         s_.in_height, s_.in_width, panel_, kPanelPitch});
  }

  void pack_flat_input(int64_t first, int64_t count) {
    const Strides4& in = call_.input_strides;
    PixelPiece pieces[kChunkPixels];
    int64_t piece_count = 0;
    for_each_pixel_run(first, count, 1, s_.out_pixels(),
                       [&](int64_t n, int64_t, int64_t pixel, int64_t length, int64_t offset) {
                         const float* source =
                             call_.input + n * in.batch +
                             (group_ * s_.group_in_channels() + c0_) * in.channel + pixel;
                         for (int64_t done = 0; done < length; done += gemm_.lanes)
                           pieces[piece_count++] = {source + done, panel_ + offset + done,
                                                    std::min(gemm_.lanes, length - done)};
                       });
    kernels_.copy_pieces({pieces, piece_count, channels_, in.channel, kPanelPitch});
  }

  void multiply(int64_t first, int64_t count, int64_t o, int64_t columns, const GemmFamily& family,
                bool accumulate) {
    const int64_t pitch = family.vectors * gemm_.lanes;
    transpose_grad_output(first, count, o, columns, pitch);
    const int64_t rows = weight_rows_ + (has_ones_ ? 1 : 0);
    const int64_t row_blocks = ceil_div(rows, family.max_rows);
    const int64_t block_rows = ceil_div(rows, row_blocks);
    for (int64_t k = 0; k < rows; k += block_rows) {
      const int64_t height = std::min(block_rows, rows - k);
      family.by_rows[height - 1]({count, panel_ + k * kPanelPitch, transposed_, pitch,
                                  sums_ + k * layout_.out_pitch + o, layout_.out_pitch, columns,
                                  nullptr, accumulate});
    }
  }

  // transposed_[pixel][column] of flat pixels [first, first + count).
  void transpose_grad_output(int64_t first, int64_t count, int64_t o, int64_t columns,
                             int64_t pitch) {
    const Strides4& go = call_.grad_output_strides;
    const float* source = call_.grad_output + (group_ * s_.group_out_channels() + o) * go.channel;
    // Columns past the last channel are multiplied but never stored; zero keeps them harmless.
    if (columns < pitch) std::memset(transposed_, 0, sizeof(float) * count * pitch);
    // Rows that follow each other without a gap are one long row.
    const bool dense = go.row == s_.out_width * go.column;
    for_each_pixel_run(
        first, count, dense ? 1 : s_.out_height, dense ? s_.out_pixels() : s_.out_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
          kernels_.copy_block({columns, length, source + n * go.batch + i * go.row + j * go.column,
                               go.channel, go.column, transposed_ + offset * pitch, 1, pitch});
        });
  }

  const WeightPlan& plan_;
  const Conv2dGradWeight& call_;
  const Conv2dShape& s_;
  const KernelTaps& taps_;
  const GemmKernels& gemm_;
  const Conv2dKernels& kernels_;
  const ScratchLayout layout_;
  const int64_t group_;
  const int64_t c0_;
  const int64_t channels_;
  const int64_t weight_rows_;
  const bool has_ones_;
  float* panel_;
  float* transposed_;
  float* sums_;
  Prefetch prefetch_;
};

WeightPlan plan_blocks(const Conv2dGradWeight& call, Isa isa, int64_t threads) {
  const Conv2dShape& s = call.shape;
  WeightPlan plan{isa, 1, 1, 1, 0};
  const int64_t most = std::clamp<int64_t>(kMaxRows / s.taps(), 1, s.group_in_channels());
  plan.block_channels = most;
  // Blocks of input channels need no final addition, so they are the first choice for the split
  // over threads; slices of pixels follow when there are too few channels.
  const int64_t wanted = ceil_div(threads, s.groups);
  const bool in_place = weight_panel_in_place(call, isa);
  if (s.group_in_channels() >= 4 * wanted && !(in_place && s.group_in_channels() <= kMaxRows))
    plan.block_channels = std::min(most, ceil_div(s.group_in_channels(), wanted));
  int64_t blocks = ceil_div(s.group_in_channels(), plan.block_channels);
  // A last round in which some threads have nothing to do would cost as much as a full one.
  if (blocks > wanted) blocks = round_up(blocks, wanted);
  plan.block_channels = ceil_div(s.group_in_channels(), blocks);
  blocks = ceil_div(s.group_in_channels(), plan.block_channels);
  int64_t chunks = ceil_div(s.batch * s.out_pixels(), kChunkPixels);
  if (in_place) {
    plan.image_chunks = ceil_div(s.out_pixels(), kChunkPixels);
    chunks = s.batch * plan.image_chunks;
  }
  plan.pixel_slices =
      std::clamp<int64_t>(ceil_div(wanted, blocks), 1, std::max<int64_t>(chunks, 1));
  plan.slots = std::clamp<int64_t>(threads, 1, weight_units(plan, s).count);
  return plan;
}

}  // namespace

bool weight_panel_in_place(const Conv2dGradWeight& call, Isa isa) {
  constexpr int64_t kLongRow = 128;
  constexpr int64_t kShortRow = 40;  // long enough for sums that stay in L2
  constexpr int64_t kFewSums = 256 * 1024;
  const Conv2dShape& s = call.shape;
  const GemmKernels& gemm = gemm_kernels(isa);
  const int64_t out = s.group_out_channels();
  const int64_t columns = round_up(out, in_place_family(gemm).vectors * gemm.lanes);
  const int64_t row = s.group_in_channels() * out <= kFewSums ? kShortRow : kLongRow;
  return reads_flat_images(call) && s.out_pixels() >= row && 4 * columns <= 5 * out;
}

int64_t weight_panel_scratch_floats(const Conv2dGradWeight& call, Isa isa, int64_t threads) {
  const Conv2dShape& s = call.shape;
  const WeightPlan plan = plan_blocks(call, isa, threads);
  return weight_units(plan, s).pieces() * task_floats(plan, s);
}

void grad_weight_panel(const Conv2dPlan& call_plan, const Conv2dGradWeight& call, float* scratch) {
  const Conv2dShape& s = call.shape;
  const WeightPlan plan = plan_blocks(call, call_plan.isa, call_plan.threads);
  KernelTaps taps;
  for (int64_t r = 0; r < s.kernel_height; ++r)
    taps.rows.push_back(r * s.dilation_height - s.padding_height);
  for (int64_t q = 0; q < s.kernel_width; ++q)
    taps.columns.push_back(q * s.dilation_width - s.padding_width);

  const int64_t blocks = channel_blocks(plan, s);
  const int64_t floats = task_floats(plan, s);
  run_weight_units(weight_units(plan, s), [&](int64_t block, int64_t piece) {
    return WeightBlock(plan, call, taps, block / blocks, block % blocks, scratch + piece * floats);
  });
}

}  // namespace fastconv::cpu
