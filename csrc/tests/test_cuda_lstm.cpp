// SPDX-License-Identifier: MIT
// The LSTM's CUDA kernels in the emulator, against the CPU's reference loops in double; products of
// matrices by themselves; host decisions. Small: CI runs this under sanitizers, where it is about
// races and bounds. Values under every schedule: python_tests/test_cuda_shim_lstm.py.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/lstm/lstm_reference.h"
#include "cuda/gemm/gemm.cuh"
#include "cuda/lstm/lstm.h"
#include "cuda/lstm/lstm_plan.cuh"
#include "cuda_check.h"
#include "lstm_problem.h"

namespace {

using namespace fastconv;
using namespace fastconv::testing;
using cuda::GemmMath;
using cuda::LstmPath;

// Memory of a launcher: 256-aligned, of exactly this size.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)), data_(::operator new(bytes_, std::align_val_t{256})) {
    std::memset(data_, 0xff, bytes_);
  }
  Workspace(const Workspace&) = delete;
  ~Workspace() { ::operator delete(data_, std::align_val_t{256}); }
  void* data() { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

template <class T>
cuda::LstmForward<T> on_gpu(const cpu::LstmForward<T>& c, LstmPath path) {
  return {c.shape,     path,        false,     c.input,   c.h_0,       c.c_0,
          c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh, c.weight_hr, c.output,
          c.h_n,       c.c_n,       c.gates,   c.cells,   nullptr};
}

template <class T>
cuda::LstmBackward<T> on_gpu(const cpu::LstmBackward<T>& c, LstmPath path) {
  return {c.shape,
          path,
          false,
          c.input,
          c.h_0,
          c.c_0,
          c.weight_ih,
          c.weight_hh,
          c.weight_hr,
          c.output,
          c.gates,
          c.cells,
          c.grad_output,
          c.grad_h_n,
          c.grad_c_n,
          c.grad_input,
          c.grad_h_0,
          c.grad_c_0,
          c.grad_weight_ih,
          c.grad_weight_hh,
          c.grad_bias,
          c.grad_weight_hr,
          nullptr};
}

template <class T>
cudaError_t forward(const Case& c, const LstmShape& s, Problem<T>& p, LstmPath path) {
  auto call = on_gpu(forward_call(c, s, p, true), path);
  Workspace space(cuda::lstm_forward_workspace_bytes(call));
  call.workspace = space.data();
  return cuda::launch_lstm_forward(call, nullptr);
}

template <class T>
cudaError_t backward(const Case& c, const LstmShape& s, Problem<T>& p, LstmPath path) {
  auto call = on_gpu(backward_call(c, s, p), path);
  Workspace space(cuda::lstm_backward_workspace_bytes(call));
  call.workspace = space.data();
  return cuda::launch_lstm_backward(call, nullptr);
}

template <class T>
void run(const Case& c, const LstmShape& s, Problem<T>& p, LstmPath path,
         const std::string& context) {
  CHECK_WITH(forward(c, s, p, path) == cudaSuccess, context + cuda_shim::last_error());
  CHECK_WITH(backward(c, s, p, path) == cudaSuccess, context + cuda_shim::last_error());
}

void test_case(const Case& c, LstmPath path) {
  const std::vector<int64_t> starts = row_starts(c);
  const LstmShape s = shape_of(c, starts);
  const std::string context = std::string(path == LstmPath::kPersistent ? "persistent" : "steps") +
                              " I" + std::to_string(c.input) + " H" + std::to_string(c.hidden) +
                              " P" + std::to_string(c.output) + " B" + std::to_string(c.batch) +
                              (c.reverse ? " reverse " : " ");
  Problem<double> exact = make_problem<double>(s);
  cpu::lstm_forward_reference(forward_call(c, s, exact, true));
  std::vector<double> work(static_cast<size_t>(cpu::lstm_backward_reference_scratch(s)));
  cpu::lstm_backward_reference(backward_call(c, s, exact), work.data());
  Problem<float> p = make_problem<float>(s);
  run(c, s, p, path, context);
  compare(p.output, exact.output, context + "output");
  compare(p.h_n, exact.h_n, context + "h_n");
  compare(p.c_n, exact.c_n, context + "c_n");
  compare(p.grad_x, exact.grad_x, context + "grad_input");
  compare(p.grad_h_0, exact.grad_h_0, context + "grad_h_0");
  compare(p.grad_c_0, exact.grad_c_0, context + "grad_c_0");
  compare(p.grad_w_ih, exact.grad_w_ih, context + "grad_weight_ih");
  compare(p.grad_w_hh, exact.grad_w_hh, context + "grad_weight_hh");
  if (c.biases) compare(p.grad_b, exact.grad_b, context + "grad_bias");
  if (s.projected) compare(p.grad_w_hr, exact.grad_w_hr, context + "grad_weight_hr");
}

// ThreadSanitizer makes fibers slow, and looks for races only: a few cases have them all.
constexpr bool kFew = kThreadSanitizer;

void test_cases() {
  const std::vector<Case> few = {
      {3, 34, 34, 5, {3, 2, 2, 1, 0}, 3, true, true, true},
      {5, 9, 4, 18, {}, 2, false, true, true},
  };
  const std::vector<Case> many = {
      {1, 1, 1, 1, {}, 1, false, false, false},
      {3, 5, 5, 4, {}, 3, true, true, true},
      {5, 34, 34, 5, {}, 2, false, true, true},
      {3, 66, 66, 2, {}, 2, false, false, true},
      {4, 100, 100, 2, {}, 2, true, true, false},
      {5, 9, 4, 18, {}, 3, false, true, true},
      {2, 9, 9, 6, {5, 3, 3, 2, 1, 0}, 5, false, true, true},
      {2, 9, 9, 6, {5, 3, 3, 2, 1, 0}, 5, true, true, true},
      {2, 9, 3, 6, {5, 3, 3, 2, 1, 0}, 5, true, false, true},
  };
  for (const Case& c : kFew ? few : many) {
    test_case(c, LstmPath::kSteps);
    if (c.output == c.hidden) test_case(c, LstmPath::kPersistent);
  }
}

std::vector<__nv_bfloat16> narrowed(const std::vector<float>& values) {
  std::vector<__nv_bfloat16> narrow;
  for (const float v : values) narrow.push_back(__float2bfloat16_rn(v));
  return narrow;
}

// bfloat16 on tensor cores: near the result in float32.
void test_tensor_cores(const Case& c, LstmPath path) {
  const std::vector<int64_t> starts = row_starts(c);
  const LstmShape s = shape_of(c, starts);
  Problem<float> exact = make_problem<float>(s);
  Problem<__nv_bfloat16> p;
  p.x = narrowed(exact.x);
  p.h_0 = narrowed(exact.h_0);
  p.c_0 = narrowed(exact.c_0);
  p.w_ih = narrowed(exact.w_ih);
  p.w_hh = narrowed(exact.w_hh);
  p.b_ih = narrowed(exact.b_ih);
  p.b_hh = narrowed(exact.b_hh);
  p.grad_output = narrowed(exact.grad_output);
  p.grad_h_n = narrowed(exact.grad_h_n);
  p.grad_c_n = narrowed(exact.grad_c_n);
  p.output = narrowed(exact.output);
  p.h_n = narrowed(exact.h_n);
  p.c_n = narrowed(exact.c_n);
  p.gates = narrowed(exact.gates);
  p.cells = narrowed(exact.cells);
  p.grad_x = narrowed(exact.grad_x);
  p.grad_h_0 = narrowed(exact.grad_h_0);
  p.grad_c_0 = narrowed(exact.grad_c_0);
  p.grad_w_ih = narrowed(exact.grad_w_ih);
  p.grad_w_hh = narrowed(exact.grad_w_hh);
  p.grad_b = narrowed(exact.grad_b);
  run(c, s, exact, LstmPath::kSteps, "float32");
  run(c, s, p, path, "bfloat16");
  const auto near = [&](const std::vector<__nv_bfloat16>& got, const std::vector<float>& want,
                        const char* name) {
    double error = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(cuda::to_float(got[i]) - want[i], 2);
      size += std::pow(want[i], 2);
    }
    // Written so that a NaN fails.
    CHECK_WITH(std::sqrt(error) <= 0.02 * std::sqrt(size), name);
  };
  near(p.output, exact.output, "bfloat16 output");
  near(p.c_n, exact.c_n, "bfloat16 c_n");
  near(p.grad_x, exact.grad_x, "bfloat16 grad_input");
  near(p.grad_h_0, exact.grad_h_0, "bfloat16 grad_h_0");
  near(p.grad_w_hh, exact.grad_w_hh, "bfloat16 grad_weight_hh");
}

