// SPDX-License-Identifier: MIT
// For few channels. The lanes of a vector are images (conv2d_lanes.h): a strip of input rows of as
// many images as there are lanes is transposed to [channel][row][column][image], multiplied by the
// tiles of pixel_vectors, whose vectors are then single pixels, and transposed back.
#include "cpu/conv2d/conv2d_image_vectors.h"

#include <algorithm>
#include <cstring>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_lanes.h"
#include "cpu/conv2d/conv2d_prefetch.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kCopyFloats = 96 * 1024;  // of a strip, which stay in L2
constexpr int64_t kStripResults =
    32 * 1024;  // which arrive there while the strip before is computed
constexpr int64_t kMostWeights = 16 * 1024;  // which every few pixels read again
constexpr int64_t kBlockFloats = 8 * 1024;   // results that are transposed at a time

// The part of the input that `grid_rows` grid rows reach.
struct Window {
  Window(const GatherConv& conv, int64_t grid_rows) {
    const TapReach high(conv.tap_rows), wide(conv.tap_columns);
    top_row = high.first;
    left_column = wide.first;
    rows = high.span(grid_rows, conv.step_height);
    columns = wide.span(conv.grid_width, conv.step_width);
  }
  int64_t channel_pixels() const { return rows * columns | 1; }

  int64_t top_row;      // relative to the first grid row's
  int64_t left_column;  // of the image
  int64_t rows;
  int64_t columns;
};

int64_t copy_floats(const GatherConv& conv, int64_t grid_rows, int64_t lanes) {
  return conv.in_channels * Window(conv, grid_rows).channel_pixels() * lanes;
}

// Grid rows whose results are transposed at a time.
int64_t result_rows(const GatherPlan& plan, const GatherConv& conv, int64_t lanes) {
  const int64_t row_floats = plan.block_rows * conv.grid_width * lanes;
  return std::clamp<int64_t>(kBlockFloats / row_floats, 1, plan.strip_rows);
}

// An odd number of pixels, so that the channels do not compete for the same L1 sets.
int64_t result_pitch(const GatherPlan& plan, const GatherConv& conv, int64_t lanes) {
  return (result_rows(plan, conv, lanes) * conv.grid_width | 1) * lanes;
}

LaneLayout lane_layout(const GatherPlan& plan, const GatherConv& conv) {
  return {gemm_kernels(plan.isa).lanes, conv.batch, plan.cuts};
}

// Grid rows of a cut that are computed at a time, of one block and group.
struct Strip {
  int64_t block;
  int64_t group;
  int64_t first_row;
  int64_t rows;
};

