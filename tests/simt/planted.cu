// Kernels to try the emulated device with: right ones, and the same with one bug each, which it must notice.
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

// y[warp] = sum over the warp's values, y[2 + warp] = how many are positive, y[4 + thread] = the next lane's value.
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
  y[4 + t] = tile[t / 32 * 32 + (lane + 1) % 32];
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

template <Bug B>
void start(const float* x, int n, float* mirrored, float* of_warps, float* copied) {
  mirror<B><<<1, kSize, 0, nullptr>>>(x, mirrored, n);
  warps<B><<<1, kSize, kSize * sizeof(float), nullptr>>>(x, of_warps);
  copy<B><<<1, kSize, 0, nullptr>>>(x, copied, n);
}

}  // namespace

void run_planted(Bug bug, const float* x, int n, float* mirrored, float* of_warps, float* copied) {
  const auto one_of = [&]<int... I>(std::integer_sequence<int, I...>) {
    ((static_cast<int>(bug) == I ? start<static_cast<Bug>(I)>(x, n, mirrored, of_warps, copied) : void()), ...);
  };
  one_of(std::make_integer_sequence<int, static_cast<int>(Bug::kCount)>{});
}

}  // namespace noisykernels::test
