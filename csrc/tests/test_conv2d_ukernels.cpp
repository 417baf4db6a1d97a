// SPDX-License-Identifier: MIT
// The data movement and the register tiles of conv2d against the formulas in conv2d_ukernels.h.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "common/shapes.h"
#include "cpu/conv2d/conv2d_ukernels.h"
#include "cpu/gemm/gemm.h"

namespace fastconv::cpu {
namespace {

using testing::Floats;
using testing::Numbers;

constexpr float kGuard = 12345.0f;

// --- pack_panel ----------------------------------------------------------------------------------

enum class Layout { kRows, kChannelsLast, kColumns };

// Strides of one image and how far its last element lies from the first.
struct ImageLayout {
  Strides4 strides;
  int64_t size;
};

ImageLayout image_layout(Layout layout, int64_t channels, int64_t height, int64_t width) {
  Strides4 s{};
  if (layout == Layout::kRows) {
    s = contiguous_strides(channels, height, width + 2);  // rows lie in wider rows
    s.channel += 1;
  } else if (layout == Layout::kChannelsLast) {
    s = channels_last_strides(channels, height, width);
  } else {
    s = {channels * height * width, height * width, 1, height};  // neither is contiguous
  }
  if (channels == 0 || height == 0 || width == 0) return {s, 0};
  return {s, (channels - 1) * s.channel + (height - 1) * s.row + (width - 1) * s.column + 1};
}

struct PackCase {
  Layout layout;
  int64_t channels;
  int64_t height;
  int64_t width;
  int64_t column_step;
  std::vector<int64_t> tap_rows;
  std::vector<int64_t> tap_columns;
  std::vector<PixelRun> runs;  // `image` is filled in by the check
};

std::string describe(const PackCase& c) {
  std::string text = "pack: layout " + std::to_string(static_cast<int>(c.layout)) + ", image [" +
                     std::to_string(c.channels) + ", " + std::to_string(c.height) + ", " +
                     std::to_string(c.width) + "], step " + std::to_string(c.column_step);
  for (const PixelRun& run : c.runs)
    text += ", run of " + std::to_string(run.length) + " at " + std::to_string(run.row) + "," +
            std::to_string(run.column);
  return text;
}

void check_pack(const Conv2dKernels& kernels, PackCase c, Numbers& numbers) {
  const ImageLayout layout = image_layout(c.layout, c.channels, c.height, c.width);
  Floats image(layout.size);
  int64_t pixels = 0;
  for (int64_t i = 0; i < layout.size; ++i) image[i] = numbers.whole();
  for (PixelRun& run : c.runs) {
    run.image = image.data();
    pixels += run.length;
  }
  const auto rows = static_cast<int64_t>(c.tap_rows.size());
  const auto columns = static_cast<int64_t>(c.tap_columns.size());
  const int64_t panel_rows = c.channels * rows * columns;
  const int64_t pitch = pixels + numbers.between(0, 5);
  Floats panel((panel_rows - 1) * pitch + pixels, kGuard);
  Floats expected(panel.size(), kGuard);
  for (int64_t channel = 0; channel < c.channels; ++channel)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t q = 0; q < columns; ++q) {
        float* target = expected.data() + (channel * rows * columns + r * columns + q) * pitch;
        for (const PixelRun& run : c.runs)
          for (int64_t p = 0; p < run.length; ++p) {
            const int64_t i = run.row + c.tap_rows[r];
            const int64_t j = run.column + c.tap_columns[q] + p * c.column_step;
            const bool inside = i >= 0 && i < c.height && j >= 0 && j < c.width;
            *target++ = inside ? image[channel * layout.strides.channel + i * layout.strides.row +
                                       j * layout.strides.column]
                               : 0.0f;
          }
      }

