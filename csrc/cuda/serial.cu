// Sums with a defined arithmetic on the device, their gradients, and rounding to a number format: the bits of csrc/cpu,
// from the same serial.h. No torch here.
#include <algorithm>
#include <cstdint>

#include "launch.h"
#include "row.h"

namespace noisykernels::cuda {
namespace {

constexpr int kSide = 16, kThreads = kSide * kSide;  // of a block of threads
constexpr int kEach = 4;                             // outputs of a thread, down and across
constexpr int kTile = kSide * kEach, kDepth = 16;    // outputs of a block; steps in shared memory at once

__device__ int64_t natural(const Serial& s, int64_t position) {
  return s.order == nullptr ? position : s.order[position];
}

// --------------------------------------------------------------------------------------------------- tiles of outputs

// to[step][line] = the operands of kDepth steps and kTile rows or columns of outputs, in the order of the steps.
// Threads side by side read neighbours in memory.
template <class C>
__device__ void copy_part(const Serial& s, const C* from, int64_t stride, int64_t k_stride, int64_t first,
                          int64_t lines, int64_t step, C* to) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kTile * kDepth; i += kThreads) {
    const int line = k_stride == 1 ? i / kDepth : i % kTile, p = k_stride == 1 ? i % kDepth : i / kTile;
    const bool inside = first + line < lines && step + p < s.K;
    to[p * kTile + line] = inside ? from[(first + line) * stride + natural(s, step + p) * k_stride] : C(0);
  }
}

// Sums whose steps draw nothing: each thread has kEach x kEach of them.
template <Rule R, unsigned Has, class C>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const __grid_constant__ Serial s, int64_t across, int64_t down) {
  __shared__ C a_part[kDepth * kTile];
  __shared__ C b_part[kDepth * kTile];
  const Steps<C> steps(s);
  const int x = static_cast<int>(threadIdx.x) % kSide, y = static_cast<int>(threadIdx.x) / kSide;
  const int64_t tile = blockIdx.x, t = tile / (across * down);
  const int64_t i0 = tile / across % down * kTile, j0 = tile % across * kTile;
  const C *a = static_cast<const C*>(s.a) + t % s.Ta * s.a_t, *b = static_cast<const C*>(s.b) + t % s.Tb * s.b_t;
  State<C> state[kEach][kEach] = {};
  for (int64_t step0 = 0; step0 < s.K; step0 += kDepth) {
    copy_part(s, a, s.a_i, s.a_k, i0, s.I, step0, a_part);
    copy_part(s, b, s.b_j, s.b_k, j0, s.J, step0, b_part);
    __syncthreads();
    const int count = static_cast<int>(least(kDepth, s.K - step0));
    for (int p = 0; p < count; ++p) {
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
          const C v = a_part[p * kTile + y * kEach + r], w = b_part[p * kTile + c * kSide + x];
          step<R, Has>(steps, state[r][c], v, w, C(0), C(0), C(0), C(0));
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      const int64_t i = i0 + y * kEach + r, j = j0 + c * kSide + x;
      if (i < s.I && j < s.J) static_cast<C*>(s.y)[(t * s.I + i) * s.J + j] = state[r][c].v;
    }
  }
}

// ------------------------------------------------------------------------------------------------------- single sums

// One stream of a row, read in any order; a block of it is kept.
template <class Sampler>
class Stream {
 public:
  __device__ Stream(const NoiseParams& p, const Ids& id, Operand operand)
      : keys_(seed_of(p)), row_(id.row), draw_(id.draw), word3_(counter_word3(p.site, operand)) {}

  __device__ float operator()(int64_t element) {
    const int64_t block = element / 4;
    if (block != block_) {
      uint32_t w[4] = {static_cast<uint32_t>(block), row_, draw_, word3_};
      philox(keys_, w);
      Sampler::sample(w[0], w[1], z_[0], z_[1]);
      Sampler::sample(w[2], w[3], z_[2], z_[3]);
      block_ = block;
    }
    const int i = static_cast<int>(element % 4);
    return i < 2 ? (i == 0 ? z_[0] : z_[1]) : (i == 2 ? z_[2] : z_[3]);
  }

 private:
  RoundKeys<uint32_t> keys_;
  uint32_t row_, draw_, word3_;
  int64_t block_ = -1;
  float z_[4];
};

// Sums with steps of any kind: one for each thread.
template <class C>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ Serial s) {
  const Steps<C> steps(s);
  const int64_t total = s.T * s.I * s.J, threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t output = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; output < total; output += threads) {
    const int64_t j = output % s.J, i = output / s.J % s.I, t = output / s.J / s.I;
    const C* a = static_cast<const C*>(s.a) + t % s.Ta * s.a_t + i * s.a_i;
    const C* b = static_cast<const C*>(s.b) + t % s.Tb * s.b_t + j * s.b_j;
    const int32_t* order = s.order_of_each ? s.order + output * s.K : s.order;
    const OutputPlace place(s, t, i, j);
    const Ids id = ids_of(s.noise, 0, place.row);
    Stream<Fraction> of_product(s.noise, id, Operand::kRoundingOfProduct), of_sum(s.noise, id, Operand::kRoundingOfSum);
    Stream<Gaussian> of_step(s.noise, id, Operand::kPerStep);
    State<C> state = {C(0), C(0), C(0), C(-1)};
    for (int64_t p = 0; p < s.K; ++p) {
      const int64_t k = order == nullptr ? p : order[p], element = place.element + k;
      const C product = steps.random_product ? static_cast<C>(of_product(element)) : C(0);
      const C sum = steps.random_sum ? static_cast<C>(of_sum(element)) : C(0);
      const C eps = steps.noisy ? static_cast<C>(of_step(element)) : C(0);
      step<Rule::kAny, kEverything>(steps, state, a[k * s.a_k], b[k * s.b_k], static_cast<C>(p), product, sum, eps);
    }
    const bool valid = id.valid || !(steps.random_product || steps.random_sum || steps.noisy);
    static_cast<C*>(s.y)[output] = !valid ? kNaN<C> : (s.track ? state.last : state.v);
  }
}

