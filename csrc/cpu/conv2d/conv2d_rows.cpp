// SPDX-License-Identifier: MIT
// Where the channels of a pixel lie side by side, an input pixel is a row of a matrix as it stands:
// the register tile takes a pointer per output pixel and tap, to the input pixel that tap reads or
// to zeros where it lies outside, and its vectors run along the output channels. Any stride,
// dilation and padding, no panel, no padded copy.
//
// Other layouts are brought into this one block by block: the input rows of a block are transposed
// into scratch once for all taps, the results are transposed back.
#include "cpu/conv2d/conv2d_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/checked.h"
#include "cpu/conv2d/conv2d_pixel_rows.h"
#include "cpu/conv2d/conv2d_pixels.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// A block's input stays in L2, beside the weights of some taps and one block of output channels,
// which serve all its tiles.
constexpr int64_t kBlockFloats = 128 * 1024;
constexpr int64_t kChunkFloats = 32 * 1024;
constexpr int64_t kMaxBlockPixels = 14 * 32;
constexpr int64_t kMaxTilePixels = 32;

bool output_in_place(const GatherConv& conv) {
  return conv.output_strides.channel == 1;
}

const GemmPlaceFamily& tile_family(Isa isa, int64_t channels) {
  const GemmKernels& kernels = gemm_kernels(isa);
  return channels > kernels.lanes ? kernels.place_wide : kernels.place_narrow;
}

int64_t block_channels(Isa isa) {
  const GemmKernels& kernels = gemm_kernels(isa);
  return kernels.place_wide.vectors * kernels.lanes;
}

// Rows of the packed weights: [tap of the whole kernel][channel], of which a gather may use some.
int64_t packed_rows(const GatherConv& conv) {
  return conv.in_channels * conv.weight_taps;
}

// Floats of the packed weights of one group; every block of output channels is padded to vectors.
int64_t group_weight_floats(const GatherPlan& plan, const GatherConv& conv) {
  return round_up(conv.out_channels, gemm_kernels(plan.isa).lanes) * packed_rows(conv);
}

// The input rows that `grid_rows` neighbouring grid rows reach.
struct InputRows {
  InputRows(const GatherConv& conv, int64_t grid_rows) {
    const TapReach taps(conv.tap_rows);
    top = taps.first;
    reach = taps.span(grid_rows, conv.step_height);
  }
  int64_t top;    // first input row relative to the first grid row's
  int64_t reach;  // rows from there to the last one
};

// Whether the taps of a kernel row are taken as one: neighbouring columns in ascending order.
bool folded(const GatherConv& conv) {
  const int64_t count = static_cast<int64_t>(conv.tap_columns.size());
  for (int64_t q = 1; q < count; ++q)
    if (conv.tap_columns[q] != conv.tap_columns[0] + q) return false;
  return folding_pays(conv.in_channels, count);
}

PixelSource group_input(const GatherConv& conv, int64_t group, int64_t image) {
  PixelSource source{conv.input + image * conv.input_strides.batch +
                         group * conv.in_channels * conv.input_strides.channel,
                     conv.input_strides,
                     conv.in_channels,
                     conv.in_height,
                     conv.in_width,
                     0,
                     0,
                     folded(conv)};
  if (source.folded) {
    const int64_t last = (conv.grid_width - 1) * conv.step_width + conv.tap_columns.back();
    source.left = std::max<int64_t>(0, -conv.tap_columns.front());
    source.right = std::max<int64_t>(0, last - (conv.in_width - 1));
  }
  return source;
}