  kernels.pack_panel({c.runs.data(), static_cast<int64_t>(c.runs.size()), c.tap_rows.data(), rows,
                      c.tap_columns.data(), columns, c.channels, layout.strides.channel,
                      layout.strides.row, layout.strides.column, c.column_step, c.height, c.width,
                      panel.data(), pitch});
  bool equal = true;
  for (int64_t i = 0; i < panel.size(); ++i) equal = equal && panel[i] == expected[i];
  CHECK_WITH(equal, describe(c));
}

void check_packing(const Conv2dKernels& kernels, Numbers& numbers) {
  for (Layout layout : {Layout::kRows, Layout::kChannelsLast, Layout::kColumns})
    for (int64_t step : {1, 2, 3, 5})
      for (int64_t width : {1, 2, 7, 8, 16, 17, 31, 40})
        for (int64_t length : {1, 3, 8, 15, 16, 17, 33})
          for (int64_t column : {-40, -17, -3, -1, 0, 1, 5})
            check_pack(kernels,
                       {layout,
                        3,
                        4,
                        width,
                        step,
                        {-1, 0, 2},
                        {-2, 0, 1},
                        {{length, nullptr, numbers.between(-2, 4), column}}},
                       numbers);
  for (int round = 0; round < 300; ++round) {
    PackCase c{static_cast<Layout>(numbers.between(0, 2)),
               numbers.between(1, 40),
               numbers.between(1, 6),
               numbers.between(1, 40),
               numbers.between(1, 4),
               {},
               {},
               {}};
    for (int64_t n = numbers.between(1, 3); n > 0; --n)
      c.tap_rows.push_back(numbers.between(-4, 4));
    for (int64_t n = numbers.between(1, 18); n > 0; --n)
      c.tap_columns.push_back(numbers.between(-20, 20));
    for (int64_t n = numbers.between(1, 4); n > 0; --n)
      c.runs.push_back(
          {numbers.between(1, 20), nullptr, numbers.between(-3, 6), numbers.between(-9, 9)});
    check_pack(kernels, c, numbers);
  }
  // An image without pixels reads as zeros.
  check_pack(kernels, {Layout::kRows, 2, 0, 5, 1, {0}, {0, 1}, {{9, nullptr, 0, -1}}}, numbers);
  check_pack(kernels, {Layout::kRows, 2, 5, 0, 2, {0}, {0, 1}, {{9, nullptr, 0, -1}}}, numbers);
}

// --- copy_block ----------------------------------------------------------------------------------

// Element distances of (channel, pixel): pixels contiguous, channels contiguous, or neither.
void block_strides(int kind, int64_t channels, int64_t pixels, int64_t gap, int64_t* channel,
                   int64_t* pixel) {
  if (kind == 0) {
    *channel = pixels + gap;
    *pixel = 1;
  } else if (kind == 1) {
    *channel = 1;
    *pixel = channels + gap;
  } else {
    *channel = 2;
    *pixel = 2 * channels + 1 + gap;
  }
}

void check_copy(const Conv2dKernels& kernels, int64_t channels, int64_t pixels, int from, int to,
                Numbers& numbers) {
  BlockCopy copy{};
  copy.channels = channels;
  copy.pixels = pixels;
  block_strides(from, channels, pixels, numbers.between(0, 3), &copy.source_channel,
                &copy.source_pixel);
  block_strides(to, channels, pixels, numbers.between(0, 3), &copy.target_channel,
                &copy.target_pixel);
  Floats source((channels - 1) * copy.source_channel + (pixels - 1) * copy.source_pixel + 1);
  Floats target((channels - 1) * copy.target_channel + (pixels - 1) * copy.target_pixel + 1,
                kGuard);
  Floats expected(target.size(), kGuard);
  for (int64_t i = 0; i < source.size(); ++i) source[i] = numbers.whole();
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t p = 0; p < pixels; ++p)
      expected[c * copy.target_channel + p * copy.target_pixel] =
          source[c * copy.source_channel + p * copy.source_pixel];
  copy.source = source.data();
  copy.target = target.data();
  kernels.copy_block(copy);
  bool equal = true;
  for (int64_t i = 0; i < target.size(); ++i) equal = equal && target[i] == expected[i];
  CHECK_WITH(equal, "copy: " + std::to_string(channels) + " channels, " + std::to_string(pixels) +
                        " pixels, kind " + std::to_string(from) + " to " + std::to_string(to));
}

