// SPDX-License-Identifier: MIT
// Forward pass of an LSTM layer. Weights are packed once per call so that the four gates of a block
// of units end in the registers of one tile (lstm_ukernels_impl.h), which finishes the cell. The
// product with the input either rides along as more terms of the same sum, or, where the weights of
// both products together outgrow a core's cache or tiles would be low, runs before, some steps at a
// time.
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

// Weights of a step above this size are read from beyond a core's own cache.
constexpr int64_t kCachedWeights = 160'000;
// Floats of input products computed ahead of their steps, and rows below which a pass over the
// weights would be for too few.
constexpr int64_t kAheadFloats = 512 * 1024;
constexpr int64_t kAheadRows = 256;
// Recurrent weights of more floats than this are read from memory that takes long to answer; with
// fewer, asking ahead costs more than it saves.
constexpr int64_t kStreamedWeights = 3'000'000;
// Rows of a call up to which all weights are read as they are.
constexpr int64_t kInPlaceRows = 6;
// Packed weights of so many floats are packed by every thread for itself.
constexpr int64_t kOwnWeights = 50'000;
constexpr int64_t kAlign = 16;

struct Plan {
  const LstmKernels* kernels;
  const GemmKernels* gemm;
  LstmThreads threads;
  int64_t blocks;                            // of `lanes` units
  int64_t width;                             // 4 * lanes * blocks
  bool narrow;                               // the last units form a narrow block after these
  bool in_place;                             // weights are read as they are, for one step at a time
  bool ahead;                                // input products are computed some steps ahead
  bool streams;                              // high tiles ask for the next block's weights
  int64_t ahead_steps;                       // how many steps; each has room for active(0) rows
  int64_t copies;                            // of the packed weights
  int64_t weights_x, weights_h, bias, copy;  // offsets into a copy, and its size
  int64_t pre, m, projection;                // offsets into scratch
  int64_t scratch;
};

// True when the product with the input is computed ahead. Part of what the result is, so it must
// not depend on threads.
bool computes_ahead(const LstmShape& s, int64_t max_rows) {
  if (s.input < 8) return false;
  if (s.steps > 1 && s.active(0) < max_rows) return true;
  return s.gates() * (s.input + s.output) > kCachedWeights;
}

// True when the last units form a narrow block. Low tiles are faster with all units in blocks that
// can be computed together, and few blocks are not worth it.
bool has_narrow_block(const LstmShape& s, const LstmKernels& kernels) {
  const int64_t last = s.hidden % kernels.lanes;
  return kernels.narrow_rows > 0 && s.hidden > kernels.lanes && last > 0 &&
         last <= kernels.lanes / 4 && s.active(0) >= kernels.narrow_rows;
}

Plan make_plan(const LstmShape& s) {
  Plan p{};
  const Isa isa = active_isa();
  p.kernels = &lstm_kernels(isa);
  p.gemm = &gemm_kernels(isa);
  p.threads = lstm_threads(s);
  const int64_t lanes = p.kernels->lanes;
  p.in_place = s.rows() <= kInPlaceRows;
  p.ahead = p.in_place || computes_ahead(s, p.kernels->max_rows);
  p.narrow = !p.ahead && has_narrow_block(s, *p.kernels);
  p.blocks = p.narrow ? s.hidden / lanes : ceil_div(s.hidden, lanes);
  p.width = 4 * lanes * p.blocks;
  const int64_t packed = p.width + (p.narrow ? lanes : 0);
  p.streams = !p.in_place && s.gates() * s.output > kStreamedWeights;
  if (p.ahead) {
    const int64_t rows = std::max(kAheadRows, kAheadFloats / p.width);
    p.ahead_steps = p.in_place ? 1 : std::clamp<int64_t>(rows / s.active(0), 1, s.steps);
  }
  const auto place = [&](int64_t* offset, int64_t floats) {
    *offset = p.scratch;
    p.scratch += round_up(floats, kAlign);
  };
  place(&p.weights_x, p.in_place ? 0 : s.input * packed);
  place(&p.weights_h, p.in_place ? 0 : s.output * packed);
  place(&p.bias, packed);
  p.copy = p.scratch;
  // A thread reads what it has packed itself faster than what others have: in less time than one
  // of them would have packed a few weights for all.
  const bool own =
      p.threads.split == LstmSplit::kSequences && p.copy <= kOwnWeights && !s.projected;
  p.copies = own ? p.threads.threads : 1;
  p.scratch *= p.copies;
  place(&p.pre, p.ahead_steps * s.active(0) * p.width);
  if (s.projected) {
    place(&p.m, s.batch * s.hidden);
    place(&p.projection, LstmPanels(*p.gemm, s.hidden, s.output).floats());
  }
  return p;
}

