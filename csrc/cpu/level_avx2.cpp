// The AVX2+FMA CPU level. Standard and intrinsic headers come first: nothing of theirs may be compiled for the wider
// set. Our own headers follow inside the region, since their templates must be.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define NK_BYTES 32
#define NK_WORDS __m256i
#define NK_MM(name) _mm256_##name
#define NK_ROUND(ps) _mm256_round_##ps

#include "kernels.inl"
#include "lanes_x86.h"

namespace noisykernels::cpu {
namespace {

struct Avx2 : X86<Avx2> {
  using Words = PhiloxWords<4>;  // 16 blocks
  static constexpr int kSteps = 1;

  // Eight blocks are kept as lanes 0 2 1 3 | 4 6 5 7 of two registers: packed to 32 bits, and after the 4 x 4
  // transposes of sample(), they come out in order without a shuffle across the halves of a register.
  static NK_HD WordRegister lanes(__m128i four) {
    return (WordRegister)_mm256_permute4x64_epi64(_mm256_cvtepu32_epi64(four), 0xD8);
  }
  static NK_HD Words load(const uint32_t* p) {
    Words w;
    NK_UNROLL
    for (int i = 0; i < 4; ++i) w.v[i] = lanes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 4 * i)));
    return w;
  }
  static NK_HD void store(const Words c[4], uint32_t* w) {  // as [group of 8 blocks][word][block]
    NK_UNROLL
    for (int g = 0; g < 2; ++g) {
      NK_UNROLL
      for (int k = 0; k < 4; ++k) {
        const __m256 packed = _mm256_shuffle_ps((__m256)c[k].v[2 * g], (__m256)c[k].v[2 * g + 1], 0x88);
        _mm256_store_ps(reinterpret_cast<float*>(w + 32 * g + 8 * k), packed);
      }
    }
  }
  template <int>
  static NK_HD void words_in_row(const RoundKeys<Key>& keys, const RowConstants<Key>& constants, uint32_t block,
                                 uint32_t* w) {
    Words first, c[4];
    NK_UNROLL
    for (int i = 0; i < 4; ++i) {
      first.v[i] = lanes(_mm_add_epi32(_mm_set1_epi32(static_cast<int>(block) + 4 * i), _mm_setr_epi32(0, 1, 2, 3)));
    }
    philox_in_row(keys, constants, first, c);
    store(c, w);
  }

  template <class C>
  struct Lanes;
};

template <>
struct Avx2::Lanes<float> : X86Lanes<float> {
  static NK_HD V load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static NK_HD V load(const BFloat16* p) {
    return {(FloatRegister)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p)), 16)};
  }
  static NK_HD V load(const Float16* p) { return {_mm256_cvtph_ps(halves(p))}; }
  static NK_HD V load_eps(const float* p) { return {_mm256_loadu_ps(p)}; }
  static NK_HD void store(float* p, V v) { _mm256_storeu_ps(p, v.v[0]); }
  static NK_HD void store(BFloat16* p, V v) {
    const __m256i u = (__m256i)v.v[0], odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256 nan = _mm256_cmp_ps(v.v[0], v.v[0], _CMP_UNORD_Q);
    r = (__m256i)_mm256_blendv_ps((__m256)r, (__m256)_mm256_set1_epi32(0x7fc0), nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static NK_HD void store(Float16* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.v[0], _MM_FROUND_TO_NEAREST_INT));
  }
  // The larger of each pair of neighbours of the 2 kWidth values in a and b; NaN if one of them is.
  static NK_HD V pair_max(V a, V b) {
    const V even = {_mm256_shuffle_ps(a.v[0], b.v[0], 0x88)}, odd = {_mm256_shuffle_ps(a.v[0], b.v[0], 0xDD)};
    return {(FloatRegister)_mm256_permute4x64_pd((__m256d)max_or_nan(even, odd).v[0], 0xD8)};
  }

 private:
  static NK_HD __m128i halves(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
};

template <>
struct Avx2::Lanes<double> : X86Lanes<double> {
  static NK_HD V load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static NK_HD V load_eps(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  static NK_HD void store(double* p, V v) { _mm256_storeu_pd(p, v.v[0]); }
  static NK_HD V pair_max(V a, V b) {
    const V even = {_mm256_unpacklo_pd(a.v[0], b.v[0])}, odd = {_mm256_unpackhi_pd(a.v[0], b.v[0])};
    return {_mm256_permute4x64_pd(max_or_nan(even, odd).v[0], 0xD8)};
  }
};

}  // namespace

constinit const Kernels kAvx2 = kernels_of<Avx2>("avx2");

}  // namespace noisykernels::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