void test_failing_launches() {
  const Case whole{3, 5, 5, 2, {}, 2, false, true, true},
      projected{3, 5, 2, 2, {}, 2, false, true, true};
  for (const Case& c : {whole, projected})
    for (const LstmPath path : {LstmPath::kSteps, LstmPath::kPersistent}) {
      if (path == LstmPath::kPersistent && c.output != c.hidden) continue;
      const LstmShape s = shape_of(c, {});
      Problem<float> p = make_problem<float>(s);
      CHECK(errors_end_the_call([&] { return forward(c, s, p, path); }));
      CHECK(errors_end_the_call([&] { return backward(c, s, p, path); }));
    }
}

// A gate taken for another one must show.
void test_negative_control(LstmPath path) {
  const Case c{3, 5, 5, 4, {}, 3, false, true, true};
  const LstmShape s = shape_of(c, {});
  Problem<double> exact = make_problem<double>(s);
  cpu::lstm_forward_reference(forward_call(c, s, exact, true));
  Problem<float> swapped = make_problem<float>(s);
  std::swap_ranges(swapped.w_hh.begin(), swapped.w_hh.begin() + 5 * 5,
                   swapped.w_hh.begin() + 5 * 5);
  run(c, s, swapped, path, "negative control");
  double worst = 0;
  for (size_t i = 0; i < exact.output.size(); ++i)
    worst = std::max(worst, std::fabs(exact.output[i] - swapped.output[i]));
  CHECK(worst > 1e-2);
}

