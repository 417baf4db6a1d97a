// SPDX-License-Identifier: MIT
// Blocking and threads of the chain of fully connected layers.
//
//   forward   blocks of images are turned round once, [features, images], go through all layers in
//             that form, with vectors along the images, and every result is turned back; a few
//             images are multiplied one by one instead, with vectors along the features
//   backward  first the gradients of all layers' inputs, threads split the images; then those of
//             the weights, threads split the rows. Nothing has to be turned round.
#include "cpu/mlp/mlp.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/mlp/mlp_ukernels.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kFewImages = 12;    // up to here, one by one is faster
constexpr int64_t kDepthBlock = 128;  // images whose gradients are multiplied at a time

int64_t multiply_adds(const MlpCall& call) {
  int64_t sum = 0;
  for (int64_t l = 0; l < call.layer_count; ++l)
    sum += call.layers[l].in_features * call.layers[l].out_features;
  return sum * call.batch;
}

int64_t widest(const MlpCall& call) {
  int64_t most = call.layers[0].in_features;
  for (int64_t l = 0; l < call.layer_count; ++l) most = std::max(most, call.layers[l].out_features);
  return most;
}

// Images of one block: the columns of a tile.
int64_t block_images(const MlpKernels& kernels) {
  return kernels.vectors * kernels.lanes;
}

// c[rows, columns] of a product, cut into tiles; `tile` describes the whole of it.
void multiply(const MlpKernels& kernels, int64_t rows, int64_t columns, const MatrixTile& whole) {
  const int64_t width = kernels.vectors * kernels.lanes;
  const int64_t height = ceil_div(rows, ceil_div(rows, kernels.max_rows));
  for (int64_t j = 0; j < columns; j += width) {
    MatrixTile tile = whole;
    tile.b = whole.b + j;
    tile.columns = std::min(width, columns - j);
    const MatrixTileFn* family = tile.columns == width ? kernels.whole : kernels.part;
    for (int64_t i = 0; i < rows; i += height) {
      tile.a = whole.a + i * whole.a_row;
      tile.c = whole.c + i * whole.c_pitch + j;
      tile.row_init = whole.row_init == nullptr ? nullptr : whole.row_init + i;
      family[std::min(height, rows - i) - 1](tile);
    }
  }
}

Activation activation_behind(const MlpCall& call, int64_t layer) {
  return layer + 1 < call.layer_count ? call.activation : Activation::kNone;
}

void forward_one_by_one(const MlpKernels& kernels, const MlpCall& call) {
  for (int64_t n = 0; n < call.batch; ++n) {
    const float* x = call.input + n * call.layers[0].in_features;
    for (int64_t l = 0; l < call.layer_count; ++l) {
      const MlpLayer& layer = call.layers[l];
      float* out = layer.output + n * layer.out_features;
      kernels.vector_product[static_cast<int>(activation_behind(call, l))](
          {layer.in_features, layer.out_features, layer.weight, x, layer.bias, call.negative_slope,
           out});
      x = out;
    }
  }
}

// Images [first, first + count), count at most block_images; `scratch` holds two blocks.
void forward_block(const MlpKernels& kernels, const MlpCall& call, int64_t first, int64_t count,
                   float* scratch) {
  const int64_t pitch = block_images(kernels);
  const int64_t features = call.layers[0].in_features;
  float* x = scratch;
  float* y = scratch + widest(call) * pitch;
  kernels.transpose({count, features, call.input + first * features, features, x, pitch});
  for (int64_t l = 0; l < call.layer_count; ++l) {
    const MlpLayer& layer = call.layers[l];
    MatrixTile tile{};
    tile.depth = layer.in_features;
    tile.a = layer.weight;
    tile.a_row = layer.in_features;
    tile.a_depth = 1;
    tile.b = x;
    tile.b_pitch = pitch;
    tile.c = y;
    tile.c_pitch = pitch;
    tile.row_init = layer.bias;
    multiply(kernels, layer.out_features, count, tile);
    const Activation activation = activation_behind(call, l);
    if (activation != Activation::kNone)
      for (int64_t o = 0; o < layer.out_features; ++o)
        kernels.activate[static_cast<int>(activation)]({count, call.negative_slope, y + o * pitch});
    kernels.transpose({layer.out_features, count, y, pitch,
                       layer.output + first * layer.out_features, layer.out_features});
    std::swap(x, y);
  }
}

// Where the gradients of the layers' outputs lie; the last one came with the call.
struct OutputGrads {
  OutputGrads(const MlpCall& call_, float* scratch_) : call(call_), scratch(scratch_) {}

  const float* of(int64_t layer) const {
    return layer + 1 == call.layer_count ? call.grad_output : hidden(layer);
  }
  float* hidden(int64_t layer) const {
    float* at = scratch;
    for (int64_t l = 0; l < layer; ++l) at += call.batch * call.layers[l].out_features;
    return at;
  }

  const MlpCall& call;
  float* scratch;
};

