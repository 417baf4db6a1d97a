// SPDX-License-Identifier: MIT
// Gradients of the weights of a layer as one product over rows of gate gradients that several calls
// left: the steps of a loop over a cell.
#include <algorithm>

#include "cpu/gemm/gemm.h"
#include "cpu/lstm/lstm.h"
#include "cpu/lstm/lstm_gemm.h"
#include "cpu/runtime/denormals.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

struct Plan {
  const LstmKernels& kernels;
  const GemmKernels& gemm;
  LstmRange x, h, one;  // columns of the sources
  LstmSources sources;
  bool few_rows;
  int64_t threads;
  int64_t packed;  // floats of the packed sources
  int64_t sums;    // floats of scratch of each thread
};

Plan make_plan(const LstmWeightSums& call) {
  const LstmShape& s = call.shape;
  const Isa isa = active_isa();
  const GemmKernels& gemm = gemm_kernels(isa);
  const LstmRange x{0, call.grad_weight_ih != nullptr ? s.input : 0};
  const LstmRange h{x.end, x.end + (call.grad_weight_hh != nullptr ? s.output : 0)};
  const LstmRange one{h.end, h.end + (call.grad_bias != nullptr ? 1 : 0)};
  const LstmSources sources(gemm, s.rows(), one.end);
  const bool few_rows = s.rows() <= LstmFewRows::kMost;
  const int64_t threads =
      worthwhile_threads(s.rows() * s.gates() * one.end, 4 * s.gates() * one.end);
  return {lstm_kernels(isa),
          gemm,
          x,
          h,
          one,
          sources,
          few_rows,
          threads,
          few_rows ? 0 : sources.floats(),
          few_rows ? few_rows_scratch(gemm) : outer_sum_scratch(gemm, sources)};
}

// Rows [which] of the sources.
void pack(const LstmWeightSums& call, const Plan& plan, LstmRange which, float* packed) {
  const auto part = [&](LstmRange columns, const float* from, float value) {
    const int64_t width = columns.size();
    if (width > 0)
      pack_sources(plan.kernels, plan.sources,
                   {which.begin, which.size(), columns,
                    from == nullptr ? nullptr : from + which.begin * width, width, value},
                   packed);
  };
  part(plan.x, call.input, 0.0f);
  part(plan.h, call.before, 0.0f);
  part(plan.one, nullptr, 1.0f);
}

}  // namespace

void lstm_weight_sums_of_few_rows(const GemmKernels& gemm, const LstmKernels& kernels,
                                  const LstmWeightSums& call, int64_t pitch, LstmRange columns,
                                  float* scratch) {
  const int64_t rows = call.shape.rows();
  const auto add = [&](const float* s, int64_t width, float* result) {
    if (result == nullptr) return;
    if (s == nullptr) {
      std::fill(result + columns.begin * width, result + columns.end * width, 0.0f);
      return;
    }
    outer_sum_of_few_rows(gemm, kernels, {rows, call.grad_gates, pitch, s, width, width, result},
                          columns, scratch);
  };
  add(call.input, call.shape.input, call.grad_weight_ih);
  add(call.before, call.shape.output, call.grad_weight_hh);
  if (call.grad_bias != nullptr)
    sum_of_few_rows(gemm, rows, call.grad_gates, pitch, columns, call.grad_bias, scratch);
}

int64_t lstm_weight_sums_scratch(const LstmWeightSums& call) {
  const Plan plan = make_plan(call);
  return plan.packed + plan.threads * plan.sums;
}

void lstm_weight_sums(const LstmWeightSums& call, float* scratch) {
  const Plan plan = make_plan(call);
  const LstmShape& s = call.shape;
  const int64_t gates = s.gates(), rows = s.rows();
  float* sums = scratch + plan.packed;
  if (plan.few_rows) {
    parallel_for(plan.threads, [&](int64_t task) {
      FlushDenormals flush;
      lstm_weight_sums_of_few_rows(plan.gemm, plan.kernels, call, gates,
                                   lstm_part(gates, plan.threads, task), sums + task * plan.sums);
    });
    return;
  }
  parallel_for(plan.threads, [&](int64_t task) {
    FlushDenormals flush;
    pack(call, plan, lstm_part(rows, plan.threads, task), scratch);
  });
  LstmOuterSum sum{call.grad_gates, gates, gates, scratch, {}, 0};
  for (const LstmResult& r :
       {LstmResult{plan.x, call.grad_weight_ih}, LstmResult{plan.h, call.grad_weight_hh},
        LstmResult{plan.one, call.grad_bias}})
    if (r.result != nullptr) sum.results[sum.count++] = r;
  const int64_t panels = outer_sum_panels(plan.gemm, gates);
  parallel_for(plan.threads, [&](int64_t task) {
    FlushDenormals flush;
    outer_sum(plan.gemm, plan.kernels, plan.sources, sum, lstm_part(panels, plan.threads, task),
              sums + task * plan.sums);
  });
}

}  // namespace fastconv::cpu
