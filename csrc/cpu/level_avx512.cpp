// The AVX-512 CPU level (F, BW, DQ, VL). Standard and intrinsic headers come first: nothing of theirs may be compiled
// for the wider set. Our own headers follow inside the region, since their templates must be.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own AVX-512 intrinsics (its bug 105593)
#endif
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define NK_BYTES 64
#define NK_WORDS __m512i
#define NK_MM(name) _mm512_##name
#define NK_ROUND(ps) _mm512_roundscale_##ps

#include "kernels.inl"
#include "lanes_x86.h"

namespace noisykernels::cpu {
namespace {

struct Avx512 : X86<Avx512> {
  using Words = PhiloxWords<2>;  // 16 blocks
  static constexpr int kSteps = 2;

  // Sixteen blocks are kept as lanes 0 4 1 5 2 6 3 7 and 8 12 9 13 10 14 11 15 of two registers: packed to 32 bits, and
  // after the 4 x 4 transposes of sample(), they come out in order without a shuffle across the quarters of a register.
  static NK_HD WordRegister lanes(__m256i eight) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return (WordRegister)_mm512_permutexvar_epi64(order, _mm512_cvtepu32_epi64(eight));
  }
  static NK_HD Words load(const uint32_t* p) {
    const auto* eight = reinterpret_cast<const __m256i*>(p);
    return {{lanes(_mm256_loadu_si256(eight)), lanes(_mm256_loadu_si256(eight + 1))}};
  }
  template <int N>
  static NK_HD void store(const PhiloxWords<N> c[4], uint32_t* w) {  // as [group of 16 blocks][word][block]
    NK_UNROLL
    for (int g = 0; g < N; g += 2) {
      NK_UNROLL
      for (int k = 0; k < 4; ++k) {
        const __m512 packed = _mm512_shuffle_ps((__m512)c[k].v[g], (__m512)c[k].v[g + 1], 0x88);
        _mm512_store_ps(w + 32 * g + 16 * k, packed);
      }
    }
  }
  template <int Steps>
  static NK_HD void words_in_row(const RoundKeys<Key>& keys, const RowConstants<Key>& constants, uint32_t block,
                                 uint32_t* w) {
    const WordRegister order = {0, 4, 1, 5, 2, 6, 3, 7}, first = block + order;
    PhiloxWords<2 * Steps> c[4];
    philox_in_row(keys, constants, each<WordRegister, 2 * Steps>([&](int i) NK_LAMBDA { return first + 8 * i; }), c);
    store(c, w);
  }

  template <class C>
  struct Lanes;
};

template <>
struct Avx512::Lanes<float> : X86Lanes<float> {
  static NK_HD V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static NK_HD V load(const BFloat16* p) {
    return {(FloatRegister)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(p)), 16)};
  }
  static NK_HD V load(const Float16* p) { return {_mm512_cvtph_ps(halves(p))}; }
  static NK_HD V load_eps(const float* p) { return {_mm512_loadu_ps(p)}; }
  static NK_HD void store(float* p, V v) { _mm512_storeu_ps(p, v.v[0]); }
  static NK_HD void store(BFloat16* p, V v) {
    const IntRegister u = (IntRegister)v.v[0];
    const IntRegister rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    const IntRegister bits = v.v[0] != v.v[0] ? IntRegister{} + 0x7fc0 : rounded;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)bits));
  }
  static NK_HD void store(Float16* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v.v[0], _MM_FROUND_TO_NEAREST_INT));
  }
  // The larger of each pair of neighbours of the 2 kWidth values in a and b; NaN if one of them is.
  static NK_HD V pair_max(V a, V b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    return max_or_nan(V{{_mm512_permutex2var_ps(a.v[0], even, b.v[0])}},
                      V{{_mm512_permutex2var_ps(a.v[0], odd, b.v[0])}});
  }

 private:
  static NK_HD __m256i halves(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
};

template <>
struct Avx512::Lanes<double> : X86Lanes<double> {
  static NK_HD V load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static NK_HD V load_eps(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  static NK_HD void store(double* p, V v) { _mm512_storeu_pd(p, v.v[0]); }
  static NK_HD V pair_max(V a, V b) {
    const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                  odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
    return max_or_nan(V{{_mm512_permutex2var_pd(a.v[0], even, b.v[0])}},
                      V{{_mm512_permutex2var_pd(a.v[0], odd, b.v[0])}});
  }
};

}  // namespace

constinit const Kernels kAvx512 = kernels_of<Avx512>("avx512");

}  // namespace noisykernels::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
