// Where a study's levels part: x + level * direction, perhaps rectified, over the lanes of an instruction-set level A.
// It is the formula of additive noise whose eps are read, not drawn.
#pragma once

#include "pool.inl"

namespace noisykernels::cpu {
namespace {

template <class A>
void expand_values(const float* x, const float* direction, float level, bool relu, float* y, int64_t count) {
  using L = typename A::template Lanes<float>;
  using V = typename L::V;
  const V a = L::splat(level), zero = L::splat(0.0f);
  const V low = L::splat(relu ? 0.0f : -kInfinity<float>);
  const auto one = [&](const float* from, const float* toward, float* to) {
    L::store(to, larger(low, apply_noise<Mode::kAdd>(L::load(from), a, zero, L::load_eps(toward), zero)));
  };
  int64_t i = 0;
  for (; i + L::kWidth <= count; i += L::kWidth) one(x + i, direction + i, y + i);
  if (i < count) {
    float tails[3][L::kWidth] = {};
    std::memcpy(tails[0], x + i, sizeof(float) * (count - i));
    std::memcpy(tails[1], direction + i, sizeof(float) * (count - i));
    one(tails[0], tails[1], tails[2]);
    std::memcpy(y + i, tails[2], sizeof(float) * (count - i));
  }
}

// `count` values of output row i from element `at` on.
template <class A>
void expand_row(const Epilogue& e, int64_t i, int64_t at, int64_t count, float* y) {
  const NoiseParams& p = e.noise;
  const float* x = static_cast<const float*>(e.x) + i % p.B * e.n + at;
  const float level = static_cast<const float*>(p.add.data)[i / p.B];
  expand_values<A>(x, p.given + i % p.given_rows * e.n + at, level, e.relu, y, count);
}

template <class A>
void expand_levels_range(const Epilogue& e, int64_t begin, int64_t end) {
  for (float* y = static_cast<float*>(e.y); begin < end;) {
    const int64_t i = begin / e.n, stop = std::min(end, (i + 1) * e.n);
    expand_row<A>(e, i, begin - i * e.n, stop - begin, y + begin);
    begin = stop;
  }
}

template <class A>
void expand_levels_pool_range(const PoolEpilogue& pool, int64_t begin, int64_t end) {  // in planes
  const int64_t size = pool.height * pool.width, out_size = pool.out_height * pool.out_width;
  const int64_t group = std::min(planes_together(pool), pool.planes), room = line_size(pool, group);
  Scratch scratch(sizeof(float) * (group * size + room + kPad));
  float* line = scratch.as<float>();
  float* planes = line + room;
  for (int64_t p = begin; p < end;) {
    const int64_t stop = std::min({p + group, end, (p / pool.planes + 1) * pool.planes});
    expand_row<A>(pool.noise, p / pool.planes, p % pool.planes * size, (stop - p) * size, planes);
    pool_planes<A>(pool, stop - p, planes, line, static_cast<float*>(pool.noise.y) + p * out_size);
    p = stop;
  }
}

}  // namespace
}  // namespace noisykernels::cpu
