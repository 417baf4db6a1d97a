// SPDX-License-Identifier: MIT
// The emulator must see what it is there to see: every test here plants a bug of one kind into a
// small kernel and asks that it is found, next to the same kernel without it.
#include <string>
#include <type_traits>

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "cuda/common/types.cuh"
#include "cuda/common/vector.cuh"
#include "cuda_check.h"

namespace fastconv::testing {
namespace {

using cuda_shim::CopyAt;
using cuda_shim::Flush;
using cuda_shim::Options;
using cuda_shim::Schedule;

constexpr int kBlock = 96;

// ThreadSanitizer ends the program at the races that some tests plant.
#ifdef __SANITIZE_THREAD__
constexpr bool kRacesAllowed = false;
#else
constexpr bool kRacesAllowed = true;
#endif

// --- Barriers and schedules ---------------------------------------------------------------------

// output[t] = the value that the next thread of the block wrote, several rounds through one buffer.
__global__ void exchange_kernel(int* output, int rounds, bool first_barrier, bool second_barrier) {
  FC_DYNAMIC_SHARED(int, values);
  const int t = static_cast<int>(threadIdx.x);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    values[t] = t + 1000 * round;
    if (first_barrier) __syncthreads();
    sum += values[(t + 1) % static_cast<int>(blockDim.x)];
    if (second_barrier) __syncthreads();
  }
  output[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

bool exchange_is_right(int rounds, bool first_barrier, bool second_barrier) {
  constexpr int kBlocks = 5;
  Device<int> output("output", kBlocks * kBlock);
  CHECK(FC_LAUNCH(exchange_kernel, kBlocks, kBlock, kBlock * sizeof(int), nullptr, output.data(),
                  rounds, first_barrier, second_barrier) == cudaSuccess);
  bool right = true;
  for (int i = 0; i < kBlocks * kBlock; ++i)
    right &= output[i] == (i % kBlock + 1) % kBlock * rounds + 500 * rounds * (rounds - 1);
  return right;
}

void test_missing_barriers_show() {
  int first_missed = 0, second_missed = 0;
  for_each_schedule([&] {
    CHECK(exchange_is_right(3, true, true));
    first_missed += exchange_is_right(1, false, true);
    second_missed += exchange_is_right(3, true, false);
  });
  CHECK(first_missed == 0);
  CHECK(second_missed == 0);
}

__global__ void half_barrier_kernel(int limit) {
  if (static_cast<int>(threadIdx.x) < limit) __syncthreads();
}
__global__ void two_barriers_kernel(int limit) {
  if (static_cast<int>(threadIdx.x) < limit) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void test_divergent_barriers_are_reported() {
  for_each_schedule([] {
    CHECK(FC_LAUNCH(half_barrier_kernel, 2, kBlock, 0, nullptr, kBlock) == cudaSuccess);
    CHECK(FC_LAUNCH(half_barrier_kernel, 2, kBlock, 0, nullptr, 40) == cudaErrorLaunchFailure);
    CHECK(error_has("test_cuda_shim.cpp:"));
    CHECK(error_has("half_barrier_kernel, block ("));
    CHECK(FC_LAUNCH(two_barriers_kernel, 2, kBlock, 0, nullptr, 40) == cudaErrorLaunchFailure);
    CHECK(error_has("barrier meets another barrier"));
  });
}

// --- Warp collectives ---------------------------------------------------------------------------

__global__ void mask_kernel(unsigned mask, int lanes, int source, int* output) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < lanes) output[lane] = __shfl_sync(mask, 10 * lane, source);
}

// One branch each, as an optimizer must not merge them: different lines.
__global__ void split_shuffle_kernel(int* output) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    output[lane] = __shfl_xor_sync(0xffffffffu, lane, 1);
  } else {
    output[lane] = __shfl_xor_sync(0xffffffffu, lane, 1);
  }
}

