// SPDX-License-Identifier: MIT
// The chain of fully connected layers against plain loops in double precision, on every
// instruction set, with and without threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/mlp/mlp.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using fastconv::testing::Floats;
using fastconv::testing::Numbers;

using Widths = std::vector<int64_t>;

double value_of(Activation activation, double x) {
  if (activation == Activation::kRelu) return x > 0 ? x : 0;
  if (activation == Activation::kLeakyRelu) return x > 0 ? x : 0.25 * x;
  if (activation == Activation::kSigmoid) return 1 / (1 + std::exp(-x));
  if (activation == Activation::kTanh) return std::tanh(x);
  return x;
}

double derivative_of(Activation activation, double y) {
  if (activation == Activation::kRelu) return y > 0 ? 1 : 0;
  if (activation == Activation::kLeakyRelu) return y > 0 ? 1 : 0.25;
  if (activation == Activation::kSigmoid) return y * (1 - y);
  if (activation == Activation::kTanh) return 1 - y * y;
  return 1;
}

// One layer's tensors and what they should become.
struct Layer {
  Layer(int64_t batch, int64_t in_, int64_t out_, Numbers& numbers)
      : in(in_),
        out(out_),
        weight(in_ * out_),
        bias(out_),
        output(batch * out_),
        grad_weight(in_ * out_),
        grad_bias(out_) {
    for (int64_t i = 0; i < weight.size(); ++i)
      weight[i] = numbers.real() / std::sqrt(static_cast<float>(in));
    for (int64_t i = 0; i < out; ++i) bias[i] = numbers.real();
  }
  int64_t in, out;
  Floats weight, bias, output, grad_weight, grad_bias;
  std::vector<double> expected, expected_grad_weight, expected_grad_bias;
};

double distance(const Floats& got, const std::vector<double>& want) {
  double largest = 1, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::fmax(largest, std::fabs(want[i]));
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    worst = std::isnan(error) ? 1e30 : std::fmax(worst, error);
  }
  return worst / largest;
}

class Test {
 public:
  Test(int64_t batch, const Widths& widths, Activation activation)
      : batch_(batch),
        activation_(activation),
        numbers_(7),
        input_(batch * widths.front()),
        grad_output_(batch * widths.back()),
        grad_input_(batch * widths.front()) {
    for (int64_t i = 0; i < input_.size(); ++i) input_[i] = numbers_.real();
    for (int64_t i = 0; i < grad_output_.size(); ++i) grad_output_[i] = numbers_.real();
    layers_.reserve(widths.size());
    for (size_t l = 0; l + 1 < widths.size(); ++l)
      layers_.emplace_back(batch, widths[l], widths[l + 1], numbers_);
  }

  void run_and_check(const std::string& what) {
    expect();
    run();
    for (size_t l = 0; l < layers_.size(); ++l) {
      const std::string which = what + " layer " + std::to_string(l);
      CHECK_WITH(distance(layers_[l].output, layers_[l].expected) < 2e-6, which + " output");
      CHECK_WITH(distance(layers_[l].grad_weight, layers_[l].expected_grad_weight) < 3e-6,
                 which + " grad_weight");
      CHECK_WITH(distance(layers_[l].grad_bias, layers_[l].expected_grad_bias) < 3e-6,
                 which + " grad_bias");
    }
    CHECK_WITH(distance(grad_input_, expected_grad_input_) < 3e-6, what + " grad_input");
  }

  // The comparison must notice one wrong value.
  void check_negative_control() {
    expect();
    run();
    layers_[0].output[1] += 1e-3f;
    CHECK(!(distance(layers_[0].output, layers_[0].expected) < 2e-6));
  }

 private:
  void run() {
    std::vector<MlpLayer> layers;
    for (Layer& l : layers_)
      layers.push_back({l.in, l.out, l.weight.data(), l.bias.data(), l.output.data(),
                        l.grad_weight.data(), l.grad_bias.data()});
    const MlpCall call{
        batch_,      input_.data(), layers.data(),       static_cast<int64_t>(layers.size()),
        activation_, 0.25f,         grad_output_.data(), grad_input_.data()};
    const MlpPlan forward = plan_mlp_forward(call);
    Floats scratch(forward.scratch_floats);
    mlp_forward(forward, call, scratch.data());
    const MlpPlan backward = plan_mlp_backward(call);
    Floats backward_scratch(backward.scratch_floats);
    mlp_backward(backward, call, backward_scratch.data());
  }

  void expect() {
    std::vector<std::vector<double>> x{{input_.data(), input_.data() + input_.size()}};
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      layer.expected.assign(batch_ * layer.out, 0);
      for (int64_t n = 0; n < batch_; ++n)
        for (int64_t o = 0; o < layer.out; ++o) {
          double sum = layer.bias[o];
          for (int64_t k = 0; k < layer.in; ++k)
            sum += x[l][n * layer.in + k] * layer.weight[o * layer.in + k];
          layer.expected[n * layer.out + o] =
              l + 1 < layers_.size() ? value_of(activation_, sum) : sum;
        }
      x.push_back(layer.expected);
    }
    std::vector<double> grad(grad_output_.data(), grad_output_.data() + grad_output_.size());
    for (size_t l = layers_.size(); l-- > 0;) {
      Layer& layer = layers_[l];
      layer.expected_grad_weight.assign(layer.in * layer.out, 0);
      layer.expected_grad_bias.assign(layer.out, 0);
      std::vector<double> below(batch_ * layer.in, 0);
      for (int64_t n = 0; n < batch_; ++n)
        for (int64_t o = 0; o < layer.out; ++o) {
          const double g = grad[n * layer.out + o];
          layer.expected_grad_bias[o] += g;
          for (int64_t k = 0; k < layer.in; ++k) {
            layer.expected_grad_weight[o * layer.in + k] += g * x[l][n * layer.in + k];
            below[n * layer.in + k] += g * layer.weight[o * layer.in + k];
          }
        }
      if (l > 0)
        for (size_t i = 0; i < below.size(); ++i) below[i] *= derivative_of(activation_, x[l][i]);
      grad = below;
    }
    expected_grad_input_ = grad;
  }

  int64_t batch_;
  Activation activation_;
  Numbers numbers_;
  Floats input_, grad_output_, grad_input_;
  std::vector<double> expected_grad_input_;
  std::vector<Layer> layers_;
};

}  // namespace

int main() {
  const std::vector<Widths> chains = {{40, 33, 17, 10}, {1, 1}, {37, 50}, {16, 64, 3}, {129, 2, 5}};
  fastconv::testing::for_each_isa([&](Isa isa) {
    for (const bool threads : {false, true}) {
      if (threads) fastconv::testing::use_threads();
      for (const Widths& widths : chains)
        for (const int64_t batch : {1, 2, 12, 13, 31, 64, 200})
          for (int a = 0; a < kActivations; ++a) {
            if (threads && (a != 1 || batch < 64)) continue;
            Test(batch, widths, static_cast<Activation>(a))
                .run_and_check(std::string(isa_name(isa)) + " batch " + std::to_string(batch) +
                               " width " + std::to_string(widths[0]) + " activation " +
                               std::to_string(a));
          }
    }
    // Enough work that several threads are worth waking.
    Test(300, {150, 90, 40}, Activation::kTanh).run_and_check("threads");
    fastconv::testing::use_no_threads();
  });
  Test(3, {5, 4, 2}, Activation::kRelu).check_negative_control();
  return fastconv::testing::report();
}
