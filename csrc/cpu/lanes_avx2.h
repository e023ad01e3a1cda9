// Vector lanes for the AVX2+FMA level: the primitives of noise.h on groups of N registers. A step runs over all
// registers of a group before the next step begins, so that independent chains hide each other's latency. Included
// inside a region compiled for avx2, fma, f16c, before noise.h's templates are used; includes nothing itself.
#pragma once

namespace noisykernels {

using f32x8 = float __attribute__((vector_size(32)));
using f64x4 = double __attribute__((vector_size(32)));
using u32x8 = uint32_t __attribute__((vector_size(32)));
using u64x4 =
    uint64_t __attribute__((vector_size(32)));  // a Philox word in the low half of each lane, garbage above it

template <class V, int N = 1>
struct Group {
  V v[N];
};
template <int N>
using Floats = Group<f32x8, N>;
template <int N>
using Ints = Group<u32x8, N>;
template <int N>
using Doubles = Group<f64x4, N>;
template <int N>
using PhiloxWords = Group<u64x4, N>;

// f(i) of every register.
template <class V, int N, class Fn>
NK_HD Group<V, N> each(Fn f) {
  Group<V, N> g;
  NK_UNROLL
  for (int i = 0; i < N; ++i) g.v[i] = f(i);
  return g;
}

NK_HD f32x8 broadcast(f32x8, float s) { return _mm256_set1_ps(s); }
NK_HD f64x4 broadcast(f64x4, double s) { return _mm256_set1_pd(s); }
NK_HD f64x4 broadcast(f64x4, float s) { return _mm256_set1_pd(s); }
NK_HD u32x8 broadcast(u32x8, uint32_t s) { return (u32x8)_mm256_set1_epi32(static_cast<int>(s)); }
NK_HD u64x4 broadcast(u64x4, uint32_t s) { return (u64x4)_mm256_set1_epi64x(s); }

template <class V, int N, class S>
struct Splat<Group<V, N>, S> {
  NK_HD static Group<V, N> of(S s) {
    const V b = broadcast(V{}, s);
    return each<V, N>([&](int) NK_LAMBDA { return b; });
  }
};

#define NK_EACH(V, expression) each<V, N>([&](int i) NK_LAMBDA { return (V)(expression); })

// Integer words.
template <class V, int N>
NK_HD Group<V, N> operator^(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] ^ b.v[i]);
}
template <class V, int N>
  requires(N > 1)
NK_HD Group<V, N> operator^(const Group<V, N>& a, const Group<V, 1>& b) {
  return NK_EACH(V, a.v[i] ^ b.v[0]);
}
template <int N>
NK_HD Ints<N> operator&(const Ints<N>& a, const Ints<N>& b) {
  return NK_EACH(u32x8, a.v[i] & b.v[i]);
}
template <int N>
NK_HD Ints<N> operator-(const Ints<N>& a, const Ints<N>& b) {
  return NK_EACH(u32x8, a.v[i] - b.v[i]);
}
template <int N>
NK_HD Ints<N> operator<<(const Ints<N>& a, int s) {
  return NK_EACH(u32x8, a.v[i] << s);
}
template <int N>
NK_HD Ints<N> operator>>(const Ints<N>& a, int s) {
  return NK_EACH(u32x8, a.v[i] >> s);
}
template <int N>
NK_HD PhiloxWords<N> mul_wide(const PhiloxWords<N>& a, uint32_t m) {
  return NK_EACH(u64x4, _mm256_mul_epu32((__m256i)a.v[i], _mm256_set1_epi64x(m)));
}
template <int N>
NK_HD PhiloxWords<N> high_word(const PhiloxWords<N>& a) {
  return NK_EACH(u64x4, a.v[i] >> 32);
}
template <int N>
NK_HD PhiloxWords<N> low_word(const PhiloxWords<N>& a) {
  return a;
}

// Floats.
template <int N>
NK_HD Floats<N> int_to_float(const Ints<N>& a) {
  return NK_EACH(f32x8, _mm256_cvtepi32_ps((__m256i)a.v[i]));
}
template <int N>
NK_HD Ints<N> float_bits(const Floats<N>& a) {
  return NK_EACH(u32x8, a.v[i]);
}
template <int N>
NK_HD Floats<N> bits_float(const Ints<N>& a) {
  return NK_EACH(f32x8, a.v[i]);
}
template <int N>
NK_HD Floats<N> sub_rn(const Floats<N>& a, const Floats<N>& b) {
  return NK_EACH(f32x8, a.v[i] - b.v[i]);
}
template <int N>
NK_HD Floats<N> fma_rn(const Floats<N>& a, const Floats<N>& b, const Floats<N>& c) {
  return NK_EACH(f32x8, _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i]));
}
template <int N>
NK_HD Floats<N> fnma_rn(const Floats<N>& a, const Floats<N>& b, const Floats<N>& c) {
  return NK_EACH(f32x8, _mm256_fnmadd_ps(a.v[i], b.v[i], c.v[i]));
}
template <int N>
NK_HD Doubles<N> fma_rn(const Doubles<N>& a, const Doubles<N>& b, const Doubles<N>& c) {
  return NK_EACH(f64x4, _mm256_fmadd_pd(a.v[i], b.v[i], c.v[i]));
}
template <class V, int N>
NK_HD Group<V, N> mul_rn(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] * b.v[i]);
}
template <class V, int N>
NK_HD Group<V, N> add_rn(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] + b.v[i]);
}
template <class V, int N>
NK_HD Group<V, N> div_rn(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] / b.v[i]);
}

// The rest is wanted for floats and doubles alike: intrinsic names differ by their suffix only.
#define NK_BOTH(F, ps, reg)                                                                                   \
  template <int N>                                                                                            \
  NK_HD F<N> sqrt_rn(const F<N>& a) {                                                                         \
    return NK_EACH(reg, _mm256_sqrt_##ps(a.v[i]));                                                            \
  }                                                                                                           \
  template <int N>                                                                                            \
  NK_HD F<N> abs_of(const F<N>& a) {                                                                          \
    return NK_EACH(reg, _mm256_andnot_##ps(_mm256_set1_##ps(-0.0f), a.v[i]));                                 \
  }                                                                                                           \
  template <int N>                                                                                            \
  NK_HD F<N> larger(const F<N>& a, const F<N>& b) {                                                           \
    return NK_EACH(reg, _mm256_max_##ps(a.v[i], b.v[i]));                                                     \
  }                                                                                                           \
  template <int N>                                                                                            \
  NK_HD F<N> smaller(const F<N>& a, const F<N>& b) {                                                          \
    return NK_EACH(reg, _mm256_min_##ps(a.v[i], b.v[i]));                                                     \
  }                                                                                                           \
  template <int N>                                                                                            \
  NK_HD F<N> max_or_nan(const F<N>& a, const F<N>& b) {                                                       \
    return NK_EACH(reg, _mm256_blendv_##ps(_mm256_max_##ps(a.v[i], b.v[i]), a.v[i],                           \
                                           _mm256_cmp_##ps(a.v[i], a.v[i], _CMP_UNORD_Q)));                   \
  }                                                                                                           \
  template <int N>                                                                                            \
  NK_HD F<N> where_positive(const F<N>& c, const F<N>& a) {                                                   \
    return NK_EACH(reg, _mm256_and_##ps(_mm256_cmp_##ps(c.v[i], _mm256_setzero_##ps(), _CMP_GT_OQ), a.v[i])); \
  }
NK_BOTH(Floats, ps, f32x8)
NK_BOTH(Doubles, pd, f64x4)
#undef NK_BOTH
#undef NK_EACH

}  // namespace noisykernels
