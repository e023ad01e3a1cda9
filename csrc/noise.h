// The definition of the noise: generator, counter layout, kinds, and how noise is applied to a value.
//
// Everything here is a pure function and gives the same bits on every CPU level, compiler setting and on CUDA. No
// torch, no libm transcendental, no state. Each function is a template over a "lane" type: a scalar on CUDA and on the
// portable CPU level, a vector register on the others, which supply the few primitives of the first section by
// overloading. Changing one bit of the result is a new stream version and a major release.
#pragma once

#if defined(__CUDACC_RTC__)  // has no standard headers
namespace noisykernels {
using int32_t = int;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
}  // namespace noisykernels
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#endif

#if defined(__FAST_MATH__)
#error "noise.h needs IEEE arithmetic: build without -ffast-math / --use_fast_math"
#endif

#if defined(__CUDACC__)
#define NK_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define NK_HD inline __attribute__((always_inline))
#else
#define NK_HD inline
#endif

#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define NK_UNROLL _Pragma("GCC unroll 16")
#else
#define NK_UNROLL _Pragma("unroll")
#endif
#define NK_LAMBDA __attribute__((always_inline))

namespace noisykernels {

inline constexpr int kStreamVersion = 1;

// ------------------------------------------------------------------------------------------------------ primitives
// Arithmetic with a stated rounding (to nearest even, once). A compiler may neither contract nor reassociate these:
// the host builds with -ffp-contract=off, the device uses the _rn intrinsics.

#if defined(__CUDA_ARCH__)
NK_HD float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
NK_HD float fnma_rn(float a, float b, float c) { return __fmaf_rn(-a, b, c); }  // c - a b, rounded once
NK_HD float mul_rn(float a, float b) { return __fmul_rn(a, b); }
NK_HD float sub_rn(float a, float b) { return __fsub_rn(a, b); }
NK_HD float add_rn(float a, float b) { return __fadd_rn(a, b); }
NK_HD float div_rn(float a, float b) { return __fdiv_rn(a, b); }
NK_HD float sqrt_rn(float a) { return __fsqrt_rn(a); }
NK_HD float int_to_float(uint32_t a) { return __int2float_rn(static_cast<int32_t>(a)); }
NK_HD double fma_rn(double a, double b, double c) { return __fma_rn(a, b, c); }
NK_HD double mul_rn(double a, double b) { return __dmul_rn(a, b); }
NK_HD double add_rn(double a, double b) { return __dadd_rn(a, b); }
NK_HD double div_rn(double a, double b) { return __ddiv_rn(a, b); }
NK_HD double sqrt_rn(double a) { return __dsqrt_rn(a); }
NK_HD uint32_t float_bits(float a) { return __float_as_uint(a); }
NK_HD float bits_float(uint32_t a) { return __uint_as_float(a); }
NK_HD double abs_of(double a) { return fabs(a); }
#else
NK_HD float fma_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
NK_HD float fnma_rn(float a, float b, float c) { return std::fmaf(-a, b, c); }
NK_HD float mul_rn(float a, float b) { return a * b; }
NK_HD float sub_rn(float a, float b) { return a - b; }
NK_HD float add_rn(float a, float b) { return a + b; }
NK_HD float div_rn(float a, float b) { return a / b; }
NK_HD float sqrt_rn(float a) { return std::sqrt(a); }
NK_HD float int_to_float(uint32_t a) { return static_cast<float>(static_cast<int32_t>(a)); }
NK_HD double fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
NK_HD double mul_rn(double a, double b) { return a * b; }
NK_HD double add_rn(double a, double b) { return a + b; }
NK_HD double div_rn(double a, double b) { return a / b; }
NK_HD double sqrt_rn(double a) { return std::sqrt(a); }
NK_HD uint32_t float_bits(float a) {
  uint32_t u;
  std::memcpy(&u, &a, sizeof u);
  return u;
}
NK_HD float bits_float(uint32_t a) {
  float f;
  std::memcpy(&f, &a, sizeof f);
  return f;
}
NK_HD double abs_of(double a) { return std::fabs(a); }
#endif
NK_HD float abs_of(float a) { return bits_float(float_bits(a) & 0x7fffffffu); }
// Larger, smaller: the second argument where the comparison is false (a NaN anywhere, equal zeros), as SSE's max and
// min.
template <class F>
NK_HD F larger(F a, F b) {
  return a > b ? a : b;
}
template <class F>
NK_HD F smaller(F a, F b) {
  return a < b ? a : b;
}
// The larger of both; NaN if one of them is.
template <class F>
NK_HD F max_or_nan(F a, F b) {
  return a > b || a != a ? a : b;
}
// a where c > 0, else zero.
NK_HD float where_positive(float c, float a) { return c > 0.0f ? a : 0.0f; }
NK_HD double where_positive(double c, double a) { return c > 0.0 ? a : 0.0; }

// 32 x 32 -> 64 bit product and its halves.
NK_HD uint64_t mul_wide(uint32_t a, uint32_t m) {
#if defined(__CUDA_ARCH__)  // nvcc makes two instructions of the plain product
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(m));
  return p;
#else
  return static_cast<uint64_t>(a) * m;
#endif
}
NK_HD uint32_t high_word(uint64_t p) { return static_cast<uint32_t>(p >> 32); }
NK_HD uint32_t low_word(uint64_t p) { return static_cast<uint32_t>(p); }

