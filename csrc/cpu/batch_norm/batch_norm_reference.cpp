// SPDX-License-Identifier: MIT
#include "cpu/batch_norm/batch_norm_reference.h"

#include <cmath>

namespace fastconv::cpu {
namespace {

// Calls body(i) for the position of every value of a channel.
template <class Body>
void for_channel(const BatchNormShape& s, bool channels_last, int64_t channel, const Body& body) {
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t p = 0; p < s.pixels; ++p)
      body(channels_last ? (n * s.pixels + p) * s.channels + channel
                         : (n * s.channels + channel) * s.pixels + p);
}

// What happens to one channel.
template <typename T>
struct Channel {
  template <class Call>
  Channel(const Call& call, int64_t c, T mean_, T rest_, T invstd_)
      : relu(call.relu),
        mean(mean_),
        rest(rest_),
        invstd(invstd_),
        scale(call.weight == nullptr ? invstd : invstd * call.weight[c]),
        shift((call.bias == nullptr ? T{0} : call.bias[c]) - rest * scale) {}

  T before_relu(T x) const { return (x - mean) * scale + shift; }
  T output(T x) const {
    const T y = before_relu(x);
    return relu && y <= 0 ? T{0} : y;
  }
  T masked(T grad, T x) const { return relu && before_relu(x) <= 0 ? T{0} : grad; }

  bool relu;
  T mean, rest, invstd, scale, shift;
};

template <typename T>
void normalize(const BatchNormShape& s, bool channels_last, int64_t c, const Channel<T>& channel,
               const T* input, T* output) {
  for_channel(s, channels_last, c, [&](int64_t i) { output[i] = channel.output(input[i]); });
}

template <typename T>
void move_towards(T* running, double value, double momentum) {
  *running = static_cast<T>((1 - momentum) * *running + momentum * value);
}

}  // namespace

template <typename T>
void batch_norm_training_reference(const BatchNormTraining<T>& call) {
  const BatchNormShape& s = call.shape;
  const auto count = static_cast<double>(s.values());
  for (int64_t c = 0; c < s.channels; ++c) {
    double sum = 0, squares = 0;
    for_channel(s, call.channels_last, c, [&](int64_t i) { sum += call.input[i]; });
    const double mean = sum / count;
    for_channel(s, call.channels_last, c,
                [&](int64_t i) { squares += (call.input[i] - mean) * (call.input[i] - mean); });
    call.mean[c] = static_cast<T>(mean);
    call.mean[s.channels + c] = static_cast<T>(mean - call.mean[c]);
    call.invstd[c] = static_cast<T>(1 / std::sqrt(squares / count + call.eps));
    if (call.running_mean != nullptr) move_towards(&call.running_mean[c], mean, call.momentum);
    if (call.running_var != nullptr)
      move_towards(&call.running_var[c], squares / (count - 1), call.momentum);
    normalize(s, call.channels_last, c,
              Channel<T>(call, c, call.mean[c], call.mean[s.channels + c], call.invstd[c]),
              call.input, call.output);
  }
}

template <typename T>
void batch_norm_inference_reference(const BatchNormInference<T>& call) {
  for (int64_t c = 0; c < call.shape.channels; ++c) {
    const auto invstd = static_cast<T>(1 / std::sqrt(call.var[c] + call.eps));
    normalize(call.shape, call.channels_last, c, Channel<T>(call, c, call.mean[c], T{0}, invstd),
              call.input, call.output);
  }
}

template <typename T>
void batch_norm_backward_reference(const BatchNormBackward<T>& call) {
  const BatchNormShape& s = call.shape;
  const auto count = static_cast<double>(s.values());
  for (int64_t c = 0; c < s.channels; ++c) {
    const Channel<T> channel(call, c, call.mean[c], call.mean[s.channels + c], call.invstd[c]);
    const auto deviation = [&](T x) {
      return static_cast<double>(x) - channel.mean - channel.rest;
    };
    double sum = 0, dot = 0;
    for_channel(s, call.channels_last, c, [&](int64_t i) {
      const double grad = channel.masked(call.grad_output[i], call.input[i]);
      sum += grad;
      dot += grad * deviation(call.input[i]);
    });
    if (call.grad_bias != nullptr) call.grad_bias[c] = static_cast<T>(sum);
    if (call.grad_weight != nullptr) call.grad_weight[c] = static_cast<T>(dot * channel.invstd);
    if (call.grad_input == nullptr) continue;
    const double slope = dot / count * channel.invstd * channel.invstd;
    for_channel(s, call.channels_last, c, [&](int64_t i) {
      const double grad = channel.masked(call.grad_output[i], call.input[i]);
      const double through_mean_and_var =
          call.training ? sum / count + deviation(call.input[i]) * slope : 0;
      call.grad_input[i] = static_cast<T>((grad - through_mean_and_var) * channel.scale);
    });
  }
}

template void batch_norm_training_reference(const BatchNormTraining<float>&);
template void batch_norm_training_reference(const BatchNormTraining<double>&);
template void batch_norm_inference_reference(const BatchNormInference<float>&);
template void batch_norm_inference_reference(const BatchNormInference<double>&);
template void batch_norm_backward_reference(const BatchNormBackward<float>&);
template void batch_norm_backward_reference(const BatchNormBackward<double>&);

}  // namespace fastconv::cpu
