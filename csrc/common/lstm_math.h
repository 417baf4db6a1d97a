// SPDX-License-Identifier: MIT
// The arithmetic of one LSTM unit, forward and backward: what the reference loops of the CPU and
// the CUDA kernels share. The vector kernels of the CPU write the same formulas on registers.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define FASTCONV_HOST_DEVICE __host__ __device__
#else
#define FASTCONV_HOST_DEVICE
#endif

namespace fastconv {

// Input, forget, cell and output gate of one unit: before or after their activations, or their
// gradients.
template <class T>
struct LstmGates {
  T i, f, g, o;
};

template <class T>
FASTCONV_HOST_DEVICE inline T lstm_sigmoid(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

template <class T>
FASTCONV_HOST_DEVICE inline LstmGates<T> lstm_activate(const LstmGates<T>& before) {
  return {lstm_sigmoid(before.i), lstm_sigmoid(before.f), std::tanh(before.g),
          lstm_sigmoid(before.o)};
}

// c_t from the activated gates and c_(t-1).
template <class T>
FASTCONV_HOST_DEVICE inline T lstm_cell_state(const LstmGates<T>& gates, T cell_before) {
  return gates.f * cell_before + gates.i * gates.g;
}

// m_t, which is h_t where nothing is projected.
template <class T>
FASTCONV_HOST_DEVICE inline T lstm_cell_output(const LstmGates<T>& gates, T cell) {
  return gates.o * std::tanh(cell);
}

template <class T>
struct LstmUnitGradients {
  LstmGates<T> gates;  // of the sums before the activations
  T cell_before;
};

// From the activated gates, c_t, c_(t-1) and the gradients of m_t and c_t.
template <class T>
FASTCONV_HOST_DEVICE inline LstmUnitGradients<T> lstm_unit_gradients(const LstmGates<T>& gates,
                                                                     T cell, T cell_before,
                                                                     T grad_m, T grad_cell) {
  const T t = std::tanh(cell);
  const T grad_tanh = grad_m * gates.o;
  const T to_cell = grad_cell + grad_tanh * (T(1) - t * t);
  return {{to_cell * gates.g * gates.i * (T(1) - gates.i),
           to_cell * cell_before * gates.f * (T(1) - gates.f),
           to_cell * gates.i * (T(1) - gates.g * gates.g), grad_tanh * t * (T(1) - gates.o)},
          to_cell * gates.f};
}

}  // namespace fastconv