// A lane value that holds the scalar everywhere; specialised by the vector levels.
template <class V, class S>
struct Splat {
  NK_HD static V of(S s) { return static_cast<V>(s); }
};
template <class V, class S>
NK_HD V splat(S s) {
  return Splat<V, S>::of(s);
}

// ------------------------------------------------------------------------------------------------------- generator
// Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11. Ten rounds: the authors' default.

inline constexpr int kRounds = 10;
inline constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

template <class K>
struct RoundKeys {
  K k0[kRounds], k1[kRounds];
  NK_HD explicit RoundKeys(uint64_t seed) {
    uint32_t a = static_cast<uint32_t>(seed), b = static_cast<uint32_t>(seed >> 32);
    NK_UNROLL
    for (int r = 0; r < kRounds; ++r, a += kWeyl0, b += kWeyl1) {
      k0[r] = splat<K>(a);
      k1[r] = splat<K>(b);
    }
  }
};

// W: lanes of counter words; K: round keys, the same lanes or one register for a group of them.
// One round: (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).
template <class W, class K>
NK_HD void philox_round(W c[4], K k0, K k1) {
  const auto p = mul_wide(c[0], kMul0);
  const auto q = mul_wide(c[2], kMul1);
  c[0] = high_word(q) ^ c[1] ^ k0;
  c[2] = high_word(p) ^ c[3] ^ k1;
  c[1] = low_word(q);
  c[3] = low_word(p);
}

// All rounds from a full counter, in place.
template <class W, class K>
NK_HD void philox(const RoundKeys<K>& keys, W c[4]) {
  NK_UNROLL
  for (int r = 0; r < kRounds; ++r) philox_round(c, keys.k0[r], keys.k1[r]);
}

// What the first rounds make of the words that stay fixed inside a row: 2.5 of the 10 rounds become four constants.
template <class K>
struct RowConstants {
  K a, b, c, d;
  NK_HD RowConstants(uint64_t seed, uint32_t row, uint32_t draw, uint32_t word3) {
    const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    const uint64_t q0 = mul_wide(draw, kMul1);                        // round 0: M1 c2
    const uint32_t x0 = high_word(q0) ^ row ^ k0, x1 = low_word(q0);  //          new c0, c1
    const uint64_t p1 = mul_wide(x0, kMul0);                          // round 1: M0 c0
    a = splat<K>(word3 ^ k1);                                         // round 0: c3 ^ k1
    b = splat<K>(x1 ^ (k0 + kWeyl0));                                 // round 1: c1 ^ k0
    c = splat<K>(high_word(p1) ^ (k1 + kWeyl1));                      // round 1: hi(M0 c0) ^ k1
    d = splat<K>(low_word(p1) ^ (k1 + 2 * kWeyl1));                   // round 2: c3 ^ k1
  }
};

// The same as philox() on (block, row, draw, word3), for many blocks of one row.
template <class W, class K>
NK_HD void philox_in_row(const RoundKeys<K>& keys, const RowConstants<K>& k, W block, W c[4]) {
  const auto p0 = mul_wide(block, kMul0);
  const auto q1 = mul_wide(high_word(p0) ^ k.a, kMul1);
  const auto p2 = mul_wide(high_word(q1) ^ k.b, kMul0);
  const auto q2 = mul_wide(low_word(p0) ^ k.c, kMul1);
  c[0] = high_word(q2) ^ low_word(q1) ^ keys.k0[2];
  c[1] = low_word(q2);
  c[2] = high_word(p2) ^ k.d;
  c[3] = low_word(p2);
  NK_UNROLL
  for (int r = 3; r < kRounds; ++r) philox_round(c, keys.k0[r], keys.k1[r]);
}