// Works on strips one by one, in one slot.
class ImageStrips {
 public:
  ImageStrips(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        kernels_(conv2d_kernels(plan.isa)),
        family_(plan.wide_tiles ? kernels_.direct_wide : kernels_.direct_tall),
        layout_(lane_layout(plan, conv)),
        lanes_(layout_.lanes),
        window_(conv, plan.strip_rows),
        channel_pitch_(window_.channel_pixels() * lanes_),
        cut_rows_(conv.grid_height / plan.cuts),
        result_pitch_(result_pitch(plan, conv, lanes_)),
        weights_(weights),
        copy_(scratch),
        results_(scratch + conv.in_channels * channel_pitch_) {
    clear_copy();
    for (int64_t row : conv.tap_rows)
      for (int64_t c = 0; c < conv.in_channels; ++c)
        for (int64_t column : conv.tap_columns)
          offsets_.push_back(
              c * channel_pitch_ +
              ((row - window_.top_row) * window_.columns + column - window_.left_column) * lanes_);
  }

  // What `next` reads and writes is brought near meanwhile; nullptr: there is none.
  void run(const Strip& strip, const Strip* next) {
    strip_ = strip;
    if (layout_.used_lanes(strip.block) < lanes_) clear_copy();
    copy_to_lanes(kernels_, layout_, strip.block, read_by(strip), copy_, channel_pitch_);
    const int64_t at_a_time = result_rows(plan_, conv_, lanes_);
    prefetch_.clear();
    if (next != nullptr) {
      prefetch_lanes(layout_, next->block, read_by(*next), &prefetch_);
      prefetch_lanes(layout_, next->block, written_by(*next), &prefetch_);
    }
    prefetch_.start(strip.rows * ceil_div(conv_.grid_width, family_.vectors) *
                    ceil_div(conv_.out_channels, plan_.block_rows));
    for (int64_t row = 0; row < strip.rows; row += at_a_time) {
      const int64_t rows = std::min(at_a_time, strip.rows - row);
      for (int64_t o = 0; o < conv_.out_channels; o += plan_.block_rows) {
        const int64_t channels = std::min(plan_.block_rows, conv_.out_channels - o);
        for (int64_t i = 0; i < rows; ++i) multiply(o, channels, row + i, i * conv_.grid_width);
        store(o, channels, row, rows);
      }
    }
  }

 private:
  void clear_copy() { std::memset(copy_, 0, sizeof(float) * conv_.in_channels * channel_pitch_); }

  LaneWindow read_by(const Strip& strip) const {
    const Strides4& in = conv_.input_strides;
    const int64_t step = conv_.step_height;
    return {conv_.input + strip.group * conv_.in_channels * in.channel,
            in,
            conv_.in_channels,
            conv_.in_height,
            conv_.in_width,
            strip.first_row * step + window_.top_row,
            window_.rows - (plan_.strip_rows - strip.rows) * step,
            cut_rows_ * step,
            window_.left_column,
            window_.columns};
  }

  LaneWindow written_by(const Strip& strip) const {
    const Strides4& out = conv_.output_strides;
    return {conv_.output + strip.group * conv_.out_channels * out.channel,
            out,
            conv_.out_channels,
            conv_.grid_height,
            conv_.grid_width,
            strip.first_row,
            strip.rows,
            cut_rows_,
            0,
            conv_.grid_width};
  }

  // Kernel rows [begin, end) that grid row `row` of the strip sees inside the input in any lane;
  // the others would only add zeros. Never empty.
  struct KernelRows {
    int64_t begin;
    int64_t end;
  };
  KernelRows kernel_rows(int64_t row) const {
    const int64_t count = static_cast<int64_t>(conv_.tap_rows.size());
    KernelRows used{count, 0};
    for_each_lane_run(layout_, strip_.block, [&](const LaneRun& run) {
      const int64_t grid_row = run.cut * cut_rows_ + strip_.first_row + row;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = grid_row * conv_.step_height + conv_.tap_rows[r];
        if (at < 0 || at >= conv_.in_height) continue;
        used.begin = std::min(used.begin, r);
        used.end = std::max(used.end, r + 1);
      }
    });
    return used.begin < used.end ? used : KernelRows{0, 1};
  }

  // One grid row of output channels [o, o + channels), to results_ from pixel `target` on.
  void multiply(int64_t o, int64_t channels, int64_t row, int64_t target) {
    const int64_t depth = conv_.in_channels * conv_.taps();
    const int64_t kernel_row_terms =
        conv_.in_channels * static_cast<int64_t>(conv_.tap_columns.size());
    const KernelRows used = kernel_rows(row);
    const int64_t first_channel = strip_.group * conv_.out_channels + o;
    DirectTile tile{};
    tile.depth = (used.end - used.begin) * kernel_row_terms;
    tile.offsets = offsets_.data() + used.begin * kernel_row_terms;
    tile.a = weights_ + first_channel * depth + used.begin * kernel_row_terms * channels;
    tile.c_pitch = result_pitch_;
    tile.row_init = conv_.bias == nullptr ? nullptr : conv_.bias + first_channel;
    const float* source = copy_ + row * conv_.step_height * window_.columns * lanes_;
    for (int64_t first = 0; first < conv_.grid_width; first += family_.vectors) {
      for (int64_t v = 0; v < family_.vectors; ++v) {
        // Past the last pixel that one is computed again, but not stored.
        const int64_t j = std::min(first + v, conv_.grid_width - 1);
        tile.b[v] = source + j * conv_.step_width * lanes_;
        tile.c[v] = results_ + (target + j) * lanes_;
        tile.lanes[v] = first + v < conv_.grid_width ? lanes_ : 0;
      }
      prefetch_.step();
      family_.by_rows[channels - 1](tile);
    }
  }

