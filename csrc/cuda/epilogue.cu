// The CUDA kernels: noise as an epilogue, and noise, ReLU and max-pooling in one pass. They give the bits of csrc/cpu,
// from the same noise.h. No torch here.
//
// In one step a thread makes the four values of one Philox block; it makes several steps in one row, so that what the
// row fixes of the generator is computed once.
#include <algorithm>
#include <cstdint>

#include "launch.h"
#include "row.h"

namespace noisykernels::cuda {
namespace {

constexpr int kThreads = 256;           // of a block, at most
constexpr int kBlocksPerProcessor = 8;  // as many threads as a multiprocessor holds
constexpr int64_t kMostSteps = 8;       // of one thread in one row; what the row fixes is then a small part of the work

// ------------------------------------------------------------------------------------------------------- epilogue

// What becomes of the four values of a block. kPooled: two blocks, one below the other, are pooled two by two.
enum class Layout { kInOrder, kChannelsLast, kPooled };

// How the rows are cut. A row is `steps` steps, in segments of `segment` of them; `lanes` threads, a power of two,
// share a segment, and the others of their block take the next rows.
struct Cut {
  int64_t rows, steps, segment, tiles;
  int lanes;
  Divisor segments;
  Divisor across{1};                // channels; kPooled: blocks side by side in a line
  Divisor lines{1};                 // kPooled: of the output's planes
  int64_t height = 0, outputs = 0;  // kPooled: of an input plane; in a row