// Packs w[tap][channel][column] for the block of output channels that starts at `o` and for the
// input channels [first, end).
void pack_block(const GatherPlan& plan, const GatherConv& conv, int64_t group, int64_t o,
                int64_t first, int64_t end, const int64_t* targets, float* target) {
  const Conv2dKernels& kernels = conv2d_kernels(plan.isa);
  const int64_t taps = conv.weight_taps;
  const int64_t columns = std::min(block_channels(plan.isa), conv.out_channels - o);
  const int64_t pitch = round_up(columns, gemm_kernels(plan.isa).lanes);
  const float* source = conv.weight + group * conv.weight_group + o * conv.weight_out;
  if (conv.weight_tap != 1) {
    for (int64_t tap = 0; tap < taps; ++tap)
      kernels.copy_block({columns, end - first,
                          source + tap * conv.weight_tap + first * conv.weight_in, conv.weight_out,
                          conv.weight_in, target + (tap * conv.in_channels + first) * pitch, 1,
                          pitch});
    return;
  }
  if (conv.weight_in == taps) {
    kernels.pack_columns({columns, (end - first) * taps, source + first * taps, conv.weight_out,
                          targets + first * taps, target, pitch});
    return;
  }
  for (int64_t c = first; c < end; ++c)
    kernels.pack_columns({columns, taps, source + c * conv.weight_in, conv.weight_out, targets,
                          target + c * pitch, pitch});
}

void pack_weights(const GatherPlan& plan, const GatherConv& conv, float* packed) {
  // Row of the packed block that each weight of [channel][tap] goes to; without neighbouring
  // channels in memory only those of channel 0.
  const int64_t taps = conv.weight_taps;
  const int64_t channels = conv.weight_in == taps ? conv.in_channels : 1;
  std::vector<int64_t> targets(channels * taps);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) targets[c * taps + tap] = tap * conv.in_channels + c;
  const int64_t block = block_channels(plan.isa);
  const int64_t row_blocks = ceil_div(conv.out_channels, block);
  const int64_t floats = conv.groups * group_weight_floats(plan, conv);
  const int64_t threads = worthwhile_threads(4 * floats, 8 * floats);
  // Few output channels are cut along the input channels.
  const int64_t cuts = std::min(conv.in_channels, ceil_div(threads, conv.groups * row_blocks));
  const int64_t pieces = conv.groups * row_blocks * cuts;
  const int64_t slots = std::min(pieces, threads);
  parallel_for(slots, [&](int64_t slot) {
    for (int64_t p = pieces * slot / slots; p < pieces * (slot + 1) / slots; ++p) {
      const int64_t cut = p % cuts;
      const int64_t group = p / cuts / row_blocks;
      const int64_t o = p / cuts % row_blocks * block;
      pack_block(plan, conv, group, o, conv.in_channels * cut / cuts,
                 conv.in_channels * (cut + 1) / cuts, targets.data(),
                 packed + group * group_weight_floats(plan, conv) + o * packed_rows(conv));
    }
  });
}

// Grid rows [first_row, first_row + rows) of neighbouring images of one group.
struct Block {
  int64_t group;
  int64_t image;
  int64_t images;
  int64_t first_row;
  int64_t rows;
};

// Works on blocks of pixels, in one slot: several whole images, or some grid rows of one.
class RowsWork {
 public:
  RowsWork(const GatherPlan& plan, const GatherConv& conv, const float* weights, float* scratch)
      : plan_(plan),
        conv_(conv),
        kernels_(conv2d_kernels(plan.isa)),
        block_channels_(block_channels(plan.isa)),
        tile_pixels_(gemm_kernels(plan.isa).place_wide.max_rows),
        folded_(folded(conv)),
        segments_(
            static_cast<int64_t>(conv.tap_rows.size() * (folded_ ? 1 : conv.tap_columns.size()))),
        depth_(conv.in_channels * conv.taps() / segments_),
        weights_(weights),
        zeros_(scratch),
        copy_(zeros_ + zero_floats(conv)),
        output_(copy_ + copy_floats(plan, conv)) {
    std::memset(zeros_, 0, sizeof(float) * zero_floats(conv));
  }

  // What a tap outside the input reads.
  static int64_t zero_floats(const GatherConv& conv) {
    const size_t pixels = folded(conv) ? conv.tap_columns.size() : 1;
    return round_up(conv.in_channels * static_cast<int64_t>(pixels), 16);
  }