void check_copies(const Conv2dKernels& kernels, Numbers& numbers) {
  for (int64_t channels : {1, 2, 5, 7, 8, 9, 15, 16, 17, 33})
    for (int64_t pixels : {1, 2, 7, 8, 9, 16, 17, 31, 50})
      for (int from = 0; from < 3; ++from)
        for (int to = 0; to < 3; ++to) check_copy(kernels, channels, pixels, from, to, numbers);
}

// --- copy_pieces ---------------------------------------------------------------------------------

void check_pieces(const Conv2dKernels& kernels, int64_t lanes, int64_t channels, Numbers& numbers) {
  constexpr int64_t kPieces = 5;
  const int64_t source_pitch = kPieces * (lanes + 2), target_pitch = kPieces * (lanes + 3);
  Floats source(channels * source_pitch);
  Floats target(channels * target_pitch, kGuard), expected(channels * target_pitch, kGuard);
  for (int64_t i = 0; i < source.size(); ++i) source[i] = numbers.whole();
  PixelPiece pieces[kPieces];
  for (int64_t i = 0; i < kPieces; ++i) {
    pieces[i] = {source.data() + i * (lanes + 2), target.data() + i * (lanes + 3),
                 i == 0 ? lanes : numbers.between(1, static_cast<int>(lanes))};
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t l = 0; l < pieces[i].pixels; ++l)
        expected[c * target_pitch + i * (lanes + 3) + l] =
            source[c * source_pitch + i * (lanes + 2) + l];
  }
  kernels.copy_pieces({pieces, kPieces, channels, source_pitch, target_pitch});
  bool equal = true;
  for (int64_t i = 0; i < target.size(); ++i) equal = equal && target[i] == expected[i];
  CHECK_WITH(equal, "pieces of " + std::to_string(channels) + " channels");
}

// --- direct tiles --------------------------------------------------------------------------------

struct DirectCase {
  const DirectFamily* family;
  int64_t rows;
  int64_t lanes;
  int64_t depth;
  bool with_init;
};

void check_direct(const DirectCase& d, Numbers& numbers) {
  constexpr int64_t kReach = 20;  // offsets run from 0 to this
  const int64_t vectors = d.family->vectors;
  Floats a(d.depth * d.rows);
  Floats init(d.rows);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = numbers.whole();
  for (int64_t i = 0; i < d.rows; ++i) init[i] = numbers.whole();
  std::vector<int64_t> offsets;
  int64_t furthest = 0;
  for (int64_t k = 0; k < d.depth; ++k) {
    offsets.push_back(numbers.between(0, kReach));
    furthest = std::max(furthest, offsets.back());
  }

  DirectTile tile{};
  tile.depth = d.depth;
  tile.a = a.data();
  tile.offsets = offsets.data();
  tile.c_pitch = vectors * d.lanes + numbers.between(0, 3);
  tile.row_init = d.with_init ? init.data() : nullptr;
  Floats b(furthest + vectors * d.lanes);
  Floats c((d.rows - 1) * tile.c_pitch + vectors * d.lanes, kGuard);
  for (int64_t i = 0; i < b.size(); ++i) b[i] = numbers.whole();
  Floats expected(c.size());
  for (int64_t i = 0; i < c.size(); ++i) expected[i] = c[i];
  for (int64_t v = 0; v < vectors; ++v) {
    tile.b[v] = b.data() + v * d.lanes;
    tile.c[v] = c.data() + v * d.lanes;
    tile.lanes[v] = numbers.between(0, 3) == 0 ? numbers.between(0, d.lanes) : d.lanes;
    for (int64_t i = 0; i < d.rows; ++i)
      for (int64_t l = 0; l < tile.lanes[v]; ++l) {
        float& target = expected[v * d.lanes + i * tile.c_pitch + l];
        target = d.with_init ? init[i] : 0.0f;
        for (int64_t k = 0; k < d.depth; ++k)
          target += a[k * d.rows + i] * tile.b[v][offsets[static_cast<size_t>(k)] + l];
      }
  }
  d.family->by_rows[d.rows - 1](tile);
  bool equal = true;
  for (int64_t i = 0; i < c.size(); ++i) equal = equal && c[i] == expected[i];
  CHECK_WITH(equal, "direct tile of " + std::to_string(d.rows) + " rows x " +
                        std::to_string(vectors) + " vectors, depth " + std::to_string(d.depth));
}

