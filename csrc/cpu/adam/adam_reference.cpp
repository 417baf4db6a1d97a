// SPDX-License-Identifier: MIT
#include "cpu/adam/adam_reference.h"

#include <cmath>

namespace fastconv::cpu {

template <typename T>
void adam_reference(const AdamReference<T>& arrays, const AdamStepScalars& s, double factor) {
  for (int64_t i = 0; i < arrays.size; ++i) {
    T p = arrays.param[i];
    T g = static_cast<T>(factor) * arrays.grad[i];
    if (s.maximize) g = -g;
    g += static_cast<T>(s.l2) * p;
    p *= static_cast<T>(s.keep);
    T& m = arrays.exp_avg[i];
    T& v = arrays.exp_avg_sq[i];
    m = static_cast<T>(s.beta1) * m + static_cast<T>(1.0 - s.beta1) * g;
    v = static_cast<T>(s.beta2) * v + static_cast<T>(1.0 - s.beta2) * g * g;
    T largest = v;
    if (arrays.max_exp_avg_sq != nullptr) {
      T& kept = arrays.max_exp_avg_sq[i];
      kept = v > kept || v != v ? v : kept;
      largest = kept;
    }
    const T root = std::sqrt(largest) / static_cast<T>(s.correction);
    arrays.param[i] = p - static_cast<T>(s.step_size) * m / (root + static_cast<T>(s.eps));
  }
}

template void adam_reference(const AdamReference<float>&, const AdamStepScalars&, double);
template void adam_reference(const AdamReference<double>&, const AdamStepScalars&, double);

}  // namespace fastconv::cpu
