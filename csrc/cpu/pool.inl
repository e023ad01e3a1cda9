// Noise, ReLU and max-pooling in one pass, over the lanes of an instruction-set level A.
#pragma once

#include "epilogue.inl"

namespace noisykernels::cpu {
namespace {

// Planes drawn or computed at a time: small ones together, to amortise what a step costs beside its values.
inline int64_t planes_together(const PoolEpilogue& e) { return std::max<int64_t>(1, 2048 / (e.height * e.width)); }

// Room for the lines of `count` planes, in values.
inline int64_t line_size(const PoolEpilogue& e, int64_t count) {
  return std::max(e.width, count * e.height * e.width / 2) + kPad;
}

// Windows of 2 x 2 side by side in planes of even width: pairs of neighbours never cross the end of a row, so the first
// half runs over all rows at once, however narrow they are.
template <class A, class T, class C>
void pool_squares(int64_t out_rows, int64_t out_width, const C* plane, C* line, T* out) {
  using L = typename A::template Lanes<C>;
  for (int64_t i = 0; i < 4 * out_rows * out_width; i += 2 * L::kWidth) {  // may overrun: both are padded
    L::store(line + i / 2, L::pair_max(L::load(plane + i), L::load(plane + i + L::kWidth)));
  }
  const T* const end = out + out_rows * out_width;
  for (int64_t y = 0; y < out_rows; ++y) {
    const C* const p = line + 2 * y * out_width;
    T* const o = out + y * out_width;
    for (int64_t x = 0; x < out_width; x += L::kWidth) {
      const typename L::V v = max_or_nan(L::load(p + x), L::load(p + out_width + x));
      if (o + x + L::kWidth <= end) {  // may overrun into the rows that come next, but not out of the planes
        L::store(o + x, v);
      } else {
        T tail[L::kWidth];
        L::store(tail, v);
        std::memcpy(o + x, tail, sizeof(T) * std::min<int64_t>(L::kWidth, out_width - x));
      }
    }
  }
}

template <class A, class T, class C>
void pool_plane(const PoolEpilogue& e, const C* plane, C* line, T* out) {
  using L = typename A::template Lanes<C>;
  const T* const end = out + e.out_height * e.out_width;
  for (int64_t oy = 0; oy < e.out_height; ++oy) {
    const int64_t y0 = std::max<int64_t>(0, oy * e.stride_h - e.pad_h);
    const int64_t y1 = std::min(e.height, oy * e.stride_h - e.pad_h + e.kernel_h);
    for (int64_t x = 0; x < e.width; x += L::kWidth) {  // may overrun: the line and the plane are padded
      const C* p = plane + y0 * e.width + x;
      typename L::V v = L::load(p);
      for (int64_t y = y0 + 1; y < y1; ++y) v = max_or_nan(v, L::load(p += e.width));
      L::store(line + x, v);
    }
    T* o = out + oy * e.out_width;
    int64_t ox = 0;
    if (e.kernel_w == 2 && e.stride_w == 2 && e.pad_w == 0) {
      // A step may overrun into the rows that come next, but not out of the plane.
      for (; ox < e.out_width && o + ox + L::kWidth <= end; ox += L::kWidth) {
        L::store(o + ox, L::pair_max(L::load(line + 2 * ox), L::load(line + 2 * ox + L::kWidth)));
      }
    }
    for (; ox < e.out_width; ++ox) {
      const int64_t x0 = std::max<int64_t>(0, ox * e.stride_w - e.pad_w);
      const int64_t x1 = std::min(e.width, ox * e.stride_w - e.pad_w + e.kernel_w);
      C v = line[x0];
      for (int64_t k = x0 + 1; k < x1; ++k) v = max_or_nan(v, line[k]);
      o[ox] = L::template narrow<T>(v);
    }
  }
}

template <class A, class T, class C>
void pool_planes(const PoolEpilogue& e, int64_t count, const C* planes, C* line, T* out) {
  const bool squares =
      e.kernel_h == 2 && e.kernel_w == 2 && e.stride_h == 2 && e.stride_w == 2 && e.pad_h == 0 && e.pad_w == 0;
  if (squares && e.width == 2 * e.out_width && e.height == 2 * e.out_height) {
    return pool_squares<A>(count * e.out_height, e.out_width, planes, line, out);
  }
  for (int64_t k = 0; k < count; ++k) {
    pool_plane<A>(e, planes + k * e.height * e.width, line, out + k * e.out_height * e.out_width);
  }
}

template <class A>
void pool_range(const PoolEpilogue& pool, int64_t begin, int64_t end) {  // in planes; whole rows if rows are short
  const Epilogue& e = pool.noise;
  const int64_t size = pool.height * pool.width, out_size = pool.out_height * pool.out_width;
  const int64_t group = short_rows(e.n) ? pool.planes : planes_together(pool);
  visit(e, [&]<Mode M, class T, class C>() {
    const int64_t room = line_size(pool, std::min(group, pool.planes));
    Scratch scratch(sizeof(C) * (std::min(group, pool.planes) * size + room + kPad));
    C* line = scratch.as<C>();
    C* buffer = line + room;
    Applier<A, M, T, C, C> applier(e, buffer);
    for (int64_t p = begin; p < end;) {
      const int64_t stop = std::min({p + group, end, (p / pool.planes + 1) * pool.planes});
      applier.set_output(buffer - p * size);
      applier.range(p * size, stop * size);
      pool_planes<A>(pool, stop - p, buffer, line, static_cast<T*>(e.y) + p * out_size);
      p = stop;
    }
  });
}

}  // namespace
}  // namespace noisykernels::cpu