void check_direct_family(const DirectFamily& family, const GemmFamily& same_size, int64_t lanes,
                         Numbers& numbers) {
  CHECK(family.vectors == same_size.vectors);
  for (int64_t rows = 1; rows <= same_size.max_rows; ++rows)
    for (int64_t depth : {1, 2, 9, 150})
      for (int round = 0; round < 6; ++round)
        check_direct({&family, rows, lanes, depth, round % 2 == 0}, numbers);
}

// --- channel tiles -------------------------------------------------------------------------------

// Distances that a strip of input would give: up to `reach` floats.
std::vector<int64_t> make_offsets(int64_t depth, int64_t reach, Numbers& numbers) {
  std::vector<int64_t> offsets;
  for (int64_t k = 0; k < depth; ++k) offsets.push_back(numbers.between(0, reach));
  return offsets;
}

int64_t furthest_of(const std::vector<int64_t>& offsets) {
  return *std::max_element(offsets.begin(), offsets.end());
}

void check_channel_tile(const ChannelFamily& family, int64_t lines, int64_t lanes, int64_t depth,
                        Numbers& numbers) {
  const int64_t width = family.vectors * lanes;
  const std::vector<int64_t> offsets = make_offsets(depth, 20, numbers);
  ChannelTile tile{};
  tile.depth = depth;
  tile.offsets = offsets.data();
  tile.b_pitch = width + numbers.between(0, 3);
  tile.channels = numbers.between(0, 1) == 0 ? width : numbers.between(1, width);
  tile.c_pixel = tile.channels + numbers.between(0, 3);
  Floats b((depth - 1) * tile.b_pitch + width);
  Floats bias(tile.channels);
  for (int64_t i = 0; i < b.size(); ++i) b[i] = numbers.whole();
  for (int64_t i = 0; i < bias.size(); ++i) bias[i] = numbers.whole();
  const bool with_bias = numbers.between(0, 1) == 0;
  tile.b = b.data();
  tile.bias = with_bias ? bias.data() : nullptr;
  std::vector<Floats> input, result, expected;
  for (int64_t l = 0; l < lines; ++l) {
    input.emplace_back(furthest_of(offsets) + family.columns);
    for (int64_t i = 0; i < input.back().size(); ++i) input.back()[i] = numbers.whole();
    const int64_t size = (family.columns - 1) * tile.c_pixel + tile.channels;
    result.emplace_back(size, kGuard);
    expected.emplace_back(size, kGuard);
    tile.lines[l] = input.back().data();
    tile.c[l] = result.back().data();
    for (int64_t j = 0; j < family.columns; ++j)
      for (int64_t o = 0; o < tile.channels; ++o) {
        float sum = with_bias ? bias[o] : 0.0f;
        for (int64_t k = 0; k < depth; ++k)
          sum += input.back()[offsets[static_cast<size_t>(k)] + j] * b[k * tile.b_pitch + o];
        expected.back()[j * tile.c_pixel + o] = sum;
      }
  }
  family.by_lines[lines - 1](tile);
  bool equal = true;
  for (size_t l = 0; l < result.size(); ++l)
    for (int64_t i = 0; i < result[l].size(); ++i) equal = equal && result[l][i] == expected[l][i];
  CHECK_WITH(equal, "channel tile of " + std::to_string(lines) + " lines x " +
                        std::to_string(family.columns) + " columns x " +
                        std::to_string(family.vectors) + " vectors, channels " +
                        std::to_string(tile.channels) + ", depth " + std::to_string(depth));
}