class Forward {
 public:
  Forward(const LstmForward<float>& call, const Plan& plan, float* scratch)
      : call_(call), s_(call.shape), plan_(plan), packed_(scratch), scratch_(scratch) {}

  void run() {
    FlushDenormals flush;
    const int64_t threads = plan_.threads.threads;
    if (plan_.copies == 1) {
      // Packing is bound by memory; a region only pays for large weights.
      const int64_t packers = plan_.copy > kOwnWeights ? threads : 1;
      parallel_for(packers, [&](int64_t task) {
        FlushDenormals flush_here;
        pack(lstm_part(plan_.blocks, packers, task), task == 0);
      });
    }
    start_states();
    if (plan_.threads.split == LstmSplit::kSequences) {
      parallel_for(threads, [&](int64_t task) {
        FlushDenormals flush_here;
        Forward part = *this;
        if (plan_.copies > 1) {
          part.packed_ += task * plan_.copy;
          part.pack({0, plan_.blocks}, true);
        }
        part.run_sequences(lstm_sequences(s_, threads, task));
      });
    } else {
      run_units(threads);
    }
    finish_states();
  }

 private:
  void pack(LstmRange blocks, bool rest) {
    const int64_t lanes = plan_.kernels->lanes;
    for (int64_t b = blocks.begin; b < blocks.end; ++b) pack_block(b, lanes);
    if (rest && plan_.narrow) pack_block(plan_.blocks, lanes / 4);
    if (rest && s_.projected) {
      const LstmPanels panels(*plan_.gemm, s_.hidden, s_.output);
      pack_panels(*plan_.kernels, panels, {0, panels.count()}, call_.weight_hr, true,
                  scratch_ + plan_.projection);
    }
  }

  // Weights and bias of block b; its units take `wide` places for each gate.
  void pack_block(int64_t b, int64_t wide) {
    if (!plan_.in_place) {
      pack_block(b, wide, call_.weight_ih, s_.input, packed_ + plan_.weights_x);
      pack_block(b, wide, call_.weight_hh, s_.output, packed_ + plan_.weights_h);
    }
    const int64_t lanes = plan_.kernels->lanes, unit = b * lanes;
    const int64_t valid = std::min(wide, s_.hidden - unit);
    float* bias = packed_ + plan_.bias + b * 4 * lanes;
    std::fill_n(bias, 4 * wide, 0.0f);
    for (const float* from : {call_.bias_ih, call_.bias_hh})
      for (int64_t g = 0; g < 4 && from != nullptr; ++g)
        for (int64_t l = 0; l < valid; ++l) bias[g * wide + l] += from[g * s_.hidden + unit + l];
  }

  // The rows of block b of the four gates, transposed: [depth, 4, wide].
  void pack_block(int64_t b, int64_t wide, const float* weights, int64_t depth, float* packed) {
    const int64_t lanes = plan_.kernels->lanes, unit = b * lanes;
    const int64_t valid = std::min(wide, s_.hidden - unit);
    for (int64_t g = 0; g < 4; ++g)
      plan_.kernels->transpose(weights + (g * s_.hidden + unit) * depth, depth, valid, depth,
                               packed + b * depth * 4 * lanes + g * wide, 4 * wide, wide);
  }

