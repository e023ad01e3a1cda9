// The deviation of a sum of noisy products, from the product of the operands' squares: squares of a row, and roots of a
// row of their product, over the lanes of an instruction-set level A.
#pragma once

#include <algorithm>
#include <cstring>

#include "launch.h"

namespace noisykernels::cpu {
namespace {

// f(lanes at i) for all lanes of `count` values, the last ones by way of `pad`.
template <class A, class Fn>
void for_lanes(int64_t count, Fn&& f) {
  constexpr int kWidth = A::template Lanes<float>::kWidth;
  for (int64_t i = 0; i < count; i += kWidth) f(i, static_cast<int>(std::min<int64_t>(kWidth, count - i)));
}

// Lanes from `count` values, zeros behind them.
template <class A>
auto load_some(const float* x, int count) {
  using L = typename A::template Lanes<float>;
  if (count == L::kWidth) return L::load(x);
  float tail[L::kWidth] = {};
  std::memcpy(tail, x, sizeof(float) * count);
  return L::load(tail);
}

template <class A, class V>
void store_some(float* x, V v, int count) {
  using L = typename A::template Lanes<float>;
  if (count == L::kWidth) return L::store(x, v);
  float tail[L::kWidth];
  L::store(tail, v);
  std::memcpy(x, tail, sizeof(float) * count);
}

// y = (x s)^2; returns the largest magnitude of x.
template <class A>
float square_scaled(const float* x, int64_t n, float s, float* y) {
  using L = typename A::template Lanes<float>;
  const typename L::V scale = L::splat(s);
  typename L::V most = L::splat(0.0f);
  for_lanes<A>(n, [&](int64_t i, int count) {
    const typename L::V value = load_some<A>(x + i, count), v = mul_rn(value, scale);
    most = larger(abs_of(value), most);
    store_some<A>(y + i, mul_rn(v, v), count);
  });
  float lanes[L::kWidth], largest = 0;
  L::store(lanes, most);
  for (int k = 0; k < L::kWidth; ++k) largest = larger(lanes[k], largest);
  return largest;
}

// y = (x s)^2; returns 1 / s. s is 1, or, where the largest magnitude is not of a middle size (or infinite), the power
// of two that brings it near one: the sum of 2^32 products of two such squares is finite. Magnitudes below 2^-43 of the
// largest may count as zero.
template <class A>
float square_row(const float* x, int64_t n, float* y) {
  const float largest = square_scaled<A>(x, n, 1.0f, y);
  if ((largest > 0x1p-20f && largest < 0x1p24f) || largest == kInfinity<float>) return 1.0f;
  const uint32_t field = float_bits(largest) >> 23, exponent = field < 1 ? 1 : (field > 253 ? 253 : field);
  square_scaled<A>(x, n, bits_float((254 - exponent) << 23), y);
  return bits_float(exponent << 23);
}

// sqrt(a^2 + b^2) for a, b >= 0, without overflow of the squares; NaN if one of them is.
template <class F>
NK_HD F hypotenuse(F a, F b) {
  const F h = max_or_nan(a, b), q = where_positive(h, div_rn(smaller(a, b), h));
  return mul_rn(h, sqrt_rn(fma_rn(q, q, splat<F>(1.0f))));
}

// Deviations of a row of outputs, in place of the row of the squares' product.
template <class A>
void deviations(const Deviations& d, float* v) {
  using L = typename A::template Lanes<float>;
  using V = typename L::V;
  const V row = L::splat(d.row_scale), length = L::splat(d.row_length), step = L::splat(d.per_step);
  for_lanes<A>(d.n, [&](int64_t i, int count) {
    V s = L::splat(0.0f);
    if (d.per_product != nullptr) {
      s = mul_rn(mul_rn(sqrt_rn(load_some<A>(v + i, count)), load_some<A>(d.per_product + i, count)), row);
    }
    if (d.read != nullptr) s = hypotenuse(s, mul_rn(load_some<A>(d.read + i, count), length));
    if (d.per_step != 0) s = hypotenuse(s, step);
    store_some<A>(v + i, s, count);
  });
}

}  // namespace
}  // namespace noisykernels::cpu