// --------------------------------------------------------------------------------------------------------- gradients

// a_grad: a thread for each (t, i, k); b_grad: one for each (t, k, j).
template <class C>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const __grid_constant__ SerialGradient g) {
  const int64_t of_a = g.T * g.I * g.K, total = of_a + g.T * g.K * g.J;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const C *grad = static_cast<const C*>(g.grad), *last = static_cast<const C*>(g.last);
  const C *a = static_cast<const C*>(g.a), *b = static_cast<const C*>(g.b);
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < total; n += threads) {
    C sum = 0;
    if (n < of_a) {
      const int64_t k = n % g.K, row = n / g.K, t = row / g.I;
      const C position = static_cast<C>(g.position[k]);
      for (int64_t j = 0; j < g.J; ++j) {
        const C pull = where_less(last[row * g.J + j], position, grad[row * g.J + j], C(0));
        sum = fma_rn(pull, b[(t * g.K + k) * g.J + j], sum);
      }
      static_cast<C*>(g.a_grad)[n] = sum;
    } else {
      const int64_t at = n - of_a, j = at % g.J, k = at / g.J % g.K, t = at / g.J / g.K;
      const C position = static_cast<C>(g.position[k]);
      for (int64_t i = 0; i < g.I; ++i) {
        const int64_t output = (t * g.I + i) * g.J + j;
        sum = fma_rn(where_less(last[output], position, grad[output], C(0)), a[(t * g.I + i) * g.K + k], sum);
      }
      static_cast<C*>(g.b_grad)[at] = sum;
    }
  }
}

// ----------------------------------------------------------------------------------------------------- single values

// A thread takes the four values of a block of the generator.
template <class T, class C>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const __grid_constant__ Quantize q) {
  const Rounder<C> c(q.format);
  const bool random = q.format.rounding == Format::kStochastic;
  const int64_t blocks = (q.n + 3) / 4, total = q.noise.D * q.noise.B * blocks;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; n < total; n += threads) {
    const int64_t row = n / blocks, first = n % blocks * 4;
    const Ids id = ids_of(q.noise, row / q.noise.B, row % q.noise.B);
    Stream<Fraction> fractions(q.noise, id, q.noise.operand);
    for (int64_t element = first; element < least(first + 4, q.n); ++element) {
      const int64_t at = row * q.n + element;
      const C u = random ? static_cast<C>(fractions(element)) : C(0);
      const C v = static_cast<C>(widen_value(static_cast<const T*>(q.x)[at]));
      // Of a signalling NaN truncation can leave the bits of infinity.
      const C rounded = where_less(C(-1), abs_of(v), round_by<Rule::kAny>(c, v, u), kNaN<C>);
      static_cast<T*>(q.y)[at] = narrow_value<T>(random && !id.valid ? kNaN<C> : rounded);
    }
  }
}

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::clamp<int64_t>(divide_up(threads, kThreads), 1, 1 << 16));
}

template <class C>
void launch(const Serial& s, cudaStream_t stream) {
  Serial host = s;  // without what only the device can read: the level decides nothing here
  host.noisy = false;
  const Steps<C> steps(host);
  const int64_t across = divide_up(s.J, kTile), down = divide_up(s.I, kTile);
  if (s.noisy || s.order_of_each || s.T * across * down > INT32_MAX) {
    sum_kernel<C><<<blocks_for(s.T * s.I * s.J), kThreads, 0, stream>>>(s);
    return;
  }
  visit_steps(s, steps, [&]<Rule R, unsigned Has>() {
    if constexpr (Has == kEverything) {
      sum_kernel<C><<<blocks_for(s.T * s.I * s.J), kThreads, 0, stream>>>(s);
    } else {
      const auto grid = static_cast<unsigned>(s.T * across * down);
      tile_kernel<R, Has, C><<<grid, kThreads, 0, stream>>>(s, across, down);
    }
  });
}

template <class T, class C>
void launch(const Quantize& q, cudaStream_t stream) {
  quantize_kernel<T, C><<<blocks_for(q.noise.D * q.noise.B * divide_up(q.n, 4)), kThreads, 0, stream>>>(q);
}

}  // namespace

const char* run(const Serial& s, cudaStream_t stream) {
  if (s.T * s.I * s.J == 0) return nullptr;
  s.dtype == DType::kFloat64 ? launch<double>(s, stream) : launch<float>(s, stream);
  return outcome();
}

const char* run(const SerialGradient& g, cudaStream_t stream) {
  const unsigned blocks = blocks_for(g.T * g.K * (g.I + g.J));
  if (g.dtype == DType::kFloat64) {
    gradient_kernel<double><<<blocks, kThreads, 0, stream>>>(g);
  } else {
    gradient_kernel<float><<<blocks, kThreads, 0, stream>>>(g);
  }
  return outcome();
}

const char* run(const Quantize& q, cudaStream_t stream) {
  switch (q.dtype) {
    case DType::kFloat32:
      launch<float, float>(q, stream);
      break;
    case DType::kFloat64:
      launch<double, double>(q, stream);
      break;
    case DType::kBFloat16:
      launch<BFloat16, float>(q, stream);
      break;
    case DType::kFloat16:
      launch<Float16, float>(q, stream);
      break;
  }
  return outcome();
}

}  // namespace noisykernels::cuda