// --- Products of matrices ------------------------------------------------------------------------

template <class T>
T value(double x) {
  return cuda::from_float<T>(static_cast<float>(x));
}

// Small whole numbers: every result is exact in every type.
template <class T>
std::vector<T> whole(Numbers& numbers, int64_t size) {
  std::vector<T> values(static_cast<size_t>(size));
  for (T& v : values) v = value<T>(static_cast<double>(numbers.between(-2, 2)));
  return values;
}

template <class T>
double number(T x) {
  if constexpr (sizeof(T) == 2)
    return cuda::to_float(x);
  else
    return x;
}

enum class Form { kNT, kNN, kTN };

template <class T>
void test_product(Form form, int64_t m, int64_t n, int64_t k, int64_t offset, GemmMath math) {
  Numbers numbers(static_cast<uint64_t>(m + n + k));
  const bool a_along = form != Form::kTN, b_along = form == Form::kNT;
  // With an offset, neither matrix is aligned for vectors.
  std::vector<T> a = whole<T>(numbers, m * k + offset), b = whole<T>(numbers, n * k + offset);
  std::vector<T> c(static_cast<size_t>(m * n), value<T>(99));
  const auto am = a_along ? cuda::make_matrix<T>(a.data() + offset, m, k, k)
                          : cuda::make_matrix<T>(a.data() + offset, k, m, m);
  const auto bm = b_along ? cuda::make_matrix<T>(b.data() + offset, n, k, k)
                          : cuda::make_matrix<T>(b.data() + offset, k, n, n);
  const cuda::GemmResult<T> result{c.data(), n, 0, nullptr, 0};
  cudaError_t status = cudaSuccess;
  if (form == Form::kNT) {
    const T* none = nullptr;
    status = cuda::launch_gemm_nt(am, bm, none, none, result, math, nullptr);
  } else if (form == Form::kNN) {
    status = cuda::launch_gemm_nn(am, bm, result, math, nullptr);
  } else {
    Workspace space(cuda::gemm_tn_workspace_bytes<T>(m, n, k));
    status = cuda::launch_gemm_tn(am, bm, result, space.data(), math, nullptr);
  }
  CHECK_WITH(status == cudaSuccess, cuda_shim::last_error());
  int64_t wrong = 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t d = 0; d < k; ++d)
        sum += number(a[static_cast<size_t>(offset + (a_along ? i * k + d : d * m + i))]) *
               number(b[static_cast<size_t>(offset + (b_along ? j * k + d : d * n + j))]);
      wrong += number(c[static_cast<size_t>(i * n + j)]) != sum;
    }
  CHECK_WITH(wrong == 0, std::to_string(wrong) + " wrong in form " +
                             std::to_string(static_cast<int>(form)) + " " + std::to_string(m) +
                             "x" + std::to_string(n) + "x" + std::to_string(k) + " of " +
                             std::to_string(sizeof(T)) + " bytes");
}