  void start_states() {
    for (int64_t i = 0; i < s_.batch * s_.hidden; ++i)
      call_.c_n[i] = call_.c_0 == nullptr ? 0.0f : call_.c_0[i];
  }

  // h_n: the last output row of each sequence; of a sequence of length zero the initial state.
  void finish_states() {
    const int64_t out = s_.output;
    if (call_.h_n == nullptr) return;
    for (int64_t r = 0; r < s_.batch; ++r) {
      const float* from = call_.h_0 == nullptr ? nullptr : call_.h_0 + r * out;
      if (r < s_.active(0)) {
        int64_t last = s_.reverse ? 0 : s_.steps - 1;
        while (r >= s_.active(last)) --last;
        from = call_.output + (s_.first_row(last) + r) * out;
      }
      for (int64_t p = 0; p < out; ++p) call_.h_n[r * out + p] = from == nullptr ? 0.0f : from[p];
    }
  }

  // All steps of some sequences.
  void run_sequences(LstmRange sequences) {
    const LstmRange blocks{0, plan_.blocks};
    for (int64_t n = 0; n < s_.steps; ++n) {
      if (new_chunk(n)) multiply_ahead(n, sequences, blocks);
      const int64_t step = s_.nth_step(n);
      const LstmRange active{sequences.begin, std::min(sequences.end, s_.active(step))};
      if (active.size() <= 0) continue;
      run_cells(n, active, blocks);
      if (s_.projected) project(step, active, {0, projection_panels()});
    }
  }

  // All sequences, every step cut into ranges of units.
  void run_units(int64_t threads) {
    for (int64_t n = 0; n < s_.steps; ++n) {
      const int64_t step = s_.nth_step(n);
      const LstmRange active{0, s_.active(step)};
      parallel_for(threads, [&](int64_t task) {
        FlushDenormals flush_here;
        const LstmRange blocks = lstm_part(plan_.blocks, threads, task);
        if (new_chunk(n)) multiply_ahead(n, {0, s_.active(0)}, blocks);
        run_cells(n, active, blocks);
      });
      if (!s_.projected) continue;
      const int64_t tasks = std::min(threads, projection_panels());
      parallel_for(tasks, [&](int64_t task) {
        FlushDenormals flush_here;
        project(step, active, lstm_part(projection_panels(), tasks, task));
      });
    }
  }

  bool new_chunk(int64_t n) const {
    return plan_.ahead && !plan_.in_place && n % plan_.ahead_steps == 0;
  }

  // Where the input products of sequence r at the n-th step are.
  float* ahead_row(int64_t n, int64_t r) const {
    const int64_t first = n - n % plan_.ahead_steps;
    const int64_t last = std::min(first + plan_.ahead_steps, s_.steps) - 1;
    const int64_t place = s_.reverse ? last - n : n - first;  // in the order of the rows
    return scratch_ + plan_.pre + (place * s_.active(0) + r) * plan_.width;
  }

  // Input products of some sequences and blocks for the chunk of steps that begins with the n-th.
  void multiply_ahead(int64_t n, LstmRange sequences, LstmRange blocks) {
    const int64_t end = std::min(n + plan_.ahead_steps, s_.steps);
    const bool joined = s_.row_start == nullptr && sequences.size() == s_.batch;
    for (int64_t m = n; m < end; ++m) {
      const int64_t step = s_.nth_step(joined && s_.reverse ? end - 1 : m);
      const int64_t active = std::min(sequences.end, s_.active(step)) - sequences.begin;
      if (active <= 0) continue;
      const LstmProduct product{call_.input + (s_.first_row(step) + sequences.begin) * s_.input,
                                s_.input, joined ? (end - n) * active : active,
                                ahead_row(joined && s_.reverse ? end - 1 : m, sequences.begin),
                                plan_.width};
      multiply_by_gates(*plan_.gemm, s_.input, blocks, packed_ + plan_.weights_x, product);
      if (joined) return;
    }
  }

