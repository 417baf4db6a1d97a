// SPDX-License-Identifier: MIT
// Pooling kernels of every available ISA against the plain loops: values and offsets bit for bit,
// averages within rounding. Every tensor touches a page that may not be touched, so that any access
// outside ends the program, masked vector loads included. Prints what differs and returns non-zero.
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "check.h"
#include "cpu/pool2d/pool2d.h"
#include "cpu/pool2d/pool2d_reference.h"
#include "cpu/runtime/isa.h"

namespace {

using namespace fastconv;
using namespace fastconv::cpu;
using testing::for_each_isa;

int failures = 0;

// Ends where a forbidden page begins, or begins where one ends, by chance.
template <typename T>
class Array {
 public:
  explicit Array(size_t size, T value = T{}) : size_(size) {
    static std::minstd_rand chance;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = size * sizeof(T);
    mapped_ = (bytes + page - 1) / page * page + 2 * page;
    void* memory =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    base_ = static_cast<char*>(memory);
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + mapped_ - page, page, PROT_NONE);
    const bool at_end = chance() % 2 == 0;
    data_ = reinterpret_cast<T*>(at_end ? base_ + mapped_ - page - bytes : base_ + page);
    for (T& element : *this) element = value;
  }
  ~Array() { munmap(base_, mapped_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() { return data_; }
  const T* data() const { return data_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  size_t size() const { return size_; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  char* base_;
  T* data_;
  size_t size_;
  size_t mapped_;
};

struct Case {
  Pool2dShape shape;
  bool ceil_mode;
  bool channels_last;
};

int64_t outputs_of(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                   bool ceil_mode) {
  const int64_t slack =
      size + 2 * padding - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
  if (slack < 0) return 0;
  const int64_t outputs = slack / stride + 1;
  return ceil_mode && (outputs - 1) * stride >= size + padding ? outputs - 1 : outputs;
}

// Returns false when no window fits.
bool complete(Case& c) {
  Pool2dShape& s = c.shape;
  s.out_height = outputs_of(s.in_height, s.kernel_height, s.stride_height, s.padding_height,
                            s.dilation_height, c.ceil_mode);
  s.out_width = outputs_of(s.in_width, s.kernel_width, s.stride_width, s.padding_width,
                           s.dilation_width, c.ceil_mode);
  return s.out_height > 0 && s.out_width > 0;
}

Strides4 strides_for(const Case& c, int64_t height, int64_t width) {
  return c.channels_last ? channels_last_strides(c.shape.channels, height, width)
                         : contiguous_strides(c.shape.channels, height, width);
}

void report(const Case& c, const char* what, Isa isa) {
  const Pool2dShape& s = c.shape;
  ++failures;
  std::printf(
      "FAILED %s on %s%s: [%ld, %ld, %ld, %ld] kernel %ldx%ld stride %ldx%ld padding %ldx%ld "
      "dilation %ldx%ld%s\n",
      what, isa_name(isa), c.channels_last ? " channels_last" : "", static_cast<long>(s.batch),
      static_cast<long>(s.channels), static_cast<long>(s.in_height), static_cast<long>(s.in_width),
      static_cast<long>(s.kernel_height), static_cast<long>(s.kernel_width),
      static_cast<long>(s.stride_height), static_cast<long>(s.stride_width),
      static_cast<long>(s.padding_height), static_cast<long>(s.padding_width),
      static_cast<long>(s.dilation_height), static_cast<long>(s.dilation_width),
      c.ceil_mode ? " ceil" : "");
}

template <typename T>
bool same_bytes(const Array<T>& a, const Array<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

bool close(const Array<float>& a, const Array<float>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= 2e-5f * (1 + std::fabs(b[i])))) return false;
  return true;
}

// Few distinct values, so that ties are common; `special` adds both zeros, infinities and NaN.
void fill_random(Array<float>& values, bool special, std::mt19937& random) {
  for (float& value : values) {
    value = static_cast<float>(static_cast<int>(random() % 9)) - 4.0f;
    if (!special) continue;
    const uint32_t kind = random() % 20;
    if (kind == 0) value = std::numeric_limits<float>::quiet_NaN();
    if (kind < 4) value = -std::numeric_limits<float>::infinity();
    if (kind < 8 && value == 0) value = -0.0f;
  }
}

struct Buffers {
  explicit Buffers(const Case& c)
      : in_strides(strides_for(c, c.shape.in_height, c.shape.in_width)),
        out_strides(strides_for(c, c.shape.out_height, c.shape.out_width)),
        inputs(static_cast<size_t>(c.shape.batch * in_strides.batch)),
        outputs(static_cast<size_t>(c.shape.batch * out_strides.batch)),
        offset_bytes(outputs * (offset_type_of(c.shape.taps()) == OffsetType::kUint8 ? 1 : 4)) {}
  Strides4 in_strides;
  Strides4 out_strides;
  size_t inputs;
  size_t outputs;
  size_t offset_bytes;
};

// `stream`: results go past the caches.
void test_max(const Case& c, bool stream, std::mt19937& random) {
  const Buffers b(c);
  Array<float> input(b.inputs);
  fill_random(input, true, random);
  Array<float> expected(b.outputs);
  Array<uint8_t> expected_offsets(b.offset_bytes);
  const auto forward = [&](Array<float>& output, uint8_t* recorded) {
    return MaxPool2dForward<float>{c.shape,       c.channels_last, input.data(), b.in_strides,
                                   output.data(), b.out_strides,   recorded,     stream};
  };
  max_pool2d_forward_reference(forward(expected, expected_offsets.data()));

  Array<float> grad(b.outputs);
  fill_random(grad, false, random);
  Array<float> expected_grad(b.inputs);
  const auto backward = [&](Array<float>& grad_input) {
    return MaxPool2dBackward<float>{
        c.shape,       c.channels_last,   grad.data(),  b.out_strides, expected_offsets.data(),
        b.out_strides, grad_input.data(), b.in_strides, stream};
  };
  max_pool2d_backward_reference(backward(expected_grad));

  for_each_isa([&](Isa isa) {
    Array<float> inference(b.outputs, 99.0f), training(b.outputs, 99.0f);
    Array<uint8_t> offsets(b.offset_bytes, 255);
    max_pool2d_forward(forward(inference, nullptr));
    max_pool2d_forward(forward(training, offsets.data()));
    if (!same_bytes(inference, expected)) report(c, "max_pool2d inference", isa);
    if (!same_bytes(training, expected)) report(c, "max_pool2d training", isa);
    if (!same_bytes(offsets, expected_offsets)) report(c, "max_pool2d offsets", isa);
    Array<float> grad_input(b.inputs, 99.0f);
    max_pool2d_backward(backward(grad_input));
    if (!close(grad_input, expected_grad)) report(c, "max_pool2d backward", isa);
  });
}

void test_avg(const Case& c, const AvgDivisor& divisor, bool stream, std::mt19937& random) {
  if (c.shape.dilation_height != 1 || c.shape.dilation_width != 1) return;
  const Buffers b(c);
  Array<float> input(b.inputs);
  fill_random(input, false, random);
  Array<float> expected(b.outputs);
  const auto forward = [&](Array<float>& output) {
    return AvgPool2dForward<float>{c.shape,      c.channels_last, divisor,       input.data(),
                                   b.in_strides, output.data(),   b.out_strides, stream};
  };
  avg_pool2d_forward_reference(forward(expected));

  Array<float> grad(b.outputs);
  fill_random(grad, false, random);
  Array<float> expected_grad(b.inputs);
  const auto backward = [&](Array<float>& grad_input) {
    return AvgPool2dBackward<float>{c.shape,       c.channels_last,   divisor,      grad.data(),
                                    b.out_strides, grad_input.data(), b.in_strides, stream};
  };
  avg_pool2d_backward_reference(backward(expected_grad));

  for_each_isa([&](Isa isa) {
    Array<float> output(b.outputs, 99.0f), grad_input(b.inputs, 99.0f);
    avg_pool2d_forward(forward(output));
    if (!close(output, expected)) report(c, "avg_pool2d forward", isa);
    Array<float> scratch(static_cast<size_t>(avg_pool2d_backward_scratch(c.shape, divisor)));
    avg_pool2d_backward(backward(grad_input), scratch.data());
    if (!close(grad_input, expected_grad)) report(c, "avg_pool2d backward", isa);
  });
}

float widened(uint16_t bits) {
  const uint32_t whole = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &whole, sizeof value);
  return value;
}

// `values` become bfloat16; all of them are exact in it.
void to_bfloat16(const Array<float>& values, Array<uint16_t>& bits) {
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t whole;
    std::memcpy(&whole, &values[i], sizeof whole);
    bits.data()[i] = static_cast<uint16_t>(whole >> 16);
  }
}

// Rounded to the nearest bfloat16: half a unit in the last of eight places.
bool rounded_from(const Array<uint16_t>& bits, const Array<float>& exact) {
  for (size_t i = 0; i < exact.size(); ++i) {
    const float value = widened(bits[i]);
    if (std::isnan(exact[i]) && std::isnan(value)) continue;
    if (value != exact[i] && !(std::fabs(value - exact[i]) <= 0.00391f * std::fabs(exact[i])))
      return false;
  }
  return true;
}

void test_max_of_bfloat16(const Case& c, std::mt19937& random) {
  const Buffers b(c);
  Array<float> input(b.inputs), output(b.outputs), grad(b.outputs), grad_input(b.inputs);
  Array<uint16_t> x(b.inputs), g(b.outputs);
  Array<uint8_t> expected_offsets(b.offset_bytes);
  fill_random(input, true, random);
  fill_random(grad, false, random);
  to_bfloat16(input, x);
  to_bfloat16(grad, g);
  max_pool2d_forward_reference(MaxPool2dForward<float>{c.shape, false, input.data(), b.in_strides,
                                                       output.data(), b.out_strides,
                                                       expected_offsets.data()});
  max_pool2d_backward_reference(MaxPool2dBackward<float>{c.shape, false, grad.data(), b.out_strides,
                                                         expected_offsets.data(), b.out_strides,
                                                         grad_input.data(), b.in_strides});

  for_each_isa([&](Isa isa) {
    Array<uint16_t> y(b.outputs, 99), gx(b.inputs, 99);
    Array<uint8_t> offsets(b.offset_bytes, 255);
    Array<float> scratch(static_cast<size_t>(pool2d_bfloat16_scratch(c.shape)));
    max_pool2d_forward({c.shape, false, x.data(), {}, y.data(), {}, offsets.data()},
                       scratch.data());
    if (!rounded_from(y, output)) report(c, "max_pool2d of bfloat16", isa);
    if (!same_bytes(offsets, expected_offsets)) report(c, "max_pool2d offsets of bfloat16", isa);
    max_pool2d_backward({c.shape, false, g.data(), {}, offsets.data(), {}, gx.data(), {}},
                        scratch.data());
    if (!rounded_from(gx, grad_input)) report(c, "max_pool2d backward of bfloat16", isa);
  });
}

void test_avg_of_bfloat16(const Case& c, const AvgDivisor& divisor, std::mt19937& random) {
  if (c.shape.dilation_height != 1 || c.shape.dilation_width != 1) return;
  const Buffers b(c);
  Array<float> input(b.inputs), output(b.outputs);
  Array<uint16_t> x(b.inputs);
  fill_random(input, false, random);
  to_bfloat16(input, x);
  avg_pool2d_forward_reference(AvgPool2dForward<float>{c.shape, false, divisor, input.data(),
                                                       b.in_strides, output.data(), b.out_strides});

  for_each_isa([&](Isa isa) {
    Array<uint16_t> y(b.outputs, 99);
    Array<float> scratch(static_cast<size_t>(pool2d_bfloat16_scratch(c.shape)));
    avg_pool2d_forward({c.shape, false, divisor, x.data(), {}, y.data(), {}}, scratch.data());
    if (!rounded_from(y, output)) report(c, "avg_pool2d of bfloat16", isa);
  });
}

Case random_case(std::mt19937& random) {
  const auto pick = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random() % static_cast<uint32_t>(high - low + 1));
  };
  Case c{};
  Pool2dShape& s = c.shape;
  const bool square = pick(0, 2) > 0;
  s.batch = pick(1, 3);
  s.channels = pick(0, 1) ? pick(1, 3) : pick(0, 1) ? pick(1, 70) : 16 * pick(1, 6);
  s.in_height = pick(1, 20);
  s.in_width = pick(0, 1) ? pick(1, 20) : pick(1, 90);
  s.kernel_height = square ? pick(2, 3) : pick(1, 18);
  s.kernel_width = square ? s.kernel_height : pick(1, 18);
  s.stride_height = square ? pick(1, 2) : pick(1, 6);
  s.stride_width = square ? s.stride_height : pick(1, 20);
  s.padding_height = pick(0, s.kernel_height / 2);
  s.padding_width = pick(0, s.kernel_width / 2);
  s.dilation_height = square || pick(0, 1) ? 1 : pick(1, 3);
  s.dilation_width = square || pick(0, 1) ? 1 : pick(1, 3);
  if (pick(0, 9) == 0) {  // global
    s.kernel_height = s.in_height;
    s.kernel_width = s.in_width;
    s.padding_height = s.padding_width = 0;
    s.dilation_height = s.dilation_width = 1;
  }
  c.ceil_mode = pick(0, 1);
  c.channels_last = pick(0, 2) == 0;
  return c;
}

