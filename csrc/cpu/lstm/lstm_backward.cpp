// SPDX-License-Identifier: MIT
// Backward pass of an LSTM layer. The recurrence only needs the gradients of the gates of the later
// step times W_hh; everything else waits until the gate gradients of all steps stand in memory and
// is then one product each: grad_input = G * W_ih, and the weight gradients as sums over all rows.
#include <algorithm>

#include "common/checked.h"
#include "cpu/gemm/gemm.h"
#include "cpu/lstm/lstm.h"
#include "cpu/lstm/lstm_gemm.h"
#include "cpu/lstm/lstm_split.h"
#include "cpu/runtime/denormals.h"
#include "cpu/runtime/isa.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/trace.h"

namespace fastconv::cpu {
namespace {

constexpr int64_t kAlign = 16;
// Floats that vectors of the last row of a matrix may reach past its end.
constexpr int64_t kSlack = LstmWeightSums::kSlack;
// Units of one step above which its gates are worth a parallel region.
constexpr int64_t kOneStepUnits = 6000;

// Gates of more floats than this have left a core's fastest caches, or come from those of another,
// when the backward pass comes to them.
constexpr int64_t kNearFloats = 32'000;

struct Plan {
  const LstmKernels* kernels;
  const GemmKernels* gemm;
  LstmThreads recurrence;
  int64_t threads;  // of the products after it
  bool few_rows;    // one step of few rows: weights and sources are read as they are
  bool one_row;     // one sequence: recurrent weights are read as they are
  bool asks;        // tiles of the recurrence ask ahead for what the forward pass left
  int64_t pitch;    // of the gate gradients
  // Offsets into scratch; see Backward for what is there.
  int64_t gate_grads, weight_hh, weight_ih, weight_hr, grad_h, grad_m, m;
  int64_t sources, source_m, sums, sums_size;
  int64_t scratch;
};

// The columns of the matrix whose products with the gate gradients are the gradients of W_ih, W_hh
// and the bias: inputs, states before, and a one. What is not asked for is left out.
struct SourceColumns {
  explicit SourceColumns(const LstmBackward<float>& call)
      : x{0, call.grad_weight_ih != nullptr ? call.shape.input : 0},
        h{x.end, x.end + (call.grad_weight_hh != nullptr ? call.shape.output : 0)},
        one{h.end, h.end + (call.grad_bias != nullptr ? 1 : 0)} {}
  LstmRange x, h, one;
  int64_t width() const { return one.end; }
};

bool reads_in_place(const LstmShape& s) {
  return s.steps == 1 && s.rows() <= LstmFewRows::kMost && !s.projected;
}

Plan make_plan(const LstmBackward<float>& call) {
  const LstmShape& s = call.shape;
  Plan p{};
  const Isa isa = active_isa();
  p.kernels = &lstm_kernels(isa);
  p.gemm = &gemm_kernels(isa);
  p.recurrence = lstm_threads(s);
  // Half the products' work counts: a recurrence on one thread has let the others fall asleep.
  const int64_t columns = SourceColumns(call).width() + (call.grad_input != nullptr ? s.input : 0);
  p.threads = worthwhile_threads(s.rows() * s.gates() * columns / 2, 0);
  const auto place = [&](int64_t* offset, bool wanted, int64_t floats) {
    *offset = p.scratch;
    if (wanted) p.scratch += round_up(floats, kAlign);
  };
  const GemmKernels& gemm = *p.gemm;
  p.few_rows = reads_in_place(s);
  if (p.few_rows) p.threads = std::max(p.threads, p.recurrence.threads);
  p.one_row = s.active(0) == 1 && !s.projected;
  p.asks = s.rows() * s.gates() > kNearFloats;
  p.pitch = call.grad_gates != nullptr ? s.gates() : outer_sum_pitch(gemm, s.gates());
  place(&p.gate_grads, call.grad_gates == nullptr, s.rows() * p.pitch + kSlack);
  place(&p.weight_hh, !p.one_row, LstmPanels(gemm, s.gates(), s.output).floats());
  place(&p.weight_ih, call.grad_input != nullptr, LstmPanels(gemm, s.gates(), s.input).floats());
  place(&p.weight_hr, s.projected, LstmPanels(gemm, s.output, s.hidden).floats());
  place(&p.grad_h, s.projected, s.rows() * s.output + kSlack);
  place(&p.grad_m, s.projected, s.batch * s.hidden);
  const LstmSources sources(gemm, s.rows(), p.few_rows ? 0 : SourceColumns(call).width());
  const LstmSources m(gemm, s.rows(), call.grad_weight_hr != nullptr ? s.hidden : 0);
  place(&p.sources, true, sources.floats());
  place(&p.m, true, m.floats());
  place(&p.source_m, true, m.floats());
  p.sums_size = round_up(std::max({outer_sum_scratch(gemm, sources), outer_sum_scratch(gemm, m),
                                   few_rows_scratch(gemm)}),
                         kAlign);
  place(&p.sums, true, p.threads * p.sums_size);
  return p;
}

class Backward {
 public:
  Backward(const LstmBackward<float>& call, const Plan& plan, float* scratch)
      : call_(call),
        s_(call.shape),
        plan_(plan),
        kernels_(*plan.kernels),
        gemm_(*plan.gemm),
        scratch_(scratch),
        recurrent_(gemm_, s_.gates(), s_.output),
        from_input_(gemm_, s_.gates(), s_.input),
        projection_(gemm_, s_.output, s_.hidden),
        columns_(call),
        sources_(gemm_, s_.rows(), plan.few_rows ? 0 : columns_.width()),
        m_(gemm_, s_.rows(), call.grad_weight_hr != nullptr ? s_.hidden : 0) {}