  static int64_t copy_floats(const GatherPlan& plan, const GatherConv& conv) {
    return pixel_rows_floats(group_input(conv, 0, 0), plan.block_images,
                             InputRows(conv, plan.strip_rows).reach);
  }

  void run(const Block& block) {
    const auto [group, image, images, first_row, rows] = block;
    const InputRows used(conv_, rows);
    const int64_t top = first_row * conv_.step_height + used.top;
    input_ = pixel_rows(kernels_, group_input(conv_, group, image), images, top, top + used.reach,
                        copy_);
    locate_tiles(block);
    for (int64_t o = 0; o < conv_.out_channels; o += block_channels_) {
      const int64_t channels = std::min(block_channels_, conv_.out_channels - o);
      multiply(group, o, channels);
      if (!output_in_place(conv_)) unpack(block, o, channels);
    }
  }

 private:
  // Lists, for every tile of the block's flat pixels, the taps that reach the input, a pointer per
  // such tap and pixel, and a pointer to each pixel's results.
  void locate_tiles(const Block& block) {
    tiles_.clear();
    sources_.clear();
    taps_.clear();
    weight_rows_.clear();
    targets_.clear();
    // Tiles that end with a row of the grid leave out kernel rows that lie outside the input: on
    // maps of few rows many do.
    const int64_t width = conv_.grid_width;
    const int64_t pixels = block.images * block.rows * width;
    const bool few_rows = conv_.grid_height <= 2 * static_cast<int64_t>(conv_.tap_rows.size());
    const bool by_row =
        few_rows && conv_.grid_height > 1 && 8 * round_up(width, tile_pixels_) <= 9 * width;
    const int64_t line = by_row ? width : pixels;
    const int64_t pieces = ceil_div(line, tile_pixels_);
    for (int64_t start = 0; start < pixels; start += line)
      for (int64_t p = 0; p < pieces; ++p) {
        const int64_t first = by_row ? line * p / pieces : tile_pixels_ * p;
        const int64_t end = by_row ? line * (p + 1) / pieces : std::min(first + tile_pixels_, line);
        Pixel at[kMaxTilePixels];
        locate_pixels(block, start + first, end - first, at);
        add_tile(start + first, end - first, at);
      }
  }

  struct Pixel {
    const float* source;  // what tap offset (0, 0) reads
    int64_t row;          // its place in the input
    int64_t column;
  };

  void locate_pixels(const Block& block, int64_t first, int64_t count, Pixel* at) {
    const Strides4& out = conv_.output_strides;
    const bool in_place = output_in_place(conv_);
    const int64_t output_pitch = std::min(block_channels_, conv_.out_channels);
    float* results =
        conv_.output + block.image * out.batch + block.group * conv_.out_channels * out.channel;
    for_each_pixel_run(
        first, count, block.rows, conv_.grid_width,
        [&](int64_t n, int64_t i, int64_t j, int64_t length, int64_t offset) {
          const int64_t row = (block.first_row + i) * conv_.step_height;
          const float* source = input_.origin + n * input_.image_pitch + row * input_.row_pitch;
          float* target = results + n * out.batch + (block.first_row + i) * out.row;
          for (int64_t l = 0; l < length; ++l) {
            const int64_t column = (j + l) * conv_.step_width;
            at[offset + l] = {source + column * input_.pixel_pitch, row, column};
            targets_.push_back(in_place ? target + (j + l) * out.column
                                        : output_ + (first + offset + l) * output_pitch);
          }
        });
  }

  void add_tile(int64_t first, int64_t count, const Pixel* at) {
    Tile tile{count, 0, static_cast<int64_t>(sources_.size()), static_cast<int64_t>(taps_.size()),
              first};
    const size_t columns = folded_ ? 1 : conv_.tap_columns.size();  // the first for all of them
    for (size_t r = 0; r < conv_.tap_rows.size(); ++r)
      for (size_t q = 0; q < columns; ++q) {
        if (!list_sources(at, count, conv_.tap_rows[r], conv_.tap_columns[q])) continue;
        taps_.push_back(static_cast<int64_t>(r * columns + q));
        weight_rows_.push_back((conv_.weight_rows[r] + conv_.weight_columns[q]) *
                               conv_.in_channels);
        ++tile.taps;
      }
    tiles_.push_back(tile);
  }

