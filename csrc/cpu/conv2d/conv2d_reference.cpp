// SPDX-License-Identifier: MIT
#include "cpu/conv2d/conv2d_reference.h"

#include <algorithm>

#include "common/checked.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Kernel positions k in [begin, end) with 0 <= origin + k * dilation < size.
struct TapRange {
  int64_t begin;
  int64_t end;
};

TapRange taps_inside(int64_t origin, int64_t dilation, int64_t kernel, int64_t size) {
  const int64_t begin = origin < 0 ? std::min(ceil_div(-origin, dilation), kernel) : 0;
  const int64_t end = origin >= size ? 0 : std::min(ceil_div(size - origin, dilation), kernel);
  return {begin, std::max(begin, end)};
}

// Output positions [begin, end) with 0 <= o * stride + offset < size.
TapRange outputs_inside(int64_t offset, int64_t stride, int64_t outputs, int64_t size) {
  return taps_inside(offset, stride, outputs, size);
}

// Splits [0, items) over the threads and calls body(item) for each.
template <typename Body>
void for_each_item(int64_t items, int64_t multiply_adds, const Body& body) {
  const int64_t slots = std::clamp<int64_t>(worthwhile_threads(multiply_adds, 0), 1, items);
  parallel_for(slots, [&](int64_t slot) {
    for (int64_t item = items * slot / slots; item < items * (slot + 1) / slots; ++item) body(item);
  });
}

}  // namespace

template <typename T>
void conv2d_forward_reference(const Conv2dShape& s, const T* input, Strides4 in, const T* weight,
                              const T* bias, T* output, Strides4 out) {
  const int64_t group_in = s.group_in_channels();
  if (s.batch * s.out_channels == 0) return;
  for_each_item(s.batch * s.out_channels, s.multiply_adds(), [&](int64_t item) {
    const int64_t n = item / s.out_channels;
    const int64_t o = item % s.out_channels;
    const int64_t first_channel = o / s.group_out_channels() * group_in;
    const T* image = input + n * in.batch + first_channel * in.channel;
    for (int64_t i = 0; i < s.out_height; ++i) {
      const int64_t row = i * s.stride_height - s.padding_height;
      const auto rows = taps_inside(row, s.dilation_height, s.kernel_height, s.in_height);
      for (int64_t j = 0; j < s.out_width; ++j) {
        const int64_t column = j * s.stride_width - s.padding_width;
        const auto columns = taps_inside(column, s.dilation_width, s.kernel_width, s.in_width);
        T sum = 0;
        for (int64_t c = 0; c < group_in; ++c)
          for (int64_t r = rows.begin; r < rows.end; ++r)
            for (int64_t q = columns.begin; q < columns.end; ++q)
              sum += weight[((o * group_in + c) * s.kernel_height + r) * s.kernel_width + q] *
                     image[c * in.channel + (row + r * s.dilation_height) * in.row +
                           (column + q * s.dilation_width) * in.column];
        output[n * out.batch + o * out.channel + i * out.row + j * out.column] =
            bias == nullptr ? sum : sum + bias[o];
      }
    }
  });
}