void test_masks_are_checked() {
  Device<int> output("output", 32);
  const auto run = [&](unsigned mask, int lanes, int source) {
    return FC_LAUNCH(mask_kernel, 1, 32, 0, nullptr, mask, lanes, source, output.data());
  };
  for_each_schedule([&] {
    CHECK(run(0xffffffffu, 32, 3) == cudaSuccess);
    CHECK(output[31] == 30);
    CHECK(run(0x0000ffffu, 16, 3) == cudaSuccess);
    CHECK(run(0xffffffffu, 16, 3) == cudaErrorLaunchFailure);  // lanes 16 to 31 never come
    CHECK(run(0x0000ffffu, 32, 3) == cudaErrorLaunchFailure);  // lane 16 is not named
    CHECK(error_has("does not name it"));
    CHECK(run(0x0000ffffu, 16, 20) == cudaErrorLaunchFailure);
    CHECK(error_has("reads from lane 20"));
    CHECK(FC_LAUNCH(split_shuffle_kernel, 1, 32, 0, nullptr, output.data()) ==
          cudaErrorLaunchFailure);
    CHECK(error_has("test_cuda_shim.cpp:"));
  });
}

// --- Memory -------------------------------------------------------------------------------------

__global__ void copy_kernel(const float* input, float* output, int count, int shift) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) output[i] = input[i + shift];
}
__global__ void vector_copy_kernel(const float* input, float* output) {
  cuda::store128(output + 4 * threadIdx.x, cuda::load128(input + 4 * threadIdx.x));
}
__global__ void shared_kernel(int* output, int index) {
  FC_DYNAMIC_SHARED(int, values);
  if (threadIdx.x == 0) values[index] = 1;
  __syncthreads();
  output[threadIdx.x] = values[threadIdx.x];
}
[[gnu::no_sanitize_undefined]] __global__ void divide_kernel(int* output, int divisor) {
  output[threadIdx.x] = 7 / divisor;
}

void test_memory_is_guarded() {
  constexpr int kCount = 100;
  Device<float> input("input", kCount), early("early", kCount, Flush::kStart);
  Device<float> output("output", kCount);
  const auto copy = [&](float* from, int count, int shift) {
    return FC_LAUNCH(copy_kernel, 2, 64, 0, nullptr, from, output.data(), count, shift);
  };
  for (int i = 0; i < kCount; ++i) input[i] = static_cast<float>(i);
  for_each_schedule([&] {
    CHECK(copy(input.data(), kCount, 0) == cudaSuccess);
    CHECK(output[99] == 99.0f);
    CHECK(copy(input.data(), kCount, 1) == cudaErrorLaunchFailure);
    CHECK(error_has("0 bytes past the end of the 400 bytes of 'input'"));
    CHECK(copy(early.data(), kCount, -1) == cudaErrorLaunchFailure);
    CHECK(error_has("4 bytes before the 400 bytes of 'early'"));
    CHECK(copy(input.data(), kCount + 1, -1) == cudaErrorLaunchFailure);
    CHECK(error_has("of 'output'"));
  });
  CHECK(FC_LAUNCH(divide_kernel, 1, 4, 0, nullptr, reinterpret_cast<int*>(output.data()), 0) ==
        cudaErrorLaunchFailure);
  CHECK(error_has("division by zero"));
}

void test_writes_into_gaps_show() {
  Device<char> bytes("bytes", 10, Flush::kStart);
  CHECK(cuda_shim::guarded_intact(bytes.data()));
  bytes[10] = 0;
  CHECK(!cuda_shim::guarded_intact(bytes.data()));
  bytes.expect_damage();
  Device<int> output("output", 32);
  CHECK(FC_LAUNCH(shared_kernel, 1, 32, 33 * 4, nullptr, output.data(), 32) == cudaSuccess);
  CHECK(output[31] == -1);  // shared memory starts poisoned
  CHECK(FC_LAUNCH(shared_kernel, 1, 32, 33 * 4, nullptr, output.data(), 33) ==
        cudaErrorLaunchFailure);
  CHECK(error_has("beside its 132 bytes of shared memory"));
  CHECK(FC_LAUNCH(shared_kernel, 1, 32, 32 * 4, nullptr, output.data(), 32) ==
        cudaErrorLaunchFailure);
  CHECK(error_has("of 'shared memory'"));
}

void test_alignment_is_checked() {
  Device<float4> input("input", 9), output("output", 8);
  const auto* floats = reinterpret_cast<const float*>(input.data());
  auto* out = reinterpret_cast<float*>(output.data());
  CHECK(FC_LAUNCH(vector_copy_kernel, 1, 8, 0, nullptr, floats, out) == cudaSuccess);
  CHECK(FC_LAUNCH(vector_copy_kernel, 1, 8, 0, nullptr, floats + 1, out) == cudaErrorLaunchFailure);
  CHECK(error_has("misaligned access of 16 bytes"));
  CHECK(error_has("test_cuda_shim.cpp:"));
}