void check_channel_family(const ChannelFamily& family, int64_t lanes, Numbers& numbers) {
  CHECK(family.max_lines >= 1 && family.max_lines <= kMaxChannelLines);
  for (int64_t lines = 1; lines <= family.max_lines; ++lines)
    for (int64_t depth : {1, 2, 9, 300})
      for (int round = 0; round < 8; ++round)
        check_channel_tile(family, lines, lanes, depth, numbers);
}

// --- tiles of the weight gradient ----------------------------------------------------------------

void check_weight_tile(const WeightFamily& family, int64_t lines, int64_t lanes, Numbers& numbers) {
  const int64_t channels = family.vectors * lanes;
  WeightTile tile{};
  tile.rows = numbers.between(1, 4);
  tile.width = numbers.between(1, 19);
  tile.line_pitch = tile.width + family.kernel_width - 1 + numbers.between(0, 3);
  tile.b_pitch = channels + numbers.between(0, 3);
  tile.c_pitch = channels + numbers.between(0, 3);
  const int64_t sums = lines * family.kernel_width;
  Floats b((tile.rows * tile.width - 1) * tile.b_pitch + channels);
  Floats result((sums - 1) * tile.c_pitch + channels, kGuard);
  Floats bias(channels, kGuard), expected_bias(channels, kGuard);
  for (int64_t i = 0; i < b.size(); ++i) b[i] = numbers.whole();
  for (int64_t i = 0; i < result.size(); ++i) result[i] = numbers.whole();
  Floats expected(result.size());
  for (int64_t i = 0; i < result.size(); ++i) expected[i] = result[i];
  const bool with_bias = numbers.between(0, 1) == 0;
  tile.b = b.data();
  tile.c = result.data();
  tile.bias = with_bias ? bias.data() : nullptr;
  std::vector<Floats> input;
  for (int64_t l = 0; l < lines; ++l) {
    input.emplace_back((tile.rows - 1) * tile.line_pitch + tile.width + family.kernel_width - 1);
    for (int64_t i = 0; i < input.back().size(); ++i) input.back()[i] = numbers.whole();
    tile.lines[l] = input.back().data();
    for (int64_t q = 0; q < family.kernel_width; ++q)
      for (int64_t o = 0; o < channels; ++o)
        for (int64_t i = 0; i < tile.rows; ++i)
          for (int64_t j = 0; j < tile.width; ++j)
            expected[(l * family.kernel_width + q) * tile.c_pitch + o] +=
                input.back()[i * tile.line_pitch + j + q] *
                b[(i * tile.width + j) * tile.b_pitch + o];
  }
  if (with_bias)
    for (int64_t p = 0; p < tile.rows * tile.width; ++p)
      for (int64_t o = 0; o < channels; ++o) expected_bias[o] += b[p * tile.b_pitch + o];
  family.by_lines[lines - 1](tile);
  bool equal = true;
  for (int64_t i = 0; i < result.size(); ++i) equal = equal && result[i] == expected[i];
  for (int64_t o = 0; o < channels; ++o) equal = equal && bias[o] == expected_bias[o];
  CHECK_WITH(equal, "weight tile of " + std::to_string(lines) + " lines, kernel width " +
                        std::to_string(family.kernel_width) + ", " +
                        std::to_string(family.vectors) + " vectors, " + std::to_string(tile.rows) +
                        " x " + std::to_string(tile.width) + " pixels");
}

