// SPDX-License-Identifier: MIT
// Batch normalisation against plain loops in double precision: every instruction set, both layouts,
// with and without threads, relu, weight and bias; and that the result does not depend on threads.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/batch_norm/batch_norm.h"
#include "cpu/batch_norm/batch_norm_reference.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using fastconv::testing::Floats;
using fastconv::testing::Numbers;

using Doubles = std::vector<double>;

constexpr double kEps = 1e-5, kMomentum = 0.25, kTolerance = 3e-6;

struct Options {
  BatchNormShape shape;
  bool channels_last;
  bool relu;
  bool affine;
  float mean;  // of the input, whose values have a spread of about one
};

std::string text_of(const Options& o) {
  std::string text;
  for (const int64_t size : {o.shape.batch, o.shape.channels, o.shape.pixels})
    text += std::to_string(size) + " ";
  if (o.channels_last) text += "channels_last ";
  if (o.relu) text += "relu ";
  if (!o.affine) text += "plain ";
  return text + "mean " + std::to_string(o.mean);
}

Floats random_floats(int64_t size, Numbers& numbers, float mean = 0) {
  Floats result(size);
  for (int64_t i = 0; i < size; ++i) result[i] = numbers.real() + mean;
  return result;
}

Doubles doubled(const Floats& floats) {
  return {floats.data(), floats.data() + floats.size()};
}

Floats copied(const Floats& floats) {
  Floats result(floats.size());
  std::memcpy(result.data(), floats.data(), sizeof(float) * floats.size());
  return result;
}

// Largest difference over the largest value, which counts as one at least.
double distance(const Floats& got, const Doubles& want) {
  double largest = 1, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::fmax(largest, std::fabs(want[i]));
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    worst = std::isnan(error) ? 1e30 : std::fmax(worst, error);
  }
  return worst / largest;
}

// A layer's tensors; `T` is float, or double for what they should become.
template <class Vector, typename T>
struct Results {
  explicit Results(const BatchNormShape& s)
      : output(s.elements()),
        mean(2 * s.channels),
        invstd(s.channels),
        inferred(s.elements()),
        grad_input(s.elements()),
        eval_grad_input(s.elements()),
        grad_weight(s.channels),
        grad_bias(s.channels) {}
  Vector output, mean, invstd, inferred, grad_input, eval_grad_input, grad_weight, grad_bias;
};

template <typename T, class Vector>
void run_all(const Options& o, const Vector& input, const Vector& weight, const Vector& bias,
             const Vector& grad_output, Vector& running_mean, Vector& running_var,
             Results<Vector, T>& r) {
  const BatchNormShape& s = o.shape;
  const T* w = o.affine ? weight.data() : nullptr;
  const T* b = o.affine ? bias.data() : nullptr;
  Floats scratch(batch_norm_scratch(s, o.channels_last));
  const BatchNormInference<T> inference{s,
                                        o.channels_last,
                                        o.relu,
                                        kEps,
                                        input.data(),
                                        w,
                                        b,
                                        running_mean.data(),
                                        running_var.data(),
                                        r.inferred.data()};
  batch_norm_inference(inference, scratch.data());
  const BatchNormTraining<T> training{s,
                                      o.channels_last,
                                      o.relu,
                                      kEps,
                                      input.data(),
                                      w,
                                      b,
                                      r.output.data(),
                                      r.mean.data(),
                                      r.invstd.data(),
                                      kMomentum,
                                      running_mean.data(),
                                      running_var.data()};
  batch_norm_training(training, scratch.data());
  BatchNormBackward<T> backward{s,
                                o.channels_last,
                                o.relu,
                                true,
                                grad_output.data(),
                                input.data(),
                                w,
                                b,
                                r.mean.data(),
                                r.invstd.data(),
                                r.grad_input.data(),
                                r.grad_weight.data(),
                                r.grad_bias.data()};
  batch_norm_backward(backward, scratch.data());
  backward.training = false;
  backward.grad_input = r.eval_grad_input.data();
  backward.grad_weight = backward.grad_bias = nullptr;
  batch_norm_backward(backward, scratch.data());
}

class Test {
 public:
  explicit Test(const Options& options)
      : options_(options),
        numbers_(5),
        input_(random_floats(options.shape.elements(), numbers_, options.mean)),
        weight_(random_floats(options.shape.channels, numbers_)),
        bias_(random_floats(options.shape.channels, numbers_)),
        grad_output_(random_floats(options.shape.elements(), numbers_)),
        running_mean_(random_floats(options.shape.channels, numbers_, options.mean)),
        running_var_(random_floats(options.shape.channels, numbers_, 9)),
        results_(options.shape) {
    avoid_the_edge_of_relu();
  }

  void run() {
    Floats mean = copied(running_mean_), var = copied(running_var_);
    run_all<float>(options_, input_, weight_, bias_, grad_output_, mean, var, results_);
    Doubles wanted_mean = doubled(running_mean_), wanted_var = doubled(running_var_);
    Results<Doubles, double> wanted(options_.shape);
    run_all<double>(options_, doubled(input_), doubled(weight_), doubled(bias_),
                    doubled(grad_output_), wanted_mean, wanted_var, wanted);
    // Deviations from a mean of 1000 are multiples of its last bit, 6e-5.
    const double allowed = kTolerance;
    compare("output", results_.output, wanted.output, allowed);
    compare("inferred", results_.inferred, wanted.inferred, allowed);
    for (int64_t c = 0; c < options_.shape.channels; ++c)  // double means leave nothing
      results_.mean[c] += results_.mean[options_.shape.channels + c];
    compare("mean", results_.mean, wanted.mean, kTolerance);
    compare("invstd", results_.invstd, wanted.invstd, kTolerance);
    compare("running_mean", mean, wanted_mean, kTolerance);
    compare("running_var", var, wanted_var, kTolerance);
    compare("grad_input", results_.grad_input, wanted.grad_input, allowed);
    compare("eval_grad_input", results_.eval_grad_input, wanted.eval_grad_input, allowed);
    compare("grad_weight", results_.grad_weight, wanted.grad_weight, allowed);
    compare("grad_bias", results_.grad_bias, wanted.grad_bias, allowed);
  }

