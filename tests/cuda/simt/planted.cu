// Kernels to try the emulated device with: right ones, and the same with one bug each, which it must notice.
#include "../../../csrc/cuda/ptx.h"
#include "planted.h"

namespace noisykernels::test {
namespace {

constexpr int kSize = 64;

// y = every 64 values of x in reverse, beyond n as if x were zero: through shared memory, a tile at a time.
template <Bug B>
__global__ void mirror(const float* x, float* y, int n) {
  __shared__ float tile[kSize];
  const int t = static_cast<int>(threadIdx.x);
  for (int first = 0; first < n; first += kSize) {
    const int at = first + t;
    if (B == Bug::kEarlyReturn && at >= n) return;
    if (at < n || B == Bug::kTailRead) {
      tile[t] = x[at];
    } else if (B != Bug::kUninitialised) {
      tile[t] = 0;
    }
    if (B == Bug::kBesideShared && t == 0) tile[kSize] = 0;
    if (B == Bug::kDivergentBarrier && t < 32) {
      __syncthreads();
    } else if (B != Bug::kNoFirstBarrier) {
      __syncthreads();
    }
    if (at < n || B == Bug::kTailWritten) y[at] = tile[kSize - 1 - t];
    if (B != Bug::kNoSecondBarrier) __syncthreads();
  }
}

// y[warp] = sum over the warp's values, y[2 + warp] = how many are positive, y[4 + thread] = the next lane's value,
// y[68 + thread] = twice that.
template <Bug B>
__global__ void warps(const float* x, float* y) {
  extern __shared__ float tile[];
  const int t = static_cast<int>(threadIdx.x), lane = t % 32;
  if (B == Bug::kLaneEnded && lane == 31) return;
  float sum = x[t];
  if (B == Bug::kLinesOfWarp && lane < 16) {
    sum += __shfl_xor_sync(~0u, sum, 16);
  } else {
    sum += __shfl_xor_sync(B == Bug::kNotInMask ? 0xffffu : ~0u, sum, 16);
  }
  for (int by = 8; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  const unsigned positive = __ballot_sync(~0u, x[t] > 0);
  tile[t] = x[t];
  if (B != Bug::kNoWarpBarrier) __syncwarp();
  const int next = t / 32 * 32 + (lane + 1) % 32;
  y[4 + t] = tile[next];
  if (B != Bug::kRefill) __syncwarp();
  tile[t] = 2 * x[t];
  __syncwarp();
  y[68 + t] = tile[next];
  if (lane != 0) return;
  y[t / 32] = sum;
  int count = 0;
  for (unsigned bits = positive; bits != 0; bits &= bits - 1) ++count;
  y[2 + t / 32] = static_cast<float>(count);
}

struct alignas(16) Four {
  float v[4];
};

// y = x, 16 bytes at a time, and the rest one by one.
template <Bug B>
__global__ void copy(const float* x, float* y, int n) {
  const int at = 4 * static_cast<int>(threadIdx.x) + (B == Bug::kMisaligned ? 1 : 0);
  if (at + 4 <= n) {
    *reinterpret_cast<Four*>(y + at) = *reinterpret_cast<const Four*>(x + at);
  } else {
    for (int k = at; k < n; ++k) y[k] = x[k];
  }
}

// y[block] = x[block], y[2] = the sum of both.
template <Bug B>
__global__ void blocks(const float* x, float* y) {
  y[blockIdx.x] = x[blockIdx.x];
  if (B == Bug::kSumOfBlocks) {
    y[2] += x[blockIdx.x];
  } else if (blockIdx.x == 0) {
    y[2] = x[0] + x[1];
  }
}

// y = every 32 of 128 values of x in reverse: copied asynchronously, the next ones while these are read.
template <Bug B>
__global__ void stages(const float* x, float* y) {
  __shared__ Four tile[16];
  const int t = static_cast<int>(threadIdx.x);
  const auto fetch = [&](int stage) {
    if (stage < 4) cuda::copy_async(tile + stage % 2 * 8 + t, x + 32 * stage + 4 * t, true);
    cuda::commit_copies();
  };
  fetch(0);
  for (int stage = 0; stage < 4; ++stage) {
    fetch(stage + 1);
    cuda::wait_for_copies<B == Bug::kWeakWait ? 2 : 1>();
    __syncthreads();
    for (int k = t; k < 32; k += 8) {
      const int from = 31 - k;
      y[32 * stage + k] = tile[stage % 2 * 8 + from / 4].v[from % 4];
    }
    if (B != Bug::kRefillByCopy) __syncthreads();
  }
  cuda::wait_for_copies<0>();
}

template <Bug B>
void start(const float* x, int n, float* mirrored, float* of_warps, float* copied, float* of_blocks, float* staged) {
  mirror<B><<<1, kSize, 0, nullptr>>>(x, mirrored, n);
  warps<B><<<1, kSize, kSize * sizeof(float), nullptr>>>(x, of_warps);
  copy<B><<<1, kSize, 0, nullptr>>>(x, copied, n);
  blocks<B><<<2, 1, 0, nullptr>>>(x, of_blocks);
  stages<B><<<1, 8, 0, nullptr>>>(x, staged);
}

}  // namespace

void run_planted(Bug bug, const float* x, int n, float* mirrored, float* of_warps, float* copied, float* of_blocks,
                 float* staged) {
  const auto one_of = [&]<int... I>(std::integer_sequence<int, I...>) {
    ((static_cast<int>(bug) == I ? start<static_cast<Bug>(I)>(x, n, mirrored, of_warps, copied, of_blocks, staged)
                                 : void()),
     ...);
  };
  one_of(std::make_integer_sequence<int, static_cast<int>(Bug::kCount)>{});
}

}  // namespace noisykernels::test