// --- Asynchronous copies ------------------------------------------------------------------------

// A two-stage pipeline over `tiles` tiles of 16 bytes per thread; one bug at a time.
enum class PipelineBug { kNone, kNoWait, kWaitForFewer, kNoBarrierBeforeReuse, kNoDrain };

__global__ void pipeline_kernel(const float* input, float* output, int tiles, PipelineBug bug) {
  FC_DYNAMIC_SHARED(float, stages);
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto start = [&](int tile) {
    if (tile < tiles)
      cuda::cp_async_16(stages + (tile % 2 * threads + t) * 4, input + (tile * threads + t) * 4,
                        16);
    cuda::cp_async_commit();
  };
  float sum = 0;
  start(0);
  for (int tile = 0; tile < tiles; ++tile) {
    start(tile + 1);
    if (bug == PipelineBug::kWaitForFewer) cuda::cp_async_wait<2>();
    if (bug != PipelineBug::kWaitForFewer && bug != PipelineBug::kNoWait) cuda::cp_async_wait<1>();
    __syncthreads();
    sum += stages[(tile % 2 * threads + (t + 1) % threads) * 4];
    if (bug != PipelineBug::kNoBarrierBeforeReuse) __syncthreads();
  }
  if (bug == PipelineBug::kNoDrain) start(0);
  output[t] = sum;
}

// How many of the schedules and copy modes give the right sums.
int right_pipelines(PipelineBug bug) {
  constexpr int kThreads = 64, kTiles = 5;
  Device<float4> input("input", kTiles * kThreads);
  Device<float> output("output", kThreads);
  for (int i = 0; i < kTiles * kThreads; ++i) input[i] = {static_cast<float>(i), 0, 0, 0};
  int right = 0;
  for (const CopyAt copy_at : {CopyAt::kIssue, CopyAt::kWait})
    for (int s = 0; s < cuda_shim::kSchedules; ++s) {
      Options options;
      options.schedule = static_cast<Schedule>(s);
      options.copy_at = copy_at;
      cuda_shim::set_options(options);
      bool same = FC_LAUNCH(pipeline_kernel, 1, kThreads, 2 * kThreads * 16, nullptr,
                            reinterpret_cast<const float*>(input.data()), output.data(), kTiles,
                            bug) == cudaSuccess;
      for (int t = 0; same && t < kThreads; ++t)
        same = output[t] == static_cast<float>((t + 1) % kThreads * kTiles + kThreads * 10);
      right += same;
    }
  cuda_shim::set_options({});
  return right;
}

void test_copies_run_early_and_late() {
  const int all = 2 * cuda_shim::kSchedules;
  CHECK(right_pipelines(PipelineBug::kNone) == all);
  CHECK(right_pipelines(PipelineBug::kNoWait) < all);
  CHECK(right_pipelines(PipelineBug::kWaitForFewer) <= all / 2);
  CHECK(right_pipelines(PipelineBug::kNoBarrierBeforeReuse) <= all / 2);
  CHECK(right_pipelines(PipelineBug::kNoDrain) == 0);
  CHECK(error_has("never waited for"));
}

// --- Blocks -------------------------------------------------------------------------------------

// Each block writes a partial; the last one to finish adds them up in order.
__global__ void last_block_kernel(const int* input, int* partials, unsigned* ticket, int* sum) {
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = 2 * input[blockIdx.x];
  __threadfence();
  if (atomicInc(ticket, gridDim.x - 1) != gridDim.x - 1) return;
  __threadfence();
  int total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partials[b];
  *sum = total;
}
// Wrong: takes the block of the highest number for the last one.
__global__ void highest_block_kernel(const int* input, int* partials, int* sum) {
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = 2 * input[blockIdx.x];
  int total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partials[b];
  if (blockIdx.x == gridDim.x - 1) *sum = total;
}