  Cut(const Epilogue& e, int64_t steps_of_row, int64_t blocks)
      : rows(e.noise.D * e.noise.B), steps(steps_of_row), lanes(1), segments(1) {
    while (lanes < kThreads && lanes < steps) lanes *= 2;
    const int64_t in_all = rows * divide_up(steps, lanes) * lanes;
    segment = lanes * std::clamp<int64_t>(in_all / (kThreads * blocks), 1, kMostSteps);
    segments = Divisor(divide_up(steps, segment));
    tiles = divide_up(rows, kThreads / lanes) * segments.d;
  }
};

// Which block a step draws. For channels_last it is one of one channel: neighbouring threads then take neighbouring
// channels, which are neighbours in memory; a block that reaches into the next channel is drawn for both.
template <Layout L>
__device__ int64_t block_of(const Epilogue& e, const Cut& cut, int64_t step, Place& place) {
  int64_t element = 4 * step, end = e.n;
  place = {element, 1, 0, 4};
  if constexpr (L == Layout::kChannelsLast) {
    const auto [block, channel] = cut.across(step);
    const int64_t positions = cut.across(e.n).quotient, begin = channel * positions;
    element = (begin / 4 + block) * 4, end = begin + positions;
    place.item = (element - begin) * e.channels + channel, place.stride = e.channels;
    place.first = static_cast<int>(most(0, begin - element));
  }
  place.last = static_cast<int>(least(4, end - element));
  return element;
}

// One step: a block drawn and stored.
template <Layout L, class T, class AnyRow>
__device__ void store_step(const Epilogue& e, const Cut& cut, const AnyRow& row, int64_t step, T* y) {
  Place place;
  const int64_t element = block_of<L>(e, cut, step, place);
  const auto wide = row.values(element, place);
  Four<T> out;
#pragma unroll
  for (int k = 0; k < 4; ++k) out.v[k] = narrow_value<T>(wide.v[k]);
  store(y, place, out);
}

// One step of kPooled: two outputs, each the maximum of two values and the two below.
template <class C, class T, class AnyRow>
__device__ void pool_step(const Cut& cut, const AnyRow& row, int64_t step, T* y) {
  const auto [line, block] = cut.across(step);
  const auto [plane, of_plane] = cut.lines(line);
  const int64_t width = 4 * cut.across.d, top = (plane * cut.height + 2 * of_plane) * width + 4 * block;
  const Four<C> upper = row.values(top, {top, 1, 0, 4}), lower = row.values(top + width, {top + width, 1, 0, 4});
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    C best = max_or_nan(-kInfinity<C>, upper.v[2 * k]);
    best = max_or_nan(best, upper.v[2 * k + 1]);
    best = max_or_nan(max_or_nan(best, lower.v[2 * k]), lower.v[2 * k + 1]);
    y[line * (width / 2) + 2 * block + k] = narrow_value<T>(best);
  }
}

// Two blocks at a time are asked of a processor: left alone, ptxas keeps to 64 registers and spills.
template <Mode M, class T, class C, Layout L, bool kGiven>
__global__ void __launch_bounds__(kThreads, 2)
    epilogue_kernel(const __grid_constant__ Work work, const __grid_constant__ Cut cut) {
  const int lane = static_cast<int>(threadIdx.x) & (cut.lanes - 1), slot = static_cast<int>(threadIdx.x) / cut.lanes;
  for (int64_t tile = blockIdx.x; tile < cut.tiles; tile += gridDim.x) {
    const auto [group, segment] = cut.segments(tile);
    const int64_t i = group * (kThreads / cut.lanes) + slot;
    if (i >= cut.rows) continue;
    const Row<M, T, C, kGiven> row(work, i);
    T* const y = static_cast<T*>(work.e.y) + i * (L == Layout::kPooled ? cut.outputs : work.e.n);
    const int64_t end = least((segment + 1) * cut.segment, cut.steps);
    for (int64_t step = segment * cut.segment + lane; step < end; step += cut.lanes) {
      if constexpr (L == Layout::kPooled) {
        pool_step<C>(cut, row, step, y);
      } else {
        store_step<L>(work.e, cut, row, step, y);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------- max-pooling

// The planes of a row are one line of elements, and so are the outputs. A tile is `part` outputs, at most one for each
// thread, out of a span of them: one line of a wide plane, else the whole row.
struct PoolCut {
  int64_t tiles, part;
  Divisor tiles_of_span, spans, out_plane, out_width;
};

// The elements under one output.
struct Window {
  int64_t x0, x1, y0, y1, plane, width;
  __device__ Window(const PoolEpilogue& p, const PoolCut& cut, int64_t output) : width(p.width) {
    const auto [k, at] = cut.out_plane(output);
    const auto [oy, ox] = cut.out_width(at);
    const int64_t top = oy * p.stride_h - p.pad_h, left = ox * p.stride_w - p.pad_w;
    plane = k * p.height * p.width;
    y0 = most(0, top), y1 = least(p.height, top + p.kernel_h);
    x0 = most(0, left), x1 = least(p.width, left + p.kernel_w);
  }
  __device__ int64_t element(int64_t y, int64_t x) const { return plane + y * width + x; }
};

// Draws the elements under a tile into shared memory, a chunk at a time, and each thread keeps the maximum of its
// window: any geometry in little memory.
template <Mode M, class T, class C, bool kGiven>
__global__ void __launch_bounds__(kThreads, sizeof(C) == 8 ? 1 : 2)
    pool_kernel(const __grid_constant__ Work work, const __grid_constant__ PoolEpilogue p,
                const __grid_constant__ PoolCut cut) {
  __shared__ C chunk[4 * kThreads];
  const int size = 4 * static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const int64_t span_size = p.planes * p.out_height * p.out_width / cut.spans.d;
  const bool one_line = span_size == p.out_width;
  for (int64_t tile = blockIdx.x; tile < cut.tiles; tile += gridDim.x) {
    const auto [span, part] = cut.tiles_of_span(tile);
    const auto [i, span_of_row] = cut.spans(span);
    const int64_t begin = span_of_row * span_size + part * cut.part;
    const int64_t end = least(begin + cut.part, (span_of_row + 1) * span_size);
    const Window first(p, cut, begin), last(p, cut, end - 1), mine(p, cut, least(begin + thread, end - 1));
    const Row<M, T, C, kGiven> row(work, i);
    C best = -kInfinity<C>;
    for (int64_t line = 0; line < (one_line ? first.y1 - first.y0 : 1); ++line) {
      const int64_t from = one_line ? first.element(first.y0 + line, first.x0) : first.element(first.y0, 0);
      const int64_t to = one_line ? last.element(last.y0 + line, last.x1) : last.element(last.y1, 0);
      for (int64_t origin = from - from % 4; origin < to; origin += size) {
        const int64_t element = origin + 4 * thread;
        if (element < to) {
          const Four<C> v = row.values(element, {element, 1, 0, static_cast<int>(least(4, p.noise.n - element))});
#pragma unroll
          for (int k = 0; k < 4; ++k) chunk[4 * thread + k] = v.v[k];
        }
        __syncthreads();
        const int64_t drawn = least(to - origin, size);
        for (int64_t y = mine.y0; y < mine.y1; ++y) {
          const auto in_chunk = [&](int64_t x) {
            return static_cast<int>(least(most(mine.element(y, x) - origin, 0), drawn));
          };
          const int stop = in_chunk(mine.x1);
#pragma unroll 1
          for (int x = in_chunk(mine.x0); x < stop; ++x) best = max_or_nan(best, chunk[x]);
        }
        __syncthreads();
      }
    }
    if (begin + thread < end) {
      static_cast<T*>(p.noise.y)[i * cut.spans.d * span_size + begin + thread] = narrow_value<T>(best);
    }
  }
}

// -------------------------------------------------------------------------------------------------------- launching

// Blocks for so many tiles: what fills the device once; each takes further tiles when it is done.
int64_t most_blocks() {
  int device = 0, processors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  return static_cast<int64_t>(processors) * kBlocksPerProcessor;
}

template <Mode M, class T, class C, Layout L, bool kGiven>
void launch(const Epilogue& e, const Cut& cut, int64_t blocks, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(std::min(cut.tiles, blocks));
  epilogue_kernel<M, T, C, L, kGiven><<<grid, kThreads, 0, stream>>>(Work(e), cut);
}

template <Mode M, class T, class C, Layout L, bool kGiven>
void launch(const Epilogue& e, cudaStream_t stream) {
  const int64_t positions = e.n / e.channels, blocks = most_blocks();
  const bool by_channel = L == Layout::kChannelsLast;
  const int64_t steps = by_channel ? e.channels * (divide_up(positions, 4) + (positions % 4 != 0)) : divide_up(e.n, 4);
  Cut cut(e, steps, blocks);
  cut.across = Divisor(e.channels);
  launch<M, T, C, L, kGiven>(e, cut, blocks, stream);
}

// Two by two, whole blocks: what most networks have.
bool is_by_twos(const PoolEpilogue& p) {
  return p.kernel_h == 2 && p.kernel_w == 2 && p.stride_h == 2 && p.stride_w == 2 && p.pad_h == 0 && p.pad_w == 0 &&
         p.width % 4 == 0;
}

template <Mode M, class T, class C, bool kGiven>
void launch(const PoolEpilogue& p, cudaStream_t stream) {
  if (is_by_twos(p)) {
    const int64_t across = p.width / 4, blocks = most_blocks();
    Cut cut(p.noise, p.planes * p.out_height * across, blocks);
    cut.across = Divisor(across), cut.lines = Divisor(p.out_height);
    cut.height = p.height, cut.outputs = p.planes * p.out_height * p.out_width;
    return launch<M, T, C, Layout::kPooled, kGiven>(p.noise, cut, blocks, stream);
  }
  const int64_t out_plane = p.out_height * p.out_width, outputs = p.planes * out_plane;
  // Small rows need no more threads than they have outputs or steps of the generator.
  const int64_t useful = divide_up(std::max(outputs, divide_up(p.noise.n, 4)), 32) * 32;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(kThreads, useful));
  const int64_t span = p.out_width >= threads ? p.out_width : outputs;
  // Of several lines: as many whole ones as what is under them is drawn at once.
  const int64_t lines = (4 * threads / p.width - std::max<int64_t>(0, p.kernel_h - p.stride_h)) / p.stride_h;
  const int64_t whole = std::clamp<int64_t>(lines, 1, std::max<int64_t>(1, threads / p.out_width)) * p.out_width;
  const int64_t part = p.out_width < threads ? whole : threads;
  const int64_t spans = outputs / span, tiles_of_span = divide_up(span, part);
  const PoolCut cut = {p.noise.noise.D * p.noise.noise.B * spans * tiles_of_span,
                       part,
                       Divisor(tiles_of_span),
                       Divisor(spans),
                       Divisor(out_plane),
                       Divisor(p.out_width)};
  const auto grid = static_cast<unsigned>(std::min(cut.tiles, most_blocks()));
  pool_kernel<M, T, C, kGiven><<<grid, threads, 0, stream>>>(Work(p.noise), p, cut);
}

}  // namespace

const char* run(const Epilogue& e, cudaStream_t stream) {
  if (e.noise.D * e.noise.B * e.n == 0) return nullptr;
  if (e.noise.given != nullptr) {
    launch<Mode::kAdd, float, float, Layout::kInOrder, true>(e, stream);
  } else {
    visit(e, [&]<Mode M, class T, class C>() {
      if (e.channels > 1) {
        launch<M, T, C, Layout::kChannelsLast, false>(e, stream);
      } else {
        launch<M, T, C, Layout::kInOrder, false>(e, stream);
      }
    });
  }
  return outcome();
}

const char* run(const PoolEpilogue& p, cudaStream_t stream) {
  const Epilogue& e = p.noise;
  if (e.noise.D * e.noise.B * p.planes * p.out_height * p.out_width == 0) return nullptr;
  if (e.noise.given != nullptr) {
    launch<Mode::kAdd, float, float, true>(p, stream);
  } else {
    visit(e, [&]<Mode M, class T, class C>() { launch<M, T, C, false>(p, stream); });
  }
  return outcome();
}

}  // namespace noisykernels::cuda