  void run_cells(int64_t n, LstmRange sequences, LstmRange blocks) {
    const int64_t step = s_.nth_step(n);
    LstmRun runs[2];
    const int count = lstm_runs(s_, step, sequences, call_.output, call_.h_0, s_.output, runs);
    for (int i = 0; i < count; ++i) run_cells(n, step, runs[i], blocks);
  }

  // Products of a run from the weights as they are: rows share what the cache holds of them.
  void multiply_in_place(int64_t n, int64_t step, const LstmRun& run, LstmRange blocks) {
    const int64_t lanes = plan_.kernels->lanes;
    for (int64_t g = 0; g < 4; ++g) {
      for (int64_t b = blocks.begin; b < blocks.end; ++b) {
        const int64_t unit = b * lanes, valid = std::min(lanes, s_.hidden - unit);
        const float* w_ih = call_.weight_ih + (g * s_.hidden + unit) * s_.input;
        const float* w_hh = call_.weight_hh + (g * s_.hidden + unit) * s_.output;
        for (int64_t r = run.begin; r < run.end; ++r) {
          const float* x = call_.input + (s_.first_row(step) + r) * s_.input;
          LstmDots dots{valid,   w_ih,    x, s_.input,
                        nullptr, nullptr, 0, ahead_row(n, r) + (b * 4 + g) * lanes};
          if (run.before != nullptr) {
            dots.h_rows = w_hh;
            dots.h = run.before + (r - run.begin) * s_.output;
            dots.h_depth = s_.output;
          }
          plan_.kernels->dots(dots);
        }
      }
    }
  }

  void run_cells(int64_t n, int64_t step, const LstmRun& run, LstmRange blocks) {
    if (plan_.in_place) multiply_in_place(n, step, run, blocks);
    const int64_t rows = run.end - run.begin, most = plan_.kernels->max_rows;
    const int64_t tiles = ceil_div(rows, most);
    // The highest tile decides how many blocks go together; tiles of one run differ by one row.
    const LstmCellForm& form = plan_.kernels->by_rows[ceil_div(rows, tiles) - 1];
    const int64_t together = tiles == 1 ? blocks.size() / form.blocks : 0;
    const int64_t lines = 4 * plan_.kernels->lanes / kLstmLine;  // of a block's weights, each term
    const int64_t calls = together + blocks.size() - together * form.blocks;
    for (int64_t k = 0; k < calls; ++k) {
      // Back and forth: what a step read last is still in the caches when the next one begins.
      const int64_t call = n % 2 == 0 ? k : calls - 1 - k;
      const bool several = call < together;
      const int64_t b =
          blocks.begin + (several ? call * form.blocks : together * form.blocks + call - together);
      for (int64_t i = 0; i < tiles; ++i) {
        const LstmRange part = lstm_part(rows, tiles, i);
        const LstmCellForm& own = plan_.kernels->by_rows[part.size() - 1];
        LstmCellTile tile =
            cell_tile(n, step, run, run.begin + part.begin, b, several ? form.blocks : 1);
        if (!plan_.streams || tiles < lines || i >= lines || k + 1 == calls) {
          (several ? own.several : own.one)(tile);
          continue;
        }
        // Each tile brings in a part of the weights of the block that follows.
        const int64_t next = n % 2 == 0 ? b + 1 : b - 1;
        tile.soon = packed_ + plan_.weights_h + (next * lines + i) * kLstmLine * s_.output;
        own.streaming(tile);
      }
    }
    const bool last = blocks.size() > 0 && blocks.end == plan_.blocks;
    if (last && plan_.narrow) run_narrow_cells(n, step, run);
  }