// -------------------------------------------------------------------------------------------------- counter layout
// Counter words: element / 4, row, draw, site << 8 | operand. Element 4b + i takes output i of block b.

enum class Operand : uint32_t {
  kAdd = 0,
  kMul,
  kInput,
  kWeight,
  kConductancePlus,
  kConductanceMinus,
  kProgramming,
  kDrift,
  kRead,
  kColumnOffset,
  kColumnGain,
  kPerProduct,
  kPerStep,
  kRoundingOfProduct,
  kRoundingOfSum,
  kSpareWords,  // further words for a kind that needs more than one per value
  kCount
};
inline constexpr const char* kOperandNames[] = {
    "add",  "mul",           "input",       "weight",      "g_plus",   "g_minus",          "programming",  "drift",
    "read", "column_offset", "column_gain", "per_product", "per_step", "rounding_product", "rounding_sum", "spare"};
static_assert(sizeof(kOperandNames) / sizeof(kOperandNames[0]) == static_cast<int>(Operand::kCount));
// The operand has eight bits of counter word 3; those from here on are for streams with names of their own.
inline constexpr int kFirstOwnOperand = 128;
inline constexpr int kOperands = 256;
static_assert(static_cast<int>(Operand::kCount) <= kFirstOwnOperand);

NK_HD uint32_t counter_word3(uint32_t site, Operand operand) { return site << 8 | static_cast<uint32_t>(operand); }

// ----------------------------------------------------------------------------------------------------------- kinds
// A kind turns two words into two values of mean 0 and variance 1: words 0 and 1 of a block give its values 0 and 1,
// words 2 and 3 the others. W: lanes of 32-bit words, F: lanes of floats. kBound: no value is larger, but for the last
// bits of its polynomials and roundings; words have 32 bits, so that -2 ln u ends at u = 2^-32.

// -2 ln u for u = (w / 2 + 1/2) 2^-31 in (0, 1], from the upper 31 bits of w. With u = 2^k (1 + f), f in [-1/3, 1/3]:
// -2 ln(1 + f) = f (-2 + f q(f)), q minimax of degree 6, relative error 1.9e-7.
template <class F, class W>
NK_HD F minus_two_log(W w) {
  const F u = fma_rn(int_to_float(w >> 1), splat<F>(0x1p-31f), splat<F>(0x1p-32f));
  const W k = (float_bits(u) - splat<W>(0x3f2aaaabu)) & splat<W>(0xff800000u);
  const F f = sub_rn(bits_float(float_bits(u) - k), splat<F>(1.0f));
  const F e = mul_rn(int_to_float(k), splat<F>(-1.6525917e-07f));  // -2 ln(2) 2^-23
  F q = fma_rn(f, splat<F>(0.30528003f), splat<F>(-0.3398085f));
  q = fma_rn(q, f, splat<F>(0.32882842f));
  q = fma_rn(q, f, splat<F>(-0.39636382f));
  q = fma_rn(q, f, splat<F>(0.5001256f));
  q = fma_rn(q, f, splat<F>(-0.6667347f));
  q = fma_rn(q, f, splat<F>(0.9999992f));
  return fma_rn(f, fma_rn(f, q, splat<F>(-2.0f)), e);
}

// Cosine and sine of a uniform angle: 30 bits place it in a quarter turn, (t + 1/2) pi/2 with t in [-1/2, 1/2), as
// C(t^2) -+ t S(t^2), C and S minimax for cos and sin(pi t/2) / sqrt(2), error 2e-8 and 2e-9; the top two bits are the
// signs.
template <class F, class W>
NK_HD void cos_sin(W w, F& cosine, F& sine) {
  const F t = mul_rn(int_to_float(w << 2), splat<F>(0x1p-32f));
  const F t2 = mul_rn(t, t);
  F s = fma_rn(t2, splat<F>(-0.0032620004f), splat<F>(0.056346223f));
  s = fma_rn(s, t2, splat<F>(-0.4567657f));
  s = fma_rn(s, t2, splat<F>(1.1107208f));
  F c = fma_rn(t2, splat<F>(-0.014434947f), splat<F>(0.17932315f));
  c = fma_rn(c, t2, splat<F>(-0.87235576f));
  c = fma_rn(c, t2, splat<F>(0.70710677f));
  const W sign = splat<W>(0x80000000u);
  cosine = bits_float(float_bits(fnma_rn(t, s, c)) ^ (w & sign));
  sine = bits_float(float_bits(fma_rn(t, s, c)) ^ ((w << 1) & sign));
}