template <typename T>
void conv2d_grad_input_reference(const Conv2dShape& s, const T* grad_output, Strides4 go,
                                 const T* weight, T* grad_input, Strides4 gi) {
  const int64_t group_in = s.group_in_channels();
  const int64_t group_out = s.group_out_channels();
  if (s.batch * s.in_channels == 0) return;
  for_each_item(s.batch * s.in_channels, s.multiply_adds(), [&](int64_t item) {
    const int64_t n = item / s.in_channels;
    const int64_t channel = item % s.in_channels;
    const int64_t group = channel / group_in;
    const int64_t c = channel % group_in;
    T* image = grad_input + n * gi.batch + channel * gi.channel;
    for (int64_t i = 0; i < s.in_height; ++i)
      for (int64_t j = 0; j < s.in_width; ++j) image[i * gi.row + j * gi.column] = 0;
    for (int64_t o = group * group_out; o < (group + 1) * group_out; ++o) {
      const T* plane = grad_output + n * go.batch + o * go.channel;
      for (int64_t r = 0; r < s.kernel_height; ++r) {
        const int64_t row = r * s.dilation_height - s.padding_height;
        const auto rows = outputs_inside(row, s.stride_height, s.out_height, s.in_height);
        for (int64_t q = 0; q < s.kernel_width; ++q) {
          const int64_t column = q * s.dilation_width - s.padding_width;
          const auto columns = outputs_inside(column, s.stride_width, s.out_width, s.in_width);
          const T w = weight[((o * group_in + c) * s.kernel_height + r) * s.kernel_width + q];
          for (int64_t i = rows.begin; i < rows.end; ++i)
            for (int64_t j = columns.begin; j < columns.end; ++j)
              image[(i * s.stride_height + row) * gi.row +
                    (j * s.stride_width + column) * gi.column] +=
                  w * plane[i * go.row + j * go.column];
        }
      }
    }
  });
}

template <typename T>
void conv2d_grad_weight_reference(const Conv2dShape& s, const T* grad_output, Strides4 go,
                                  const T* input, Strides4 in, T* grad_weight, T* grad_bias) {
  const int64_t group_in = s.group_in_channels();
  if (s.out_channels == 0) return;
  for_each_item(s.out_channels, s.multiply_adds(), [&](int64_t o) {
    const int64_t first_channel = o / s.group_out_channels() * group_in;
    for (int64_t c = 0; c < group_in; ++c) {
      for (int64_t r = 0; r < s.kernel_height; ++r) {
        const int64_t row = r * s.dilation_height - s.padding_height;
        const auto rows = outputs_inside(row, s.stride_height, s.out_height, s.in_height);
        for (int64_t q = 0; q < s.kernel_width; ++q) {
          const int64_t column = q * s.dilation_width - s.padding_width;
          const auto columns = outputs_inside(column, s.stride_width, s.out_width, s.in_width);
          T sum = 0;
          for (int64_t n = 0; n < s.batch; ++n) {
            const T* image = input + n * in.batch + (first_channel + c) * in.channel;
            const T* plane = grad_output + n * go.batch + o * go.channel;
            for (int64_t i = rows.begin; i < rows.end; ++i)
              for (int64_t j = columns.begin; j < columns.end; ++j)
                sum += plane[i * go.row + j * go.column] *
                       image[(i * s.stride_height + row) * in.row +
                             (j * s.stride_width + column) * in.column];
          }
          grad_weight[((o * group_in + c) * s.kernel_height + r) * s.kernel_width + q] = sum;
        }
      }
    }
    if (grad_bias == nullptr) return;
    T sum = 0;
    for (int64_t n = 0; n < s.batch; ++n)
      for (int64_t i = 0; i < s.out_height; ++i)
        for (int64_t j = 0; j < s.out_width; ++j)
          sum += grad_output[n * go.batch + o * go.channel + i * go.row + j * go.column];
    grad_bias[o] = sum;
  });
}

template void conv2d_forward_reference(const Conv2dShape&, const float*, Strides4, const float*,
                                       const float*, float*, Strides4);
template void conv2d_forward_reference(const Conv2dShape&, const double*, Strides4, const double*,
                                       const double*, double*, Strides4);
template void conv2d_grad_input_reference(const Conv2dShape&, const float*, Strides4, const float*,
                                          float*, Strides4);
template void conv2d_grad_input_reference(const Conv2dShape&, const double*, Strides4,
                                          const double*, double*, Strides4);
template void conv2d_grad_weight_reference(const Conv2dShape&, const float*, Strides4, const float*,
                                           Strides4, float*, float*);
template void conv2d_grad_weight_reference(const Conv2dShape&, const double*, Strides4,
                                           const double*, Strides4, double*, double*);

}  // namespace fastconv::cpu