void test_blocks_in_any_order() {
  constexpr int kBlocks = 9;
  int wrong = 0;
  for_each_schedule([&] {
    Device<int> input("input", kBlocks), partials("partials", kBlocks), sum("sum", 1);
    Device<unsigned> ticket("ticket", 1);
    ticket[0] = 0;
    for (int b = 0; b < kBlocks; ++b) input[b] = b;
    CHECK(FC_LAUNCH(last_block_kernel, kBlocks, 32, 0, nullptr, input.data(), partials.data(),
                    ticket.data(), sum.data()) == cudaSuccess);
    CHECK(sum[0] == kBlocks * (kBlocks - 1));
    CHECK(ticket[0] == 0);
    if (!kRacesAllowed) return;
    for (int b = 0; b < kBlocks; ++b) partials[b] = -1;
    CHECK(FC_LAUNCH(highest_block_kernel, kBlocks, 32, 0, nullptr, input.data(), partials.data(),
                    sum.data()) == cudaSuccess);
    wrong += sum[0] != kBlocks * (kBlocks - 1);
  });
  CHECK(wrong > 0 || !kRacesAllowed);
}

// When each block begins and ends, by a clock that every event advances.
__global__ void events_kernel(unsigned* clock, unsigned* begins, unsigned* ends) {
  if (threadIdx.x == 0) begins[blockIdx.x] = atomicAdd(clock, 1u);
  __syncthreads();
  if (threadIdx.x == 0) ends[blockIdx.x] = atomicAdd(clock, 1u);
}

void test_blocks_run_at_once_or_not() {
  constexpr int kBlocks = 7;
  Device<unsigned> clock("clock", 1), begins("begins", kBlocks), ends("ends", kBlocks);
  for_each_schedule([&] {
    clock[0] = 0;
    CHECK(FC_LAUNCH(events_kernel, kBlocks, 32, 0, nullptr, clock.data(), begins.data(),
                    ends.data()) == cudaSuccess);
    int overlaps = 0;
    for (int a = 0; a < kBlocks; ++a)
      for (int b = 0; b < kBlocks; ++b) overlaps += begins[a] < begins[b] && begins[b] < ends[a];
    const bool several = cuda_shim::options().schedule == Schedule::kBlocksReversed;
    CHECK((overlaps > 0) == several);
    CHECK(several ? begins[0] > begins[kBlocks - 1] : begins[0] == 0);
  });
}

__global__ void index_kernel(int* output) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  output[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(block);
}

void test_launch_limits() {
  Device<int> output("output", 24 * 30);
  CHECK(FC_LAUNCH(index_kernel, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, output.data()) ==
        cudaSuccess);
  bool right = true;
  for (int i = 0; i < 24 * 30; ++i) right &= output[i] == i / 30;
  CHECK(right);
  CHECK(FC_LAUNCH(index_kernel, 0, 32, 0, nullptr, output.data()) == cudaSuccess);
  CHECK(FC_LAUNCH(index_kernel, 1, 1025, 0, nullptr, output.data()) ==
        cudaErrorInvalidConfiguration);
  CHECK(FC_LAUNCH(index_kernel, 1, 0, 0, nullptr, output.data()) == cudaErrorInvalidConfiguration);
  CHECK(FC_LAUNCH(index_kernel, dim3(1, 65536), 1, 0, nullptr, output.data()) ==
        cudaErrorInvalidConfiguration);
  // More than 48 KB: FC_LAUNCH opts in, up to what the device has.
  CHECK(FC_LAUNCH(index_kernel, 1, 32, 160 * 1024, nullptr, output.data()) == cudaSuccess);
  CHECK(FC_LAUNCH(index_kernel, 1, 32, 164 * 1024, nullptr, output.data()) ==
        cudaErrorInvalidValue);
  cuda_shim::reset_counts();
  CHECK(FC_LAUNCH(exchange_kernel, 2, 32, 128, nullptr, output.data(), 3, true, true) ==
        cudaSuccess);
  CHECK(cuda_shim::kernel_trace() == "exchange_kernel");
  CHECK(cuda_shim::counts().barriers == 12);
  CHECK(cuda_shim::counts().blocks == 2);
}

// --- Types --------------------------------------------------------------------------------------

// static_cast rounds as the conversion functions do, and as CUDA's headers: the bits are theirs.
template <typename T>
bool converts(float x, uint16_t bits) {
  const T named = cuda::from_float<T>(x), cast = static_cast<T>(x);
  return __builtin_bit_cast(uint16_t, named) == bits && __builtin_bit_cast(uint16_t, cast) == bits;
}

