// y = relu?(noise(a w^T + bias)) in one kernel: the tensor cores multiply, and the noise is drawn where the sums lie,
// in registers. No torch here.
//
// A block of four warps makes a tile of 128 x 128 sums, 64 bytes of the inner dimension at a time, which asynchronous
// copies bring to shared memory three stages deep. Two blocks share a multiprocessor: while one draws (integer and
// float32 units), the other multiplies.
//
// A lane of a warp holds two neighbouring columns of each product of the tensor cores. The rows of w are dealt out to
// the products such that those of two make four neighbouring columns of y: one Philox block, one access.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "launch.h"
#include "ptx.h"
#include "row.h"

namespace noisykernels::cuda {
namespace {

constexpr int kTile = 128;  // rows and columns of a block's tile
constexpr int kPart = 64;   // of a warp's quarter of it: as much as the registers hold
constexpr int kThreads = 128;
constexpr int kStages = 3;
constexpr int kChunk = 16;        // bytes of one copy
constexpr int kChunks = 4;        // of a row in a stage
constexpr int kRowsTogether = 8;  // tiles of rows that pass the same columns one after another: w stays in the cache
constexpr int kHeights = kPart / 16;  // products of a warp above each other
constexpr int kPairs = kPart / 16;    // pairs of products side by side

struct Chunk {
  alignas(kChunk) unsigned char bytes[kChunk];
};
// Of a and of w. 48 KiB in all: what every block has without asking.
struct Stage {
  Chunk a[kTile][kChunks], w[kTile][kChunks];
};

// Where a chunk lies in its row of a stage, such that the eight rows of a matrix load are in different banks. The rows
// of w that are loaded together are two of every four.
__device__ int place_a(int row, int chunk) { return chunk ^ (row / 2 % kChunks); }
__device__ int place_w(int row, int chunk) { return chunk ^ (row / 4 % kChunks); }

// Everything of a launch.
struct Product {
  Gemm g;
  Work work;
  Divisor inner;  // rows of `a` in one row of the noise
  int64_t tiles_of_rows, tiles_of_columns;
};

// What a thread copies of the 64 bytes from `first` of the inner dimension on: beyond the ends, zeros.
template <class T>
__device__ void copy_stage(const Gemm& g, Stage& stage, int64_t row0, int64_t column0, int64_t first) {
  constexpr int64_t kPerChunk = kChunk / sizeof(T);
#pragma unroll
  for (int part = 0; part < kTile * kChunks / kThreads; ++part) {
    const int number = part * kThreads + static_cast<int>(threadIdx.x), row = number / kChunks,
              chunk = number % kChunks;
    const int64_t k = first + chunk * kPerChunk;
    const T *a = static_cast<const T*>(g.a), *w = static_cast<const T*>(g.w);
    const bool in_a = k < g.K && row0 + row < g.M, in_w = k < g.K && column0 + row < g.N;
    copy_async(&stage.a[row][place_a(row, chunk)], in_a ? a + (row0 + row) * g.K + k : a, in_a);
    copy_async(&stage.w[row][place_w(row, chunk)], in_w ? w + (column0 + row) * g.K + k : w, in_w);
  }
}

// The sums of a lane: [product down][pair][which of the pair][two columns of row lane / 4, two of the row 8 below].
using Sums = float[kHeights][kPairs][2][4];

// The row of w, in a warp's part of the tile, that is column `column` of product `which` of a pair.
__device__ int row_of_w(int pair, int which, int column) { return 16 * pair + column / 2 * 4 + which * 2 + column % 2; }

// Tensor cores: half types, and float32 as tf32.
template <class T>
struct TensorCores {
  using Value = T;
  __device__ static void multiply_stage(const Stage& stage, int row0, int column0, Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; chunk += 2) {
      Fragment a[kHeights];
#pragma unroll
      for (int i = 0; i < kHeights; ++i) {
        const int row = row0 + 16 * i + lane % 16;
        load_matrices(a[i], &stage.a[row][place_a(row, chunk + lane / 16)]);
        if constexpr (std::is_same_v<T, float>) rounded(a[i]);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        Fragment b;
        const int row = column0 + row_of_w(pair, lane / 16, lane % 8);
        load_matrices(b, &stage.w[row][place_w(row, chunk + lane / 8 % 2)]);
        if constexpr (std::is_same_v<T, float>) rounded(b);
#pragma unroll
        for (int i = 0; i < kHeights; ++i) {
          multiply<T>(sums[i][pair][0], a[i], b[0], b[1]);
          multiply<T>(sums[i][pair][1], a[i], b[2], b[3]);
        }
      }
    }
  }
  __device__ static void rounded(Fragment& f) {
#pragma unroll
    for (int k = 0; k < 4; ++k) f[k] = round_to_tf32(f[k]);
  }
};

// The float32 units, one fused multiply-add after the other in the order of the inner dimension.
struct Exact {
  using Value = float;
  __device__ static void multiply_stage(const Stage& stage, int row0, int column0, Sums& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Four<float> a[kHeights][2];
#pragma unroll
      for (int i = 0; i < kHeights; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[i][half] = four(stage.a, row0 + 16 * i + 8 * half + lane / 4, chunk, place_a);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {  // the lane's columns of the pair
          const Four<float> b = four(stage.w, column0 + 16 * pair + lane % 4 * 4 + c, chunk, place_w);
#pragma unroll
          for (int i = 0; i < kHeights; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& sum = sums[i][pair][c / 2][2 * half + c % 2];
#pragma unroll
              for (int k = 0; k < 4; ++k) sum = fma_rn(a[i][half].v[k], b.v[k], sum);
            }
          }
        }
      }
    }
  }
  template <class Place>
  __device__ static Four<float> four(const Chunk (&rows)[kTile][kChunks], int row, int chunk, Place place) {
    return *reinterpret_cast<const Four<float>*>(&rows[row][place(row, chunk)]);
  }
};

