// SPDX-License-Identifier: MIT
#include <algorithm>

#include "cpu/lstm/lstm.h"
#include "cpu/runtime/parallel.h"

namespace fastconv::cpu {
namespace {

// Calls body(step) for all steps, on several threads when `elements` are worth it.
template <class Body>
void for_steps(const LstmShape& shape, int64_t elements, Body&& body) {
  const int64_t tasks = std::min(shape.steps, worthwhile_threads(0, 8 * elements));
  parallel_for(tasks, [&](int64_t task) {
    const int64_t end = shape.steps * (task + 1) / tasks;
    for (int64_t step = shape.steps * task / tasks; step < end; ++step) body(step);
  });
}

}  // namespace

template <class T>
void lstm_rows_from_padded(const LstmShape& shape, const int64_t* order, int64_t width,
                           const T* padded, T* rows) {
  for_steps(shape, shape.rows() * width, [&](int64_t step) {
    T* to = rows + shape.first_row(step) * width;
    for (int64_t r = 0; r < shape.active(step); ++r, to += width)
      std::copy_n(padded + (step * shape.batch + order[r]) * width, width, to);
  });
}

template <class T>
void lstm_rows_to_padded(const LstmShape& shape, const int64_t* order, int64_t width, const T* rows,
                         T* padded) {
  for_steps(shape, shape.steps * shape.batch * width, [&](int64_t step) {
    const T* from = rows + shape.first_row(step) * width;
    for (int64_t r = 0; r < shape.batch; ++r) {
      T* to = padded + (step * shape.batch + order[r]) * width;
      if (r < shape.active(step))
        std::copy_n(from + r * width, width, to);
      else
        std::fill_n(to, width, T{0});
    }
  });
}

template void lstm_rows_from_padded(const LstmShape&, const int64_t*, int64_t, const float*,
                                    float*);
template void lstm_rows_from_padded(const LstmShape&, const int64_t*, int64_t, const double*,
                                    double*);
template void lstm_rows_to_padded(const LstmShape&, const int64_t*, int64_t, const float*, float*);
template void lstm_rows_to_padded(const LstmShape&, const int64_t*, int64_t, const double*,
                                  double*);

}  // namespace fastconv::cpu