template <class T>
void test_products(GemmMath math = GemmMath::kExact) {
  for (const Form form : {Form::kNT, Form::kNN, Form::kTN}) {
    if (kFew) {
      test_product<T>(form, 17, 65, 40, 1, math);
      continue;
    }
    test_product<T>(form, 1, 1, 1, 0, math);
    test_product<T>(form, 16, 64, 32, 0, math);
    test_product<T>(form, 17, 65, 33, 1, math);
    test_product<T>(form, 80, 72, 40, 0, math);
  }
  if (!kFew) test_product<T>(Form::kTN, 9, 5, 600, 0, math);  // several runs
}

void test_column_sums() {
  const int64_t rows = 515, columns = 68, hidden = 17;
  Numbers numbers(5);
  const std::vector<float> a = whole<float>(numbers, rows * columns);
  std::vector<float> sums(static_cast<size_t>(columns));
  Workspace space(cuda::column_sums_workspace_bytes<float>(rows, columns));
  CHECK(cuda::launch_column_sums(cuda::make_matrix<float>(a.data(), rows, columns, columns), hidden,
                                 sums.data(), space.data(), nullptr) == cudaSuccess);
  for (int64_t n = 0; n < columns; ++n) {
    double sum = 0;
    for (int64_t r = 0; r < rows; ++r) sum += a[static_cast<size_t>(r * columns + n)];
    CHECK(sums[static_cast<size_t>(n % 4 * hidden + n / 4)] == sum);
  }
}

// --- Host decisions ------------------------------------------------------------------------------

void test_splits() {
  CHECK(cuda::gemm_tn_splits(512, 128, 10) == 1);
  CHECK(cuda::gemm_tn_splits(64, 64, 100000) == 64);
  CHECK(cuda::gemm_tn_splits(512, 128, 2560) == 10);
  CHECK(cuda::gemm_tn_splits(4096, 4096, 1 << 20) == 1);
  CHECK(cuda::gemm_tn_splits(64, 64, 0) == 1);
  // Sizes beyond 32 bits.
  CHECK(cuda::gemm_tn_workspace_bytes<float>(int64_t{1} << 20, int64_t{1} << 20, 1) == int64_t{1}
                                                                                           << 42);
}

void test_shared_bytes() {
  // Forward and backward kernels of each size fit what the choice reckons with.
  CHECK(cuda::persistent_shared_bytes(96, 4) == 2 * 4 * 96 * 4 * 4);
  CHECK(cuda::persistent_shared_bytes(128, 4) == 128 * 1024 + 2 * 4 * 128 * 4 * 4);
  CHECK(cuda::persistent_shared_bytes(128, 2) == 128 * 136 * 2);
  CHECK(cuda::persistent_shared_bytes(32, 2) == 2 * 16 * 136 * 2);
  CHECK(cuda::persistent_units(1) == 32);
  CHECK(cuda::persistent_units(33) == 64);
  CHECK(cuda::persistent_units(128) == 128);
}

}  // namespace

int main() {
  cuda_shim::set_options({cuda_shim::Schedule::kRandom, {}, {}, 11});
  test_cases();
  const Case ragged{3, 34, 34, 5, {3, 2, 2, 1, 0}, 3, true, true, true};
  test_tensor_cores(ragged, LstmPath::kSteps);
  test_tensor_cores(ragged, LstmPath::kPersistent);
  test_negative_control(LstmPath::kSteps);
  test_negative_control(LstmPath::kPersistent);
  if (!kThreadSanitizer) test_failing_launches();
  test_products<float>();
  test_products<float>(GemmMath::kTf32);  // whole numbers are exact there too
  test_products<__nv_bfloat16>();
  if (!kFew) test_products<double>();
  if (!kFew) test_products<__half>();
  test_column_sums();
  test_splits();
  test_shared_bytes();
  return report();
}