  // Transposes the results of some grid rows to where they belong.
  void store(int64_t o, int64_t channels, int64_t first_row, int64_t rows) const {
    const Strides4& out = conv_.output_strides;
    const bool dense = out.row == conv_.grid_width && out.column == 1;
    const int64_t pieces = dense ? 1 : rows;
    const int64_t pixels = rows * conv_.grid_width / pieces;
    for_each_lane_run(layout_, strip_.block, [&](const LaneRun& run) {
      const int64_t row = run.cut * cut_rows_ + strip_.first_row + first_row;
      float* target = conv_.output + run.image * out.batch +
                      (strip_.group * conv_.out_channels + o) * out.channel + row * out.row;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < pieces; ++i)
          kernels_.copy_block(
              {run.count, pixels, results_ + c * result_pitch_ + i * pixels * lanes_ + run.lane, 1,
               lanes_, target + c * out.channel + i * out.row, out.batch, out.column});
    });
  }

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const Conv2dKernels& kernels_;
  const DirectFamily& family_;
  const LaneLayout layout_;
  const int64_t lanes_;
  const Window window_;
  const int64_t channel_pitch_;
  const int64_t cut_rows_;
  const int64_t result_pitch_;
  const float* weights_;
  float* copy_;     // [channel][row][column][lane]
  float* results_;  // [channel of a block][row][column][lane]
  std::vector<int64_t> offsets_;
  Strip strip_{};
  Prefetch prefetch_;
};

int64_t strips_per_block(const GatherPlan& plan, const GatherConv& conv) {
  return ceil_div(conv.grid_height / plan.cuts, plan.strip_rows);
}

}  // namespace

bool image_vectors_applies(const GatherConv& conv) {
  return conv.input_strides.column == 1 && conv.weights() <= kMostWeights;
}

double image_vectors_fill(const GatherConv& conv, int64_t lanes) {
  return choose_lanes(lanes, conv.batch, conv.grid_height).fill();
}

void plan_image_vectors(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t lanes = gemm_kernels(plan->isa).lanes;
  plan->cuts = choose_lanes(lanes, conv.batch, conv.grid_height).cuts;
  plan->strip_rows = conv.grid_height / plan->cuts;
  const int64_t blocks = lane_layout(*plan, conv).blocks() * conv.groups;
  const auto units = [&] { return blocks * strips_per_block(*plan, conv); };
  const int64_t row_results = conv.out_channels * conv.grid_width * lanes;
  while (plan->strip_rows > 1 &&
         (copy_floats(conv, plan->strip_rows, lanes) > kCopyFloats ||
          plan->strip_rows * row_results > kStripResults || is_uneven(units(), threads)))
    plan->strip_rows = ceil_div(plan->strip_rows, 2);
  plan->slots = std::min(threads, units());
}

// Per slot: the copied strip, then a block of results.
int64_t image_vectors_slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t lanes = gemm_kernels(plan.isa).lanes;
  return copy_floats(conv, plan.strip_rows, lanes) +
         plan.block_rows * result_pitch(plan, conv, lanes);
}

void run_image_vectors(const GatherPlan& plan, const GatherConv& conv, const float* weights,
                       float* slots) {
  const int64_t strips = strips_per_block(plan, conv);
  const int64_t units = lane_layout(plan, conv).blocks() * conv.groups * strips;
  const int64_t slot_floats = image_vectors_slot_floats(plan, conv);
  parallel_for(plan.slots, [&](int64_t slot) {
    ImageStrips work(plan, conv, weights, slots + slot * slot_floats);
    const auto strip = [&](int64_t u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      return Strip{u / strips / conv.groups, u / strips % conv.groups, first_row,
                   std::min(plan.strip_rows, conv.grid_height / plan.cuts - first_row)};
    };
    run_share(units, slot, plan.slots, strip, &work);
  });
}

}  // namespace fastconv::cpu