  void run() {
    FlushDenormals flush;
    start_states();
    if (plan_.few_rows) return run_one_step();
    parallel(packers(), [&](int64_t task, int64_t tasks) {
      pack_weights(task, tasks);
      pack_sources(task, tasks);
    });
    const int64_t threads = plan_.recurrence.threads;
    if (plan_.recurrence.split == LstmSplit::kSequences) {
      parallel(threads, [&](int64_t task, int64_t tasks) {
        run_sequences(lstm_sequences(s_, tasks, task));
      });
    } else {
      run_units(threads);
    }
    if (columns_.width() + m_.width > 0 || call_.grad_input != nullptr)
      parallel(plan_.threads, [&](int64_t task, int64_t tasks) { finish(task, tasks); });
  }

 private:
  template <class Body>
  static void parallel(int64_t tasks, Body&& body) {
    parallel_for(tasks, [&](int64_t task) {
      FlushDenormals flush;
      body(task, tasks);
    });
  }

  // With weights and sources as they are, there is nothing to do before the gates, and all products
  // can follow in one region.
  void run_one_step() {
    if (!plan_.one_row)
      pack_ragged_panel(kernels_, recurrent_, call_.weight_hh, at(plan_.weight_hh));
    if (call_.grad_input != nullptr && !plan_.one_row)
      pack_ragged_panel(kernels_, from_input_, call_.weight_ih, at(plan_.weight_ih));
    const LstmRange rows{0, s_.active(0)};
    const int64_t threads = plan_.threads;
    const int64_t wide = recurrent_.wide, panels = ceil_div(s_.hidden, wide);
    parallel(rows.size() * s_.hidden > kOneStepUnits ? threads : 1,
             [&](int64_t task, int64_t tasks) {
               const LstmRange part = lstm_part(panels, tasks, task);
               const LstmRange units{part.begin * wide, std::min(s_.hidden, part.end * wide)};
               if (units.size() > 0) gate_gradients(0, rows, units);
             });
    parallel(threads, [&](int64_t task, int64_t tasks) {
      through_recurrence(0, rows, lstm_part(recurrent_.count(), tasks, task));
      finish(task, tasks);
    });
  }

  // Packing is bound by memory; a parallel region only pays for a lot of it.
  int64_t packers() const {
    const int64_t floats = s_.gates() * (s_.input + s_.output) + sources_.floats();
    return floats > 60'000 ? plan_.threads : 1;
  }

  float* at(int64_t offset) const { return scratch_ + offset; }
  float* gate_grads(int64_t row) const {
    return (call_.grad_gates != nullptr ? call_.grad_gates : at(plan_.gate_grads)) +
           row * plan_.pitch;
  }

  void pack_weights(int64_t task, int64_t tasks) {
    if (!plan_.one_row)
      pack_panels(kernels_, recurrent_, lstm_part(recurrent_.count(), tasks, task), call_.weight_hh,
                  false, at(plan_.weight_hh));
    if (call_.grad_input != nullptr)
      pack_panels(kernels_, from_input_, lstm_part(from_input_.count(), tasks, task),
                  call_.weight_ih, false, at(plan_.weight_ih));
    if (s_.projected)
      pack_panels(kernels_, projection_, lstm_part(projection_.count(), tasks, task),
                  call_.weight_hr, false, at(plan_.weight_hr));
  }

