// The deviation of a sum of noisy products, from the product of the operands' squares: squares of a row, and roots of a
// row of their product, over the lanes of an instruction-set level A; included after kernels.inl.
#pragma once

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

// y = (x s)^2, s a power of two that brings the largest magnitude near one (1 where that is infinite); returns 1 / s.
// Magnitudes below 2^-63 of the largest count as zero.
template <class A>
float square_row(const float* x, int64_t n, float* y) {
  using L = typename A::template Lanes<float>;
  typename L::V most = L::splat(0.0f);
  for_lanes<A>(n, [&](int64_t i, int count) { most = larger(abs_of(load_some<A>(x + i, count)), most); });
  float lanes[L::kWidth];
  L::store(lanes, most);
  float largest = 0;
  for (int k = 0; k < L::kWidth; ++k) largest = larger(lanes[k], largest);
  const uint32_t field = float_bits(largest) >> 23;
  const uint32_t exponent = field == 255 ? 127 : (field < 1 ? 1 : (field > 253 ? 253 : field));
  const typename L::V scale = L::splat(bits_float((254 - exponent) << 23));
  for_lanes<A>(n, [&](int64_t i, int count) {
    const typename L::V v = mul_rn(load_some<A>(x + i, count), scale);
    store_some<A>(y + i, mul_rn(v, v), count);
  });
  return bits_float(exponent << 23);
}

// sqrt(a^2 + b^2) for a, b >= 0, without overflow of the squares.
template <class F>
NK_HD F hypotenuse(F a, F b) {
  const F h = larger(a, b), q = where_positive(h, div_rn(smaller(a, b), h));
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