void check_dot_tile(const DotFamily& family, int64_t taps, int64_t channels, int64_t lanes,
                    Numbers& numbers) {
  DotTile tile{};
  tile.rows = numbers.between(1, 4);
  tile.width = numbers.between(1, 40);
  tile.line_pitch = tile.width + numbers.between(0, 6);
  tile.grad_row = tile.width + numbers.between(0, 3);
  tile.grad_channel = tile.rows * tile.grad_row + numbers.between(0, 3);
  tile.sum_channel = taps * lanes + numbers.between(0, 3);
  Floats lines(taps + (tile.rows - 1) * tile.line_pitch + tile.width - 1);
  Floats grad((channels - 1) * tile.grad_channel + (tile.rows - 1) * tile.grad_row + tile.width);
  Floats sums((channels - 1) * tile.sum_channel + taps * lanes), bias(channels * lanes, kGuard);
  for (int64_t i = 0; i < lines.size(); ++i) lines[i] = numbers.whole();
  for (int64_t i = 0; i < grad.size(); ++i) grad[i] = numbers.whole();
  for (int64_t i = 0; i < sums.size(); ++i) sums[i] = numbers.whole();
  Floats expected(sums.size()), expected_bias(bias.size(), kGuard);
  for (int64_t i = 0; i < sums.size(); ++i) expected[i] = sums[i];
  const bool with_bias = numbers.between(0, 1) == 0;
  for (int64_t t = 0; t < taps; ++t) tile.taps[t] = lines.data() + taps - 1 - t;
  tile.grad = grad.data();
  tile.sums = sums.data();
  tile.bias = with_bias ? bias.data() : nullptr;
  for (int64_t o = 0; o < channels; ++o)
    for (int64_t i = 0; i < tile.rows; ++i)
      for (int64_t j = 0; j < tile.width; ++j) {
        const float g = grad[o * tile.grad_channel + i * tile.grad_row + j];
        if (with_bias) expected_bias[o * lanes + j % lanes] += g;
        for (int64_t t = 0; t < taps; ++t)
          expected[o * tile.sum_channel + t * lanes + j % lanes] +=
              tile.taps[t][i * tile.line_pitch + j] * g;
      }
  family.tiles[(channels - 1) * family.max_taps + taps - 1](tile);
  bool equal = true;
  for (int64_t i = 0; i < sums.size(); ++i) equal = equal && sums[i] == expected[i];
  for (int64_t i = 0; i < bias.size(); ++i) equal = equal && bias[i] == expected_bias[i];
  CHECK_WITH(equal, "dot tile of " + std::to_string(channels) + " channels, " +
                        std::to_string(taps) + " taps, " + std::to_string(tile.rows) + " x " +
                        std::to_string(tile.width) + " pixels");
}

void check_weight_families(const Conv2dKernels& kernels, int64_t lanes, Numbers& numbers) {
  for (const WeightFamily& family : kernels.weight) {
    CHECK(family.max_lines >= 1 && family.max_lines <= kMaxWeightLines);
    for (int64_t lines = 1; lines <= family.max_lines; ++lines)
      for (int round = 0; round < 30; ++round) check_weight_tile(family, lines, lanes, numbers);
  }
  const DotFamily& dot = kernels.dot;
  for (int64_t channels = 1; channels <= dot.max_channels; ++channels)
    for (int64_t taps = 1; taps <= dot.max_taps; ++taps) {
      CHECK((dot.tiles[(channels - 1) * dot.max_taps + taps - 1] != nullptr) ==
            (channels * taps <= dot.max_sums));
      if (channels * taps > dot.max_sums) continue;
      for (int round = 0; round < 20; ++round) check_dot_tile(dot, taps, channels, lanes, numbers);
    }
  for (int64_t count : {0, 1, 2, 5, 17}) {
    Floats sums(count * lanes), total(count), expected(count);
    for (int64_t i = 0; i < count; ++i) {
      total[i] = expected[i] = numbers.whole();
      for (int64_t l = 0; l < lanes; ++l) expected[i] += sums[i * lanes + l] = numbers.whole();
    }
    kernels.add_lanes(sums.data(), count, total.data());
    for (int64_t i = 0; i < count; ++i) CHECK(total[i] == expected[i]);
  }
}