  const Results<Floats, float>& results() const { return results_; }
  Floats& input() { return input_; }

 private:
  void compare(const char* name, const Floats& got, const Doubles& want, double allowed) {
    const double error = distance(got, want);
    CHECK_WITH(error < allowed, text_of(options_) + " " + name + " off by " +
                                    std::to_string(error) + ", allowed " + std::to_string(allowed));
  }

  // Where an output is zero but for rounding, float and double may differ on whether its gradient
  // passes: such inputs are moved away by a bit and the statistics hardly change.
  void avoid_the_edge_of_relu() {
    if (!options_.relu) return;
    const BatchNormShape& s = options_.shape;
    for (int round = 0; round < 3; ++round) {
      Options before = options_;
      before.relu = false;
      Floats mean = copied(running_mean_), var = copied(running_var_);
      run_all<float>(before, input_, weight_, bias_, grad_output_, mean, var, results_);
      for (int64_t i = 0; i < s.elements(); ++i)
        if (std::fabs(results_.output[i]) < 1e-3 + 1e-6 * std::fabs(options_.mean))
          input_[i] += 0.25f;
    }
  }

  Options options_;
  Numbers numbers_;
  Floats input_, weight_, bias_, grad_output_, running_mean_, running_var_;
  Results<Floats, float> results_;
};

bool equal(const Floats& a, const Floats& b) {
  return std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

void test_shapes() {
  const std::vector<BatchNormShape> shapes = {{2, 3, 49}, {5, 17, 1},    {3, 70, 16}, {1, 2, 2100},
                                              {9, 5, 33}, {600, 66, 1},  {2, 1, 1},   {70, 4, 100},
                                              {1, 1, 2},  {300, 130, 3}, {3, 6, 1100}};
  for (const BatchNormShape& shape : shapes)
    for (const bool channels_last : {false, true})
      for (const bool relu : {false, true})
        for (const bool affine : {false, true}) {
          if (relu && shape.values() < 40) continue;  // too few to be moved off the edge
          Test({shape, channels_last, relu, affine, 0.5f}).run();
        }
  for (const bool channels_last : {false, true})
    for (const float mean : {1000.0f, -30000.0f})
      Test({{6, 19, 150}, channels_last, false, true, mean}).run();
}

// Enough work that threads are worth waking; few channels, and many.
void test_threads() {
  for (const BatchNormShape& shape : {BatchNormShape{40, 2, 700}, {20, 33, 150}, {1900, 40, 1}})
    for (const bool channels_last : {false, true}) {
      const Options options{shape, channels_last, true, true, 0.5f};
      fastconv::testing::use_no_threads();
      Test alone(options);
      alone.run();
      fastconv::testing::use_threads();
      Test together(options);
      together.run();
      const auto &a = alone.results(), &b = together.results();
      CHECK_WITH(equal(a.output, b.output) && equal(a.mean, b.mean) && equal(a.invstd, b.invstd) &&
                     equal(a.grad_input, b.grad_input) && equal(a.grad_weight, b.grad_weight) &&
                     equal(a.grad_bias, b.grad_bias),
                 text_of(options));
    }
  fastconv::testing::use_no_threads();
}

// A constant channel has variance zero, and NaN stays where it came in.
void test_special_values() {
  const Options options{{3, 2, 40}, false, true, true, 0.5f};
  Test test(options);
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t p = 0; p < 40; ++p) test.input()[(n * 2 + 1) * 40 + p] = 3.0f;
  test.input()[7] = fastconv::testing::kNan;
  const BatchNormShape& s = options.shape;
  Floats ones(2, 1), zeros(2, 0), mean(4), invstd(2), output(s.elements());
  Floats scratch(batch_norm_scratch(s, false));
  batch_norm_training<float>({s, false, true, kEps, test.input().data(), ones.data(), zeros.data(),
                              output.data(), mean.data(), invstd.data(), 0, nullptr, nullptr},
                             scratch.data());
  CHECK(std::isnan(output[0]) && std::isnan(output[7]) && output[40] == 0 && mean[1] == 3);
  CHECK(std::fabs(invstd[1] - 1 / std::sqrt(kEps)) < 1e-3);
  batch_norm_inference<float>({s, false, true, kEps, test.input().data(), nullptr, nullptr,
                               zeros.data(), ones.data(), output.data()},
                              scratch.data());
  CHECK(std::isnan(output[7]) && output[6] >= 0 && output[40] > 2.9f);
}

// The comparison must notice one wrong value.
void test_negative_control() {
  Doubles wanted(100, 1.0);
  Floats got(100, 1.0f);
  CHECK(distance(got, wanted) < kTolerance);
  got[37] += 1e-5f;
  CHECK(!(distance(got, wanted) < kTolerance));
}

}  // namespace

int main() {
  fastconv::testing::for_each_isa([](Isa) {
    test_shapes();
    test_threads();
    test_special_values();
  });
  test_negative_control();
  return fastconv::testing::report();
}