  void run_narrow_cells(int64_t n, int64_t step, const LstmRun& run) {
    const int64_t rows = run.end - run.begin;
    const int64_t tiles = ceil_div(rows, plan_.kernels->narrow_rows);
    for (int64_t i = 0; i < tiles; ++i) {
      const LstmRange part = lstm_part(rows, tiles, i);
      plan_.kernels->narrow_by_rows[part.size() - 1](
          cell_tile(n, step, run, run.begin + part.begin, plan_.blocks, 1));
    }
  }

  // The tile whose first row is sequence r, of `count` blocks from b on.
  LstmCellTile cell_tile(int64_t n, int64_t step, const LstmRun& run, int64_t r, int64_t b,
                         int64_t count) {
    const int64_t lanes = plan_.kernels->lanes, unit = b * lanes, block = 4 * lanes;
    const int64_t row = s_.first_row(step) + r;
    const int64_t h_depth = run.before == nullptr || plan_.in_place ? 0 : s_.output;
    const bool ahead = plan_.ahead, training = call_.gates != nullptr;
    LstmCellTile t;  // each field once: to zero them all first takes as long as the rest
    t.hidden = s_.hidden;
    t.units = std::min(count * lanes, s_.hidden - unit);
    t.bias = packed_ + plan_.bias + b * block;
    t.pre = ahead ? ahead_row(n, r) + b * block : nullptr;
    t.pre_pitch = plan_.width;
    t.x_depth = ahead ? 0 : s_.input;
    t.x = ahead ? nullptr : call_.input + row * s_.input;
    t.x_pitch = s_.input;
    t.weights_x = packed_ + plan_.weights_x + b * block * s_.input;
    t.h_depth = h_depth;
    t.h = h_depth == 0 ? nullptr : run.before + (r - run.begin) * s_.output;
    t.h_pitch = s_.output;
    t.weights_h = packed_ + plan_.weights_h + b * block * s_.output;
    t.c = call_.c_n + r * s_.hidden + unit;
    t.out =
        (s_.projected ? scratch_ + plan_.m + r * s_.hidden : call_.output + row * s_.output) + unit;
    t.out_pitch = s_.hidden;
    t.gates = training ? call_.gates + row * s_.gates() + unit : nullptr;
    t.cells = training ? call_.cells + row * s_.hidden + unit : nullptr;
    t.soon = nullptr;
    return t;
  }

  int64_t projection_panels() const {
    return LstmPanels(*plan_.gemm, s_.hidden, s_.output).count();
  }

  void project(int64_t step, LstmRange sequences, LstmRange panels) {
    const LstmProduct product{
        scratch_ + plan_.m + sequences.begin * s_.hidden, s_.hidden, sequences.size(),
        call_.output + (s_.first_row(step) + sequences.begin) * s_.output, s_.output};
    multiply_by_panels(*plan_.gemm, LstmPanels(*plan_.gemm, s_.hidden, s_.output), panels,
                       scratch_ + plan_.projection, product);
  }

  const LstmForward<float>& call_;
  const LstmShape& s_;
  const Plan& plan_;
  float* packed_;  // the copy of the weights that this object reads
  float* scratch_;
};

const char* algorithm(const Plan& plan) {
  if (plan.in_place) return "in_place";
  if (plan.threads.split == LstmSplit::kUnits) return plan.ahead ? "units_ahead" : "units";
  return plan.ahead ? "sequences_ahead" : "sequences";
}

}  // namespace

int64_t lstm_forward_scratch(const LstmForward<float>& call) {
  return make_plan(call.shape).scratch;
}

void lstm_forward(const LstmForward<float>& call, float* scratch) {
  const Plan plan = make_plan(call.shape);
  record_kernel(KernelId::kLstmForward, algorithm(plan), active_isa());
  Forward(call, plan, scratch).run();
}

}  // namespace fastconv::cpu