// Gradients of the inputs of all layers, for images [first, last).
void input_grads(const MlpKernels& kernels, const MlpCall& call, const OutputGrads& grads,
                 int64_t first, int64_t last) {
  for (int64_t l = call.layer_count - 1; l >= 0; --l) {
    const MlpLayer& layer = call.layers[l];
    float* target = l == 0 ? call.grad_input : grads.hidden(l - 1);
    if (target == nullptr) return;
    MatrixTile tile{};
    tile.depth = layer.out_features;
    tile.a = grads.of(l) + first * layer.out_features;
    tile.a_row = layer.out_features;
    tile.a_depth = 1;
    tile.b = layer.weight;
    tile.b_pitch = layer.in_features;
    tile.c = target + first * layer.in_features;
    tile.c_pitch = layer.in_features;
    multiply(kernels, last - first, layer.in_features, tile);
    if (l == 0) return;
    kernels.scale[static_cast<int>(call.activation)](
        {(last - first) * layer.in_features, call.negative_slope,
         call.layers[l - 1].output + first * layer.in_features, tile.c});
  }
}

// Gradients of rows [first, last) of one layer's weights.
void weight_grads(const MlpKernels& kernels, const MlpCall& call, const float* grad, int64_t l,
                  int64_t first, int64_t last) {
  const MlpLayer& layer = call.layers[l];
  const float* x = l == 0 ? call.input : call.layers[l - 1].output;
  MatrixTile tile{};
  tile.a_row = 1;
  tile.a_depth = layer.out_features;
  tile.b_pitch = layer.in_features;
  tile.c = layer.grad_weight + first * layer.in_features;
  tile.c_pitch = layer.in_features;
  for (int64_t n = 0; n < call.batch; n += kDepthBlock) {
    tile.depth = std::min(kDepthBlock, call.batch - n);
    tile.a = grad + n * layer.out_features + first;
    tile.b = x + n * layer.in_features;
    tile.accumulate = n > 0;
    multiply(kernels, last - first, layer.in_features, tile);
  }
}

}  // namespace

MlpPlan plan_mlp_forward(const MlpCall& call) {
  MlpPlan plan{active_isa(), 1, 0};
  if (call.batch <= kFewImages) return plan;
  const int64_t images = block_images(mlp_kernels(plan.isa));
  plan.slots = std::min(worthwhile_threads(multiply_adds(call), 0), ceil_div(call.batch, images));
  plan.scratch_floats = plan.slots * 2 * widest(call) * images;
  return plan;
}

void mlp_forward(const MlpPlan& plan, const MlpCall& call, float* scratch) {
  const MlpKernels& kernels = mlp_kernels(plan.isa);
  if (call.batch <= kFewImages) {
    record_kernel(KernelId::kMlpForward, "one_by_one", plan.isa);
    forward_one_by_one(kernels, call);
    return;
  }
  record_kernel(KernelId::kMlpForward, "blocks", plan.isa);
  const int64_t images = block_images(kernels);
  const int64_t blocks = ceil_div(call.batch, images);
  parallel_for(plan.slots, [&](int64_t slot) {
    float* own = scratch + slot * 2 * widest(call) * images;
    for (int64_t b = blocks * slot / plan.slots; b < blocks * (slot + 1) / plan.slots; ++b)
      forward_block(kernels, call, b * images, std::min(images, call.batch - b * images), own);
  });
}

MlpPlan plan_mlp_backward(const MlpCall& call) {
  MlpPlan plan{active_isa(), worthwhile_threads(2 * multiply_adds(call), 0), 0};
  for (int64_t l = 0; l + 1 < call.layer_count; ++l)
    plan.scratch_floats += call.batch * call.layers[l].out_features;
  return plan;
}

void mlp_backward(const MlpPlan& plan, const MlpCall& call, float* scratch) {
  const MlpKernels& kernels = mlp_kernels(plan.isa);
  record_kernel(KernelId::kMlpBackward, "tiles", plan.isa);
  const OutputGrads grads(call, scratch);
  const int64_t slices = std::min(plan.slots, call.batch);
  parallel_for(slices, [&](int64_t slot) {
    input_grads(kernels, call, grads, call.batch * slot / slices, call.batch * (slot + 1) / slices);
  });
  parallel_for(plan.slots, [&](int64_t slot) {
    for (int64_t l = 0; l < call.layer_count; ++l) {
      const MlpLayer& layer = call.layers[l];
      // Whole tiles per slot: how the rows are cut does not change what each of them sums up.
      const int64_t tiles = ceil_div(layer.out_features, kernels.max_rows);
      const int64_t first = tiles * slot / plan.slots * kernels.max_rows;
      const int64_t end = tiles * (slot + 1) / plan.slots * kernels.max_rows;
      const int64_t last = std::min(end, layer.out_features);
      if (first < last) weight_grads(kernels, call, grads.of(l), l, first, last);
      if (layer.grad_bias != nullptr && slot == l % plan.slots)
        kernels.column_sums({call.batch, layer.out_features, grads.of(l), layer.grad_bias});
    }
  });
}

}  // namespace fastconv::cpu
