// SPDX-License-Identifier: MIT
// The LSTM for python_tests/lstm_shim.py. Numbers in front: dtype (0 float32, 1 float64, 2
// bfloat16, 3 float16), path (0 steps, 1 persistent; plus 2 to allow tf32), then the shape; then
// pointers in the order of the structs of cuda/lstm/lstm.h.
#include "cuda/lstm/lstm.h"
#include "tests/cuda_shim/entry.h"

using namespace fastconv;
using namespace fastconv::cuda;

namespace {

template <class Body>
auto with_type(int64_t dtype, Body&& body) {
  switch (dtype) {
    case 0:
      return body(float{});
    case 1:
      return body(double{});
    case 2:
      return body(__nv_bfloat16{});
    default:
      return body(__half{});
  }
}

template <class T>
const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* out(void* p) {
  return static_cast<T*>(p);
}

LstmShape shape_of(int64_t steps, int64_t batch, int64_t input, int64_t hidden, int64_t output,
                   int64_t projected, int64_t reverse, const int64_t* row_start) {
  return {steps, batch, input, hidden, output, projected != 0, reverse != 0, row_start};
}

#define LSTM_SHAPE_PARAMETERS                                                               \
  int64_t dtype, int64_t path, int64_t steps, int64_t batch, int64_t input, int64_t hidden, \
      int64_t output, int64_t projected, int64_t reverse, const int64_t *row_start
#define LSTM_SHAPE shape_of(steps, batch, input, hidden, output, projected, reverse, row_start)

struct ForwardPointers {
  const void *x, *h_0, *c_0, *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
  void *y, *h_n, *c_n, *gates, *cells, *workspace;
};

template <class T>
LstmForward<T> forward_of(const LstmShape& shape, int64_t path, const ForwardPointers& p) {
  return {shape,           static_cast<LstmPath>(path % 2),
          path >= 2,       in<T>(p.x),
          in<T>(p.h_0),    in<T>(p.c_0),
          in<T>(p.w_ih),   in<T>(p.w_hh),
          in<T>(p.b_ih),   in<T>(p.b_hh),
          in<T>(p.w_hr),   out<T>(p.y),
          out<T>(p.h_n),   out<T>(p.c_n),
          out<T>(p.gates), out<T>(p.cells),
          p.workspace};
}

struct BackwardPointers {
  const void *x, *h_0, *c_0, *w_ih, *w_hh, *w_hr, *y, *gates, *cells, *grad_y, *grad_h_n, *grad_c_n;
  void *grad_x, *grad_h_0, *grad_c_0, *grad_w_ih, *grad_w_hh, *grad_b, *grad_w_hr, *workspace;
};

template <class T>
LstmBackward<T> backward_of(const LstmShape& shape, int64_t path, const BackwardPointers& p) {
  return {shape,
          static_cast<LstmPath>(path % 2),
          path >= 2,
          in<T>(p.x),
          in<T>(p.h_0),
          in<T>(p.c_0),
          in<T>(p.w_ih),
          in<T>(p.w_hh),
          in<T>(p.w_hr),
          in<T>(p.y),
          in<T>(p.gates),
          in<T>(p.cells),
          in<T>(p.grad_y),
          in<T>(p.grad_h_n),
          in<T>(p.grad_c_n),
          out<T>(p.grad_x),
          out<T>(p.grad_h_0),
          out<T>(p.grad_c_0),
          out<T>(p.grad_w_ih),
          out<T>(p.grad_w_hh),
          out<T>(p.grad_b),
          out<T>(p.grad_w_hr),
          p.workspace};
}

}  // namespace

// `pointers`: an array of them, ForwardPointers or BackwardPointers.
FC_ENTRY int64_t fastconv_lstm_forward_workspace_bytes(LSTM_SHAPE_PARAMETERS,
                                                       const ForwardPointers* pointers) {
  return with_type(dtype, [&](auto type) {
    return lstm_forward_workspace_bytes(forward_of<decltype(type)>(LSTM_SHAPE, path, *pointers));
  });
}

FC_ENTRY int fastconv_lstm_forward(LSTM_SHAPE_PARAMETERS, const ForwardPointers* pointers) {
  return with_type(dtype, [&](auto type) {
    return launch_lstm_forward(forward_of<decltype(type)>(LSTM_SHAPE, path, *pointers), nullptr);
  });
}

FC_ENTRY int64_t fastconv_lstm_backward_workspace_bytes(LSTM_SHAPE_PARAMETERS,
                                                        const BackwardPointers* pointers) {
  return with_type(dtype, [&](auto type) {
    return lstm_backward_workspace_bytes(backward_of<decltype(type)>(LSTM_SHAPE, path, *pointers));
  });
}

FC_ENTRY int fastconv_lstm_backward(LSTM_SHAPE_PARAMETERS, const BackwardPointers* pointers) {
  return with_type(dtype, [&](auto type) {
    return launch_lstm_backward(backward_of<decltype(type)>(LSTM_SHAPE, path, *pointers), nullptr);
  });
}

FC_ENTRY int fastconv_lstm_rows(int64_t dtype, int64_t to_padded, int64_t steps, int64_t batch,
                                int64_t width, const int64_t* order, const int64_t* row_start,
                                const void* from, void* to) {
  return with_type(dtype, [&](auto type) {
    using T = decltype(type);
    LstmShape shape{};
    shape.steps = steps;
    shape.batch = batch;
    const LstmRowMove<T> move{shape, order, row_start, width};
    return to_padded != 0 ? launch_lstm_rows_to_padded(move, in<T>(from), out<T>(to), nullptr)
                          : launch_lstm_rows_from_padded(move, in<T>(from), out<T>(to), nullptr);
  });
}

FC_ENTRY int fastconv_store_integers(const int64_t* host, int64_t count, int64_t* device) {
  return launch_store_integers(host, count, device, nullptr);
}

// 0 steps, 1 persistent.
FC_ENTRY int64_t fastconv_choose_lstm_path(LSTM_SHAPE_PARAMETERS, int64_t compute_capability,
                                           int64_t block_shared_bytes) {
  const int64_t bytes = with_type(dtype, [](auto type) { return int64_t{sizeof(type)}; });
  const Device device{static_cast<int32_t>(compute_capability), 100,
                      static_cast<int32_t>(block_shared_bytes), 0};
  (void)path;
  return static_cast<int64_t>(choose_lstm_path(LSTM_SHAPE, bytes, device));
}