  // grad_h_0 and grad_c_0 carry the gradients of each sequence's state back through the steps.
  void start_states() {
    for (int64_t i = 0; i < s_.batch * s_.output; ++i)
      call_.grad_h_0[i] = call_.grad_h_n == nullptr ? 0.0f : call_.grad_h_n[i];
    for (int64_t i = 0; i < s_.batch * s_.hidden; ++i)
      call_.grad_c_0[i] = call_.grad_c_n == nullptr ? 0.0f : call_.grad_c_n[i];
  }

  LstmRange active(int64_t step, LstmRange sequences) const {
    return {sequences.begin, std::max(sequences.begin, std::min(sequences.end, s_.active(step)))};
  }

  // --- The recurrence --------------------------------------------------------------------------

  void run_sequences(LstmRange sequences) {
    for (int64_t n = s_.steps - 1; n >= -1; --n) {
      step_back(n, sequences, {0, recurrent_.count()});
      if (!s_.projected || n < 0) continue;
      const int64_t step = s_.nth_step(n);
      finish_projected(step, active(step, sequences), {0, projection_.count()});
    }
  }

  // A thread that has the columns of grad_h also needs nothing but these for the gates of the same
  // units, so one region per step is enough: it ends one step and begins the next.
  void run_units(int64_t threads) {
    const LstmRange all{0, s_.batch};
    for (int64_t n = s_.steps - 1; n >= -1; --n) {
      parallel(std::min(threads, recurrent_.count()), [&](int64_t task, int64_t tasks) {
        step_back(n, all, lstm_part(recurrent_.count(), tasks, task));
      });
      if (!s_.projected || n < 0) continue;
      const int64_t step = s_.nth_step(n);
      parallel(std::min(threads, projection_.count()), [&](int64_t task, int64_t tasks) {
        finish_projected(step, active(step, all), lstm_part(projection_.count(), tasks, task));
      });
    }
  }

  // From the gate gradients of the step computed after the n-th to those of the n-th, or with a
  // projection to grad_h; for -1, to the gradients of the initial states. Columns of some panels.
  void step_back(int64_t n, LstmRange sequences, LstmRange panels) {
    const LstmRange none{sequences.begin, sequences.begin};
    const bool first = n == s_.steps - 1, last = n < 0;
    const int64_t step = last ? 0 : s_.nth_step(n), later = first ? 0 : s_.nth_step(n + 1);
    const LstmRange here = last ? none : active(step, sequences);
    const LstmRange after = first ? none : active(later, sequences);
    const LstmRange columns{panels.begin * recurrent_.wide,
                            std::min(s_.output, panels.end * recurrent_.wide)};
    // Rows of both steps are finished in the tiles that add up their grad_h.
    const bool fused = !s_.projected && !plan_.one_row;
    const int64_t both = fused ? std::min(here.end, after.end) : none.end;
    tiles_back(step, later, {none.end, both}, panels);
    through_recurrence(later, {both, after.end}, panels);
    if (both >= here.end) return;
    if (s_.projected)
      note_grad_h(step, {both, here.end}, columns);
    else
      gate_gradients(step, {both, here.end}, columns);
  }

  void tiles_back(int64_t step, int64_t later, LstmRange rows, LstmRange panels) {
    LstmRun runs[2];
    const int count = lstm_runs(s_, step, rows, call_.cells, call_.c_0, s_.hidden, runs);
    // All terms but the last of a deep sum are added up panel by panel.
    const int64_t before = (s_.gates() - 1) / LstmPanels::kDepth * LstmPanels::kDepth;
    for (int i = 0; i < count; ++i)
      for (int64_t p = panels.begin; p < panels.end; ++p) {
        const LstmRange some{runs[i].begin, runs[i].end};
        if (before > 0) through_recurrence(later, some, {p, p + 1}, before);
        panel_back(step, later, runs[i], p, before);
      }
  }

  // The tiles of one panel; its first `before` terms stand in grad_h_0.
  void panel_back(int64_t step, int64_t later, const LstmRun& run, int64_t panel, int64_t before) {
    const int64_t column = panel * recurrent_.wide, width = recurrent_.width(panel);
    const LstmGradForms& forms =
        width == recurrent_.wide ? kernels_.grad_wide : kernels_.grad_narrow;
    const int64_t rows = run.end - run.begin, tiles = ceil_div(rows, forms.max_rows);
    for (int64_t i = 0; i < tiles; ++i) {
      const LstmRange part = lstm_part(rows, tiles, i);
      LstmGradTile tile;
      set_gates(step, run, part, {column, std::min(column + width, s_.hidden)}, &tile.gates);
      if (before == 0) tile.gates.grad_m = nullptr;
      tile.depth = s_.gates() - before;
      tile.later = gate_grads(s_.first_row(later) + run.begin + part.begin) + before;
      tile.later_pitch = plan_.pitch;
      tile.weights = at(plan_.weight_hh) + column * s_.gates() + before * width;
      tile.asks = plan_.asks;
      forms.by_rows[part.size() - 1](tile);
    }
  }