// A warp's results before the noise, rounded to the data's type, where the stages were: as many columns at a time as
// fit. Padded, so that lanes which read the same columns of their rows are in different banks.
template <class T>
struct Part {
  static constexpr int kColumns = 128 / sizeof(T);
  alignas(16) T values[kPart][kColumns + 4];
};

template <class T>
__device__ void keep_part(const Product& p, const Sums& sums, int part, int64_t column0, Part<T>& shared) {
  constexpr int kPairsOfPart = Part<T>::kColumns / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int pair = 0; pair < kPairsOfPart; ++pair) {
    const int column = 16 * pair + lane % 4 * 4;
    const bool with_bias = p.g.bias != nullptr && column0 + column < p.g.N;
    const Four<T> bias = with_bias ? load(static_cast<const T*>(p.g.bias), {column0 + column, 1, 0, 4}) : Four<T>{};
#pragma unroll
    for (int k = 0; k < 4 * 2 * kHeights; ++k) {
      const int i = k / 8, below = k / 4 % 2, c = k % 4;
      const auto of = [&](int from) { return sums[i][from + pair][c / 2][2 * below + c % 2]; };
      const float sum = kPairsOfPart == kPairs || part == 0 ? of(0) : of(kPairs - kPairsOfPart);
      shared.values[16 * i + 8 * below + lane / 4][column + c] =
          narrow_value<T>(with_bias ? add_rn(sum, widen_value(bias.v[c])) : sum);
    }
  }
}

// Bias, noise, rectifier and the store of a warp's sums. A lane draws for whole rows, so that what a row fixes of the
// generator is computed once; then the lanes store the rows together.
template <Mode M, class T>
__device__ void finish(const Product& p, int64_t row0, int64_t column0, const Sums& sums, Part<T>& shared) {
  constexpr int kColumns = Part<T>::kColumns;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int part = 0; part < kPart / kColumns; ++part, column0 += kColumns) {
    keep_part(p, sums, part, column0, shared);
    __syncwarp();
    const int columns = static_cast<int>(most(0, least(kColumns, p.g.N - column0)));
#pragma unroll 1
    for (int r = lane; r < kPart && row0 + r < p.g.M; r += 32) {
      const auto [of_noise, of_inner] = p.inner(row0 + r);
      const Row<M, T, float, false> row(p.work, of_noise);
#pragma unroll 1
      for (int c = 0; c < columns; c += 4) {
        Four<T>& here = *reinterpret_cast<Four<T>*>(&shared.values[r][c]);
        const int64_t element = of_inner * p.g.N + column0 + c;
        const Four<float> wide = row.values(element, {element, 1, 0, 4}, here);
#pragma unroll
        for (int k = 0; k < 4; ++k) here.v[k] = narrow_value<T>(wide.v[k]);
      }
    }
    __syncwarp();
    constexpr int kLanes = kColumns / 4;  // of a row
    const int c = lane % kLanes * 4;
#pragma unroll 1
    for (int r = lane / kLanes; r < kPart && row0 + r < p.g.M && c < columns; r += 32 / kLanes) {
      const auto& y = *reinterpret_cast<const Four<T>*>(&shared.values[r][c]);
      store(static_cast<T*>(p.work.e.y) + (row0 + r) * p.g.N, {column0 + c, 1, 0, 4}, y);
    }
    __syncwarp();
  }
}