  // Appends what one tap reads for each pixel; nothing when it reaches the input for none of them.
  bool list_sources(const Pixel* at, int64_t count, int64_t tap_row, int64_t tap_column) {
    const size_t start = sources_.size();
    const int64_t shift = tap_row * input_.row_pitch + tap_column * input_.pixel_pitch;
    sources_.resize(start + count);
    const float** sources = sources_.data() + start;
    bool reached = false;
    for (int64_t l = 0; l < count; ++l) {
      // One unsigned comparison per side: negative places wrap to large ones.
      const bool inside =
          static_cast<uint64_t>(at[l].row + tap_row) < static_cast<uint64_t>(conv_.in_height) &&
          (folded_ || static_cast<uint64_t>(at[l].column + tap_column) <
                          static_cast<uint64_t>(conv_.in_width));
      reached = reached || inside;
      sources[l] = inside ? at[l].source + shift : zeros_;
    }
    if (!reached) sources_.resize(start);
    return reached;
  }

  void multiply(int64_t group, int64_t o, int64_t channels) {
    const GemmPlaceFamily& family = tile_family(plan_.isa, channels);
    GemmRowsTile call{};
    call.depth = depth_;
    call.b = weights_ + group * group_weight_floats(plan_, conv_) + o * packed_rows(conv_);
    call.c_offset = output_in_place(conv_) ? o : 0;
    call.columns = channels;
    call.column_init =
        conv_.bias == nullptr ? nullptr : conv_.bias + group * conv_.out_channels + o;
    const int64_t width = family.vectors * gemm_kernels(plan_.isa).lanes;
    const int64_t chunk = std::max<int64_t>(1, kChunkFloats / (width * depth_));
    done_.assign(tiles_.size(), 0);
    for (int64_t first = 0; first < segments_; first += chunk) {
      call.accumulate = first > 0;
      for (size_t t = 0; t < tiles_.size(); ++t) {
        const Tile& tile = tiles_[t];
        const int64_t* taps = taps_.data() + tile.first_tap;
        const int64_t begin = done_[t];
        while (done_[t] < tile.taps && taps[done_[t]] < first + chunk) ++done_[t];
        call.segments = done_[t] - begin;
        call.a = sources_.data() + tile.first_source + begin * tile.pixels;
        call.b_offsets = weight_rows_.data() + tile.first_tap + begin;
        call.c = targets_.data() + tile.first_pixel;
        if (call.segments > 0 || !call.accumulate) family.rows[tile.pixels - 1](call);
      }
    }
  }

  void unpack(const Block& block, int64_t o, int64_t channels) const {
    const auto [group, image, images, first_row, rows] = block;
    const Strides4& out = conv_.output_strides;
    const int64_t pitch = std::min(block_channels_, conv_.out_channels);
    const float* source = output_;
    float* target = conv_.output + image * out.batch +
                    (group * conv_.out_channels + o) * out.channel + first_row * out.row;
    for (int64_t n = 0; n < images; ++n) {
      store_pixel_rows(
          kernels_, {channels, conv_.grid_width, source, 1, pitch, target, out.channel, out.column},
          rows, out.row);
      source += rows * conv_.grid_width * pitch;
      target += out.batch;
    }
  }

  struct Tile {
    int64_t pixels;
    int64_t taps;          // taps or kernel rows that reach the input for any of its pixels
    int64_t first_source;  // index into sources_: [taps, pixels]
    int64_t first_tap;     // index into taps_ and weight_rows_
    int64_t first_pixel;   // index into targets_
  };