// --- add_shifted
// ----------------------------------------------------------------------------------

void check_shifted(const Conv2dKernels& kernels, int64_t kernel_rows, int64_t kernel_columns,
                   Numbers& numbers) {
  std::vector<int64_t> tap_rows, tap_columns;
  for (int64_t r = 0; r < kernel_rows; ++r) tap_rows.push_back(numbers.between(-4, 4));
  for (int64_t q = 0; q < kernel_columns; ++q) tap_columns.push_back(numbers.between(-20, 20));
  ShiftedSum s{};
  s.height = numbers.between(0, 6);
  s.width = numbers.between(1, 40);
  s.tap_pitch = s.height * s.width + numbers.between(0, 3);
  s.row = numbers.between(-3, 3);
  s.bias = numbers.whole();
  s.rows = numbers.between(1, 5);
  s.columns = numbers.between(1, 40);
  s.target_row = s.columns + numbers.between(0, 3);
  Floats products(kernel_rows * kernel_columns * s.tap_pitch);
  for (int64_t k = 0; k < products.size(); ++k) products[k] = numbers.whole();
  Floats target(s.rows * s.target_row, kGuard), expected(s.rows * s.target_row, kGuard);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.columns; ++j) {
      float sum = s.bias;
      for (int64_t r = 0; r < kernel_rows; ++r)
        for (int64_t q = 0; q < kernel_columns; ++q) {
          const int64_t y = s.row + i + tap_rows[r], x = j + tap_columns[q];
          if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
          sum += products[(r * kernel_columns + q) * s.tap_pitch + y * s.width + x];
        }
      expected[i * s.target_row + j] = sum;
    }
  s.products = products.data();
  s.tap_rows = tap_rows.data();
  s.tap_row_count = kernel_rows;
  s.tap_columns = tap_columns.data();
  s.tap_column_count = kernel_columns;
  s.target = target.data();
  kernels.add_shifted(s);
  bool equal = true;
  for (int64_t i = 0; i < target.size(); ++i) equal = equal && target[i] == expected[i];
  CHECK_WITH(equal, "add_shifted: " + std::to_string(kernel_rows) + " x " +
                        std::to_string(kernel_columns) + " taps, " + std::to_string(s.height) +
                        " x " + std::to_string(s.width) + " products");
}

}  // namespace
}  // namespace fastconv::cpu

int main() {
  namespace cpu = fastconv::cpu;
  fastconv::testing::Numbers numbers(2);
  fastconv::testing::for_each_isa([&](cpu::Isa isa) {
    const cpu::Conv2dKernels& kernels = cpu::conv2d_kernels(isa);
    const cpu::GemmKernels& gemm = cpu::gemm_kernels(isa);
    cpu::check_packing(kernels, numbers);
    cpu::check_copies(kernels, numbers);
    for (int64_t channels : {0, 1, 2, 9}) cpu::check_pieces(kernels, gemm.lanes, channels, numbers);
    cpu::check_direct_family(kernels.direct_tall, gemm.packed_tall, gemm.lanes, numbers);
    cpu::check_direct_family(kernels.direct_wide, gemm.packed_wide, gemm.lanes, numbers);
    for (const cpu::ChannelFamily& family : kernels.channel_narrow)
      cpu::check_channel_family(family, gemm.lanes, numbers);
    for (const cpu::ChannelFamily& family : kernels.channel_wide)
      cpu::check_channel_family(family, gemm.lanes, numbers);
    cpu::check_weight_families(kernels, gemm.lanes, numbers);
    for (int64_t columns = 1; columns <= 16; ++columns)
      for (int round = 0; round < 60; ++round)
        cpu::check_shifted(kernels, numbers.between(1, 4), columns, numbers);
  });
  return fastconv::testing::report();
}