void test_half_types_convert() {
  static_assert(std::is_trivially_copyable_v<__nv_bfloat16> && sizeof(__nv_bfloat16) == 2);
  static_assert(std::is_trivially_copyable_v<__half> && sizeof(__half) == 2);
  // What would be computed from a double or an integer is not what CUDA computes: no such thing.
  static_assert(!std::is_constructible_v<__nv_bfloat16, double>);
  static_assert(!std::is_constructible_v<__half, int>);
  CHECK(converts<__nv_bfloat16>(1.0f, 0x3f80));
  CHECK(converts<__nv_bfloat16>(-2.5f, 0xc020));
  CHECK(converts<__nv_bfloat16>(1.00390625f, 0x3f80));  // ties go to the even one
  CHECK(converts<__nv_bfloat16>(1.01171875f, 0x3f82));
  CHECK(converts<__nv_bfloat16>(INFINITY, 0x7f80));
  CHECK(converts<__nv_bfloat16>(3.4e38f, 0x7f80));
  CHECK(converts<__nv_bfloat16>(kNan, 0x7fff));
  CHECK(converts<__half>(1.0f, 0x3c00));
  CHECK(converts<__half>(-2.5f, 0xc100));
  CHECK(converts<__half>(1.00048828125f, 0x3c00));
  CHECK(converts<__half>(1.00146484375f, 0x3c02));
  CHECK(converts<__half>(70000.0f, 0x7c00));
  CHECK(converts<__half>(5.9604645e-8f, 0x0001));  // the smallest one
  CHECK(converts<__half>(kNan, 0x7fff));
}

// --- Launches that fail -------------------------------------------------------------------------

// Three kernels one after another; what the wrong one does with an error is forget it.
cudaError_t launch_three(int* output, bool checks) {
  cudaError_t status = cudaSuccess;
  for (int i = 0; i < 3 && status == cudaSuccess; ++i) {
    status = FC_LAUNCH(index_kernel, 1, 32, 0, nullptr, output);
    if (!checks && i == 1) status = cudaSuccess;
  }
  return status;
}

void test_failing_launches() {
  Device<int> output("output", 32);
  CHECK(errors_end_the_call([&] { return launch_three(output.data(), true); }));
  CHECK(!errors_end_the_call([&] { return launch_three(output.data(), false); }));
}

}  // namespace
}  // namespace fastconv::testing

// With the argument "race": runs a kernel whose right results hide a missing barrier. With
// "block_race": one whose blocks do not wait for each other, after a launch without a race.
int main(int count, char** arguments) {
  using namespace fastconv::testing;
  if (count > 1 && std::string(arguments[1]) == "race") {
    fastconv::cuda_shim::set_options({.schedule = fastconv::cuda_shim::Schedule::kDescending});
    exchange_is_right(1, false, true);
    return report();
  }
  if (count > 1 && std::string(arguments[1]) == "block_race") {
    constexpr int kBlocks = 3;
    Device<int> input("input", kBlocks), partials("partials", kBlocks), sum("sum", 1);
    Device<unsigned> ticket("ticket", 1);
    ticket[0] = 0;
    for (int b = 0; b < kBlocks; ++b) input[b] = b;
    CHECK(FC_LAUNCH(last_block_kernel, kBlocks, 32, 0, nullptr, input.data(), partials.data(),
                    ticket.data(), sum.data()) == cudaSuccess);
    std::printf("the first launch has no race\n");
    std::fflush(stdout);
    CHECK(FC_LAUNCH(highest_block_kernel, kBlocks, 32, 0, nullptr, input.data(), partials.data(),
                    sum.data()) == cudaSuccess);
    return report();
  }
  if (kRacesAllowed) {
    test_missing_barriers_show();
    test_copies_run_early_and_late();
  }
  test_divergent_barriers_are_reported();
  test_masks_are_checked();
  test_memory_is_guarded();
  test_writes_into_gaps_show();
  test_alignment_is_checked();
  test_blocks_in_any_order();
  test_blocks_run_at_once_or_not();
  test_launch_limits();
  test_half_types_convert();
  test_failing_launches();
  return report();
}