  // Keeps grad_h + grad_output of a step: what weight_hr and the projection need.
  void note_grad_h(int64_t step, LstmRange rows, LstmRange columns) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const int64_t row = s_.first_row(step) + r;
      for (int64_t p = columns.begin; p < columns.end; ++p) {
        float sum = call_.grad_h_0[r * s_.output + p];
        if (call_.grad_output != nullptr) sum += call_.grad_output[row * s_.output + p];
        at(plan_.grad_h)[row * s_.output + p] = sum;
      }
    }
  }

  // From grad_h of a step to the gates of the units of some panels.
  void finish_projected(int64_t step, LstmRange rows, LstmRange panels) {
    multiply_by_panels(gemm_, projection_, panels, at(plan_.weight_hr),
                       {at(plan_.grad_h) + (s_.first_row(step) + rows.begin) * s_.output, s_.output,
                        rows.size(), at(plan_.grad_m) + rows.begin * s_.hidden, s_.hidden});
    gate_gradients(
        step, rows,
        {panels.begin * projection_.wide, std::min(s_.hidden, panels.end * projection_.wide)});
  }

  // With `terms`, only so many, the first ones.
  void through_recurrence(int64_t step, LstmRange rows, LstmRange panels, int64_t terms = 0) {
    if (rows.size() <= 0) return;
    if (plan_.one_row)
      return multiply_one_row(recurrent_, panels, step, call_.weight_hh, call_.grad_h_0);
    multiply_by_panels(gemm_, recurrent_, panels, at(plan_.weight_hh),
                       {gate_grads(s_.first_row(step) + rows.begin), plan_.pitch, rows.size(),
                        call_.grad_h_0 + rows.begin * s_.output, s_.output, terms},
                       plan_.few_rows ? call_.weight_hh : nullptr);
  }

  // The columns of `panels` of the only row of a step times weights as they are, back and forth
  // from one step to the next.
  void multiply_one_row(const LstmPanels& of, LstmRange panels, int64_t step, const float* weights,
                        float* to) {
    const int64_t begin = panels.begin * of.wide, end = std::min(of.columns, panels.end * of.wide);
    if (begin < end)
      kernels_.row_product({s_.gates(), gate_grads(s_.first_row(step)), weights + begin, of.columns,
                            end - begin, to + begin, step % 2 != 0});
  }

  void gate_gradients(int64_t step, LstmRange rows, LstmRange units) {
    LstmRun runs[2];
    const int count = lstm_runs(s_, step, rows, call_.cells, call_.c_0, s_.hidden, runs);
    for (int i = 0; i < count; ++i) {
      LstmGateGradients g;
      set_gates(step, runs[i], {0, runs[i].end - runs[i].begin}, units, &g);
      kernels_.gate_gradients(g);
    }
  }

  // Rows [part] of a run.
  void set_gates(int64_t step, const LstmRun& run, LstmRange part, LstmRange units,
                 LstmGateGradients* g) {
    const int64_t r = run.begin + part.begin, row = s_.first_row(step) + r, u = units.begin;
    g->rows = part.size();
    g->units = units.size();
    g->hidden = s_.hidden;
    g->gates = call_.gates + row * s_.gates() + u;
    g->cells = call_.cells + row * s_.hidden + u;
    g->cells_before = run.before == nullptr ? nullptr : run.before + part.begin * s_.hidden + u;
    g->grad_m = (s_.projected ? at(plan_.grad_m) : call_.grad_h_0) + r * s_.hidden + u;
    g->grad_m_pitch = s_.hidden;
    g->grad_output = call_.grad_output == nullptr || s_.projected
                         ? nullptr
                         : call_.grad_output + row * s_.hidden + u;
    g->grad_output_pitch = s_.hidden;
    g->grad_c = call_.grad_c_0 + r * s_.hidden + u;
    g->grad_gates = gate_grads(row) + u;
    g->grad_gates_pitch = plan_.pitch;
  }

  // --- The products over all steps -------------------------------------------------------------

