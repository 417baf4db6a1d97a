// SPDX-License-Identifier: MIT
// bfloat16: a few planes at a time are widened to float32 in a cache, pooled by the kernels of
// float32, and narrowed. Planes are split over threads.
#include <algorithm>

#include "common/checked.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/pool2d/pool2d_dispatch.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kGroupFloats = 32 * 1024;  // an eighth of L2

struct Groups {
  explicit Groups(const Pool2dShape& s)
      : planes(s.batch * s.channels),
        in_plane(s.in_height * s.in_width),
        out_plane(s.out_height * s.out_width),
        group(std::clamp<int64_t>(kGroupFloats / (in_plane + 2 * out_plane), 1, planes)),
        slots(std::min(
            worthwhile_threads(planes * out_plane * s.taps(), 2 * planes * (in_plane + out_plane)),
            ceil_div(planes, group))),
        in_floats(round_up(group * in_plane, 16)),
        out_floats(round_up(group * out_plane, 16)) {}

  // Input, output and, for averages, the divided gradients.
  int64_t slot_floats() const { return in_floats + 2 * out_floats; }

  int64_t planes, in_plane, out_plane;
  int64_t group;  // planes worked on at a time
  int64_t slots;
  int64_t in_floats, out_floats;
};

// One group: planes [first, first + count) and its memory.
struct Group {
  int64_t first;
  int64_t count;
  Pool2dShape shape;  // of the group
  Strides4 in_strides, out_strides;
  float* in;
  float* out;
  float* more;  // as large as out
};

template <class Body>
void for_each_group(const Pool2dShape& s, float* scratch, const Body& body) {
  const Groups groups(s);
  const int64_t pieces = ceil_div(groups.planes, groups.group);
  parallel_for(groups.slots, [&](int64_t slot) {
    float* own = scratch + slot * groups.slot_floats();
    for (int64_t i = pieces * slot / groups.slots; i < pieces * (slot + 1) / groups.slots; ++i) {
      Group g{};
      g.first = i * groups.group;
      g.count = std::min(groups.group, groups.planes - g.first);
      g.shape = s;
      // Two images where that comes out even: windows over whole planes then run in one row.
      g.shape.batch = g.count % 2 == 0 ? 2 : 1;
      g.shape.channels = g.count / g.shape.batch;
      g.in_strides = contiguous_strides(g.shape.channels, s.in_height, s.in_width);
      g.out_strides = contiguous_strides(g.shape.channels, s.out_height, s.out_width);
      g.in = own;
      g.out = own + groups.in_floats;
      g.more = g.out + groups.out_floats;
      body(g, groups);
    }
  });
}

int64_t offset_bytes(const Pool2dShape& s) {
  return offset_type_of(s.taps()) == OffsetType::kUint8 ? 1 : 4;
}

void widen(const uint16_t* tensor, const Group& g, int64_t plane, float* target) {
  pool2d_kernels(active_isa()).widen(tensor + g.first * plane, g.count * plane, target);
}

void narrow(const float* source, const Group& g, int64_t plane, uint16_t* tensor) {
  pool2d_kernels(active_isa()).narrow(source, g.count * plane, tensor + g.first * plane);
}

}  // namespace

int64_t pool2d_bfloat16_scratch(const Pool2dShape& shape) {
  const Groups groups(shape);
  return groups.slots * groups.slot_floats();
}

void max_pool2d_forward(const MaxPool2dForward<uint16_t>& call, float* scratch) {
  const int64_t bytes = offset_bytes(call.shape);
  for_each_group(call.shape, scratch, [&](const Group& g, const Groups& sizes) {
    char* offsets = static_cast<char*>(call.offsets);
    if (offsets != nullptr) offsets += g.first * sizes.out_plane * bytes;
    widen(call.input, g, sizes.in_plane, g.in);
    max_pool2d_forward<float>({g.shape, false, g.in, g.in_strides, g.out, g.out_strides, offsets});
    narrow(g.out, g, sizes.out_plane, call.output);
  });
}

void max_pool2d_backward(const MaxPool2dBackward<uint16_t>& call, float* scratch) {
  const int64_t bytes = offset_bytes(call.shape);
  for_each_group(call.shape, scratch, [&](const Group& g, const Groups& sizes) {
    const char* offsets =
        static_cast<const char*>(call.offsets) + g.first * sizes.out_plane * bytes;
    widen(call.grad_output, g, sizes.out_plane, g.out);
    max_pool2d_backward<float>(
        {g.shape, false, g.out, g.out_strides, offsets, g.out_strides, g.in, g.in_strides});
    narrow(g.in, g, sizes.in_plane, call.grad_input);
  });
}

void avg_pool2d_forward(const AvgPool2dForward<uint16_t>& call, float* scratch) {
  for_each_group(call.shape, scratch, [&](const Group& g, const Groups& sizes) {
    widen(call.input, g, sizes.in_plane, g.in);
    avg_pool2d_forward<float>(
        {g.shape, false, call.divisor, g.in, g.in_strides, g.out, g.out_strides});
    narrow(g.out, g, sizes.out_plane, call.output);
  });
}

void avg_pool2d_backward(const AvgPool2dBackward<uint16_t>& call, float* scratch) {
  for_each_group(call.shape, scratch, [&](const Group& g, const Groups& sizes) {
    widen(call.grad_output, g, sizes.out_plane, g.out);
    avg_pool2d_backward<float>(
        {g.shape, false, call.divisor, g.out, g.out_strides, g.in, g.in_strides}, g.more);
    narrow(g.in, g, sizes.in_plane, call.grad_input);
  });
}

}  // namespace fastconv::cpu