// The comparisons must notice one wrong offset, and a value one unit off.
bool notices_a_wrong_offset() {
  Array<uint8_t> a(3), b(3);
  if (!same_bytes(a, b)) return false;
  *b.begin() = 1;
  Array<uint16_t> bits(1, 0x3f81);  // the bfloat16 behind 1
  return !same_bytes(a, b) && !rounded_from(bits, Array<float>(1, 1.0f));
}

}  // namespace

int main() {
  if (!notices_a_wrong_offset()) return 1;
  int64_t cases = 0;
  std::mt19937 random(20250731);
  for (int n = 0; n < 1500; ++n) {
    const bool large = n % 50 == 0;  // worth splitting over threads
    Case c = random_case(random);
    if (large) c.shape.channels += 200;
    if (!complete(c)) continue;
    ++cases;
    large ? testing::use_threads() : testing::use_no_threads();
    const AvgDivisor divisor{n % 2 == 0, n % 5 == 0 ? 3 : 0};
    test_max(c, n % 3 == 0, random);
    test_avg(c, divisor, n % 3 == 1, random);
    if (c.channels_last) continue;
    test_max_of_bfloat16(c, random);
    test_avg_of_bfloat16(c, divisor, random);
  }
  std::printf("pool2d: %ld cases, %d failures\n", static_cast<long>(cases), failures);
  return failures == 0 ? 0 : 1;
}