  void pack_sources(int64_t task, int64_t tasks) {
    const LstmRange rows = lstm_part(s_.rows(), tasks, task);
    pack(sources_,
         {rows.begin, rows.size(), columns_.x, call_.input + rows.begin * s_.input, s_.input, 0.0f},
         plan_.sources);
    pack(sources_, {rows.begin, rows.size(), columns_.one, nullptr, 0, 1.0f}, plan_.sources);
    if (m_.width > 0) {
      float* m = at(plan_.m) + rows.begin * s_.hidden;
      kernels_.cell_outputs(call_.gates + rows.begin * s_.gates(),
                            call_.cells + rows.begin * s_.hidden, rows.size(), s_.hidden, m);
      pack(m_, {rows.begin, rows.size(), {0, s_.hidden}, m, s_.hidden, 0.0f}, plan_.source_m);
    }
    if (columns_.h.size() == 0) return;
    const LstmRange steps = lstm_part(s_.steps, tasks, task);
    for (int64_t step = steps.begin; step < steps.end; ++step) pack_states_before(step);
  }

  void pack(const LstmSources& sources, const LstmSourceRows& rows, int64_t offset) {
    if (rows.columns.size() > 0) cpu::pack_sources(kernels_, sources, rows, at(offset));
  }

  void pack_states_before(int64_t step) {
    LstmRun runs[2];
    const int count =
        lstm_runs(s_, step, {0, s_.active(step)}, call_.output, call_.h_0, s_.output, runs);
    for (int i = 0; i < count; ++i)
      pack(sources_,
           {s_.first_row(step) + runs[i].begin, runs[i].end - runs[i].begin, columns_.h,
            runs[i].before, s_.output, 0.0f},
           plan_.sources);
  }

  void finish(int64_t task, int64_t tasks) {
    float* sums = at(plan_.sums) + task * plan_.sums_size;
    const int64_t gates = s_.gates();
    if (plan_.few_rows) {
      lstm_weight_sums_of_few_rows(gemm_, kernels_,
                                   {s_, gate_grads(0), call_.input, call_.h_0, call_.grad_weight_ih,
                                    call_.grad_weight_hh, call_.grad_bias},
                                   plan_.pitch, lstm_part(gates, tasks, task), sums);
    } else if (columns_.width() > 0) {
      LstmOuterSum sum{gate_grads(0), plan_.pitch, gates, at(plan_.sources), {}, 0};
      for (const LstmResult& r : {LstmResult{columns_.x, call_.grad_weight_ih},
                                  LstmResult{columns_.h, call_.grad_weight_hh},
                                  LstmResult{columns_.one, call_.grad_bias}})
        if (r.result != nullptr) sum.results[sum.count++] = r;
      outer_sum(gemm_, kernels_, sources_, sum,
                lstm_part(outer_sum_panels(gemm_, gates), tasks, task), sums);
    }
    if (m_.width > 0)
      outer_sum(gemm_, kernels_, m_,
                {at(plan_.grad_h),
                 s_.output,
                 s_.output,
                 at(plan_.source_m),
                 {{{0, s_.hidden}, call_.grad_weight_hr}},
                 1},
                lstm_part(outer_sum_panels(gemm_, s_.output), tasks, task), sums);
    if (call_.grad_input != nullptr && plan_.few_rows && plan_.one_row) {
      multiply_one_row(from_input_, lstm_part(from_input_.count(), tasks, task), 0, call_.weight_ih,
                       call_.grad_input);
    } else if (call_.grad_input != nullptr) {
      const LstmRange rows = lstm_part(s_.rows(), tasks, task);
      multiply_by_panels(gemm_, from_input_, {0, from_input_.count()}, at(plan_.weight_ih),
                         {gate_grads(rows.begin), plan_.pitch, rows.size(),
                          call_.grad_input + rows.begin * s_.input, s_.input},
                         plan_.few_rows ? call_.weight_ih : nullptr);
    }
  }

  const LstmBackward<float>& call_;
  const LstmShape& s_;
  const Plan& plan_;
  const LstmKernels& kernels_;
  const GemmKernels& gemm_;
  float* scratch_;
  LstmPanels recurrent_, from_input_, projection_;
  SourceColumns columns_;
  LstmSources sources_, m_;
};

}  // namespace

int64_t lstm_backward_scratch(const LstmBackward<float>& call) {
  return make_plan(call).scratch;
}

void lstm_backward(const LstmBackward<float>& call, float* scratch) {
  const Plan plan = make_plan(call);
  record_kernel(KernelId::kLstmBackward,
                plan.recurrence.split == LstmSplit::kUnits ? "units" : "sequences", active_isa());
  Backward(call, plan, scratch).run();
}

}  // namespace fastconv::cpu