  const GatherPlan& plan_;
  const GatherConv& conv_;
  const Conv2dKernels& kernels_;
  const int64_t block_channels_;
  const int64_t tile_pixels_;
  const bool folded_;
  const int64_t segments_;  // taps, or kernel rows when folded
  const int64_t depth_;     // floats a segment reads at each pixel
  const float* weights_;
  float* zeros_;
  float* copy_;
  float* output_;
  PixelRows input_{};  // of the block
  std::vector<Tile> tiles_;
  std::vector<const float*> sources_;
  std::vector<int64_t> taps_;
  std::vector<int64_t> weight_rows_;  // per tap: row of the packed weights at which it starts
  std::vector<float*> targets_;
  std::vector<int64_t> done_;  // per tile: taps of earlier chunks
};

int64_t slot_floats(const GatherPlan& plan, const GatherConv& conv) {
  const int64_t pixels = plan.block_images * plan.strip_rows * conv.grid_width;
  return RowsWork::zero_floats(conv) + RowsWork::copy_floats(plan, conv) +
         (output_in_place(conv)
              ? 0
              : round_up(pixels * std::min(block_channels(plan.isa), conv.out_channels), 16));
}

int64_t weight_floats(const GatherPlan& plan, const GatherConv& conv) {
  return round_up(conv.groups * group_weight_floats(plan, conv), 16);
}

}  // namespace

void plan_rows(const GatherConv& conv, int64_t threads, GatherPlan* plan) {
  const int64_t plane = conv.grid_height * conv.grid_width;
  const bool in_place = group_input(conv, 0, 0).in_place();
  const int64_t copied = in_place ? 1 : conv.step_height * conv.step_width;
  const int64_t pixel_floats = conv.in_channels * copied + block_channels(plan->isa);
  const int64_t tile = gemm_kernels(plan->isa).place_wide.max_rows;
  int64_t pixels = std::clamp(kBlockFloats / pixel_floats, 4 * tile, kMaxBlockPixels);
  // Enough blocks for every thread.
  const int64_t shares = conv.groups >= threads ? 1 : threads;
  pixels = std::min(pixels, ceil_div(conv.batch * plane, shares));
  plan->block_images = std::max<int64_t>(1, pixels / plane);
  plan->strip_rows = conv.grid_height;
  int64_t blocks = ceil_div(conv.batch, plan->block_images);
  if (pixels < plane) {
    const int64_t rows = std::max<int64_t>(1, pixels / conv.grid_width);
    plan->strip_rows = ceil_div(conv.grid_height, ceil_div(conv.grid_height, rows));
    blocks = conv.batch * ceil_div(conv.grid_height, plan->strip_rows);
  }
  plan->slots = std::min(threads, conv.groups * blocks);
}

int64_t rows_scratch_floats(const GatherPlan& plan, const GatherConv& conv) {
  return weight_floats(plan, conv) + plan.slots * slot_floats(plan, conv);
}

void run_rows(const GatherPlan& plan, const GatherConv& conv, float* scratch) {
  if (!conv.weights_packed) pack_weights(plan, conv, scratch);
  float* slots = scratch + weight_floats(plan, conv);
  const int64_t strips = ceil_div(conv.grid_height, plan.strip_rows);
  const int64_t image_blocks = ceil_div(conv.batch, plan.block_images);
  const int64_t units = conv.groups * image_blocks * strips;
  parallel_for(plan.slots, [&](int64_t slot) {
    RowsWork work(plan, conv, scratch, slots + slot * slot_floats(plan, conv));
    for (int64_t u = units * slot / plan.slots; u < units * (slot + 1) / plan.slots; ++u) {
      const int64_t first_row = u % strips * plan.strip_rows;
      const int64_t image = u / strips % image_blocks * plan.block_images;
      work.run({u / strips / image_blocks, image, std::min(plan.block_images, conv.batch - image),
                first_row, std::min(plan.strip_rows, conv.grid_height - first_row)});
    }
  });
}

}  // namespace fastconv::cpu