// Box-Muller: radius from the first word, angle from the second.
struct Gaussian {
  static constexpr const char* kName = "gaussian";
  static constexpr double kBound = 6.6604368892615815;  // sqrt(64 ln 2)
  template <class F, class W>
  NK_HD static void sample(W w0, W w1, F& z0, F& z1) {
    const F r = sqrt_rn(minus_two_log<F>(w0));
    F c, s;
    cos_sin(w1, c, s);
    z0 = mul_rn(r, c);
    z1 = mul_rn(r, s);
  }
};

// Uniform on [-sqrt 3, sqrt 3]: the word as a signed integer, plus one half, times sqrt(3) 2^-31.
struct Uniform {
  static constexpr const char* kName = "uniform";
  static constexpr double kBound = 1.7320508075688772;  // sqrt(3)
  template <class F, class W>
  NK_HD static void sample(W w0, W w1, F& z0, F& z1) {
    z0 = one<F>(w0);
    z1 = one<F>(w1);
  }
  template <class F, class W>
  NK_HD static F one(W w) {
    return fma_rn(int_to_float(w), splat<F>(8.06549e-10f), splat<F>(4.032745e-10f));
  }
};

// Laplace with scale 1/sqrt 2: magnitude -ln(u) / sqrt 2 from the upper 31 bits, sign from the lowest.
struct Laplace {
  static constexpr const char* kName = "laplace";
  static constexpr double kBound = 15.684130295496754;  // 32 ln(2) / sqrt(2)
  template <class F, class W>
  NK_HD static void sample(W w0, W w1, F& z0, F& z1) {
    z0 = one<F>(w0);
    z1 = one<F>(w1);
  }
  template <class F, class W>
  NK_HD static F one(W w) {
    const F magnitude = mul_rn(minus_two_log<F>(w), splat<F>(0.35355338f));
    return bits_float(float_bits(magnitude) ^ (w << 31));
  }
};

// The list of kinds: everything that names or dispatches on a kind reads it here.
template <class... Ks>
struct KindList {
  static constexpr int kSize = sizeof...(Ks);
  static constexpr const char* kNames[] = {Ks::kName...};
  static constexpr double kBounds[] = {Ks::kBound...};
  // f.template operator()<Kind>() for the kind with this index.
  template <class Fn>
  NK_HD static void visit(int index, Fn&& f) {
    int i = 0;
    static_cast<void>(((i++ == index && (f.template operator()<Ks>(), true)) || ...));
  }
};
using Kinds = KindList<Gaussian, Uniform, Laplace>;

// ------------------------------------------------------------------------------------------------------- formulas
// x: value at the site; a, m: levels; ea, em: the eps of operands add and mul. F: float, double or lanes of them.

enum class Mode : int { kAdd = 0, kMul, kMulAdd, kAddMul, kFold, kEps };  // kEps: the eps of operand add itself
NK_HD constexpr bool draws_add(Mode m) { return m != Mode::kMul; }
NK_HD constexpr bool draws_mul(Mode m) { return m == Mode::kMul || m == Mode::kMulAdd || m == Mode::kAddMul; }
NK_HD constexpr bool has_add_level(Mode m) { return m != Mode::kMul && m != Mode::kEps; }
NK_HD constexpr bool has_mul_level(Mode m) { return m != Mode::kAdd && m != Mode::kEps; }

template <Mode M, class F>
NK_HD F apply_noise(F x, F a, F m, F ea, F em) {
  if constexpr (M == Mode::kEps) {
    return ea;
  } else if constexpr (M == Mode::kAdd) {
    return fma_rn(a, ea, x);
  } else if constexpr (M == Mode::kFold) {  // x + sqrt(m^2 x^2 + a^2) ea, without overflow of the squares
    const F mx = abs_of(mul_rn(m, x));
    const F h = larger(mx, a);
    const F q = where_positive(h, div_rn(smaller(mx, a), h));
    return fma_rn(mul_rn(h, sqrt_rn(fma_rn(q, q, splat<F>(1.0f)))), ea, x);
  } else {
    const F factor = fma_rn(m, em, splat<F>(1.0f));
    if constexpr (M == Mode::kMul) return mul_rn(x, factor);
    if constexpr (M == Mode::kMulAdd) return fma_rn(a, ea, mul_rn(x, factor));
    if constexpr (M == Mode::kAddMul) return mul_rn(fma_rn(a, ea, x), factor);
  }
}

}  // namespace noisykernels
