// Noise, ReLU and max-pooling in one pass, over the lanes of an instruction-set level A; included after kernels.inl.
#pragma once

namespace noisykernels::cpu {
namespace {

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

template <class A>
void pool_range(const PoolEpilogue& pool, int64_t begin, int64_t end) {  // in planes; whole rows if rows are short
  const Epilogue& e = pool.noise;
  const int64_t size = pool.height * pool.width, out_size = pool.out_height * pool.out_width;
  // Planes drawn at a time: small ones together, to amortise the set-up of a row's noise.
  const int64_t group = short_rows(e.n) ? pool.planes : std::max<int64_t>(1, 2048 / size);
  visit<A>(e, [&]<Mode M, class T, class C>() {
    Scratch scratch(sizeof(C) * (std::min(group, pool.planes) * size + pool.width + 2 * kPad));
    C* line = scratch.as<C>();
    C* buffer = line + pool.width + kPad;
    Applier<A, M, T, C, C> applier(e, buffer);
    for (int64_t p = begin; p < end;) {
      const int64_t stop = std::min({p + group, end, (p / pool.planes + 1) * pool.planes});
      applier.set_output(buffer - p * size);
      applier.range(p * size, stop * size);
      for (int64_t k = p; k < stop; ++k) {
        pool_plane<A>(pool, buffer + (k - p) * size, line, static_cast<T*>(e.y) + k * out_size);
      }
      p = stop;
    }
  });
}

}  // namespace
}  // namespace noisykernels::cpu