template <class Multiply, Mode M>
__global__ void __launch_bounds__(kThreads, 2) gemm_kernel(const __grid_constant__ Product p) {
  using T = typename Multiply::Value;
  __shared__ Stage stages[kStages];
  constexpr int64_t kDepth = kChunks * kChunk / sizeof(T);
  const int64_t per_group = kRowsTogether * p.tiles_of_columns, group = blockIdx.x / per_group;
  const int64_t rows_here = least(kRowsTogether, p.tiles_of_rows - group * kRowsTogether), at = blockIdx.x % per_group;
  const int64_t row0 = (group * kRowsTogether + at % rows_here) * kTile, column0 = at / rows_here * kTile;
  const int warp = static_cast<int>(threadIdx.x) / 32, warp_row = warp % 2 * kPart, warp_column = warp / 2 * kPart;

  Sums sums = {};
  for (int stage = 0; stage < kStages - 1; ++stage) {
    copy_stage<T>(p.g, stages[stage], row0, column0, stage * kDepth);
    commit_copies();
  }
  const int steps = static_cast<int>((p.g.K + kDepth - 1) / kDepth);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // all copies of this stage are there, and the stage before it has been read
    copy_stage<T>(p.g, stages[(step + kStages - 1) % kStages], row0, column0, (step + kStages - 1) * kDepth);
    commit_copies();
    Multiply::multiply_stage(stages[step % kStages], warp_row, warp_column, sums);
  }
  wait_for_copies<0>();  // also of those that bring nothing but zeros
  __syncthreads();
  static_assert(sizeof(Part<T>) * kThreads / 32 <= sizeof stages);
  finish<M, T>(p, row0 + warp_row, column0 + warp_column, sums, reinterpret_cast<Part<T>*>(stages)[warp]);
}

template <class Multiply, Mode M>
void launch(const Gemm& g, cudaStream_t stream) {
  const Product p = {g, Work(g.epilogue), Divisor(g.epilogue.n / g.N), divide_up(g.M, kTile), divide_up(g.N, kTile)};
  const auto grid = static_cast<unsigned>(p.tiles_of_rows * p.tiles_of_columns);
  gemm_kernel<Multiply, M><<<grid, kThreads, 0, stream>>>(p);
}

}  // namespace

const char* run(const Gemm& g, cudaStream_t stream) {
  if (g.M == 0 || g.N == 0) return nullptr;
  visit(g.epilogue, [&]<Mode M, class T, class C>() {
    if constexpr (M == Mode::kEps || std::is_same_v<T, double>) {
      return;  // not asked for: see `fits`
    } else if constexpr (std::is_same_v<T, float>) {
      g.tf32 ? launch<TensorCores<float>, M>(g, stream) : launch<Exact, M>(g, stream);
    } else {
      launch<TensorCores<T>, M>(g, stream);
    }
  });
  return outcome();
}

bool fits(const Gemm& g) {
  const Epilogue& e = g.epilogue;
  const int64_t bytes = e.dtype == DType::kFloat32 ? 4 : 2;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kChunk == 0; };
  const int64_t tiles = divide_up(g.M, kTile) * divide_up(g.N, kTile);
  return e.dtype != DType::kFloat64 && e.noise.mode != Mode::kEps && e.noise.given == nullptr && !e.shared &&
         e.channels == 1 && g.K * bytes % kChunk == 0 && g.N % 4 == 0 && aligned(g.a) && aligned(g.w) &&
         tiles <= INT32_MAX;
}

bool is_built_for_device() {
  cudaFuncAttributes of_kernel;
  return cudaFuncGetAttributes(&of_kernel, gemm_kernel<Exact, Mode::kAdd>) == cudaSuccess && of_kernel.ptxVersion >= 80;
}

}  // namespace noisykernels::cuda
