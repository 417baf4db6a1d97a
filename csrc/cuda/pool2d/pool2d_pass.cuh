// SPDX-License-Identifier: MIT
// What the launchers of both passes share: a call with its policy, and the same as a kernel gets
// it.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/pool2d/pool2d_choice.h"
#include "cuda/pool2d/pool2d_policies.cuh"

namespace fastconv::cuda {

inline constexpr int kPoolThreads = 256;

// For a kernel that reads `from` and writes `to`, with a thread for every item of the grid.
template <class Divmod, class Pool>
struct PoolWork {
  using T = typename Pool::T;
  PoolGrid<Divmod> grid;
  PoolShape<typename Divmod::Index> shape;
  Pool pool;
  const T* from;
  T* to;

  unsigned blocks() const { return grid_for(grid.items, kPoolThreads); }
};

template <class Pool>
struct PoolPass {
  using T = typename Pool::T;
  const Pool2dCall& call;
  Pool pool;
  const void* from;
  void* to;
  bool aligned;  // every pointer, to 16 bytes

  // One item for every `vector` channels (channels_last) of an output, or of an input.
  template <class Divmod>
  PoolWork<Divmod, Pool> on_outputs(int64_t vector) const {
    return on(output_grid<Divmod>(call.shape, call.channels_last, vector));
  }
  template <class Divmod>
  PoolWork<Divmod, Pool> on_inputs(int64_t vector) const {
    return on(input_grid<Divmod>(call.shape, call.channels_last, vector));
  }
  // One for 16 bytes of an input row that 2x2 windows of contiguous rows begin in.
  PoolWork<FastDivmod, Pool> on_rows() const {
    const Pool2dShape& s = call.shape;
    return on(PoolGrid<FastDivmod>(pool_outer(s, false), s.out_height, s.in_width / kPer128<T>, 1));
  }

 private:
  template <class Divmod>
  PoolWork<Divmod, Pool> on(const PoolGrid<Divmod>& grid) const {
    return {grid, PoolShape<typename Divmod::Index>(call), pool, static_cast<const T*>(from),
            static_cast<T*>(to)};
  }
};

}  // namespace fastconv::cuda
