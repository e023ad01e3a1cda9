// Sums with a defined arithmetic: products added one after the other in a given order, with something done at each
// step. The definition of a step and of rounding to a number format, for the lanes of every CPU level and for CUDA. No
// torch here.
#pragma once

#include "rows.h"

namespace noisykernels {

// A number format as an operator gets it.
struct Format {
  enum Rounding : int { kTruncate = 0, kNearest, kStochastic };
  bool given = false;  // if not, values stay as they are
  bool fixed = false;
  Rounding rounding = kTruncate;
  int bits = 0;            // of the mantissa, or right of the point
  int least_exponent = 0;  // of a normal number
  double largest = 0;
  bool subnormals = false, infinite = false;
};

// y[t, i, j] = the sum over k of a[t % Ta, i, k] * b[t % Tb, k, j]. The outputs lie one after the other, n of them in a
// row of the noise.
struct Serial {
  DType dtype = DType::kFloat32;  // or kFloat64
  const void *a = nullptr, *b = nullptr;
  void* y = nullptr;
  bool track = false;  // y gets, instead of the sum, the last position in the order at which it was clamped, or -1
  int64_t T = 0, I = 0, J = 0, K = 0, Ta = 1, Tb = 1, n = 1;
  int64_t a_t = 0, a_i = 0, a_k = 0, b_t = 0, b_k = 0, b_j = 0;  // strides, in values
  const int32_t* order = nullptr;                                // [K], or [T, I, J, K]; null: the natural one
  bool order_of_each = false;
  int64_t block_i = 128, block_j = 256;  // how the CPU cuts the outputs
  Format product, sum;
  double low = 0, high = 0, leak = 1, synapse_limit = 0, synapse_decay = 0;
  bool synapse = false, noisy = false;
  NoiseParams noise;  // of a step: additive and Gaussian, whatever the kind
};

inline constexpr int kStepsTogether = 4;  // of a gradient, on the CPU

// Gradients of the same sums for operands that come after the last clamp: a_grad[t, i, k], b_grad[t, k, j].
struct SerialGradient {
  DType dtype = DType::kFloat32;
  const void *grad = nullptr, *last = nullptr;  // [T, I, J], the latter as a sum tracks it
  const void *a = nullptr, *b = nullptr;        // [T, I, K], [T, K, J]
  const int32_t* position = nullptr;            // [K] of k in the order
  void *a_grad = nullptr, *b_grad = nullptr;
  int64_t T = 0, I = 0, J = 0, K = 0;
};

// y = x rounded to a format, over D * B rows of n values.
struct Quantize {
  const void* x = nullptr;
  void* y = nullptr;
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  Format format;
  NoiseParams noise;
};

// ------------------------------------------------------------------------------------------------------- primitives
// On scalars; the vector levels overload them.

NK_HD double sub_rn(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dsub_rn(a, b);
#else
  return a - b;
#endif
}
NK_HD uint64_t float_bits(double a) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(a));
#else
  uint64_t u;
  std::memcpy(&u, &a, sizeof u);
  return u;
#endif
}
NK_HD double bits_double(uint64_t a) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(a));
#else
  double d;
  std::memcpy(&d, &a, sizeof d);
  return d;
#endif
}
// The bits that are set in both.
NK_HD float common_bits(float a, float b) { return bits_float(float_bits(a) & float_bits(b)); }
NK_HD double common_bits(double a, double b) { return bits_double(float_bits(a) & float_bits(b)); }
// A magnitude with the sign of another value.
NK_HD float with_sign(float magnitude, float v) {
  return bits_float(float_bits(magnitude) | (float_bits(v) & 0x80000000u));
}
NK_HD double with_sign(double magnitude, double v) {
  return bits_double(float_bits(magnitude) | (float_bits(v) & 0x8000000000000000u));
}
// 1 / e of a power of two between 2^-126 and 2^126.
NK_HD float inverse_of_power(float e) { return bits_float(2 * float_bits(1.0f) - float_bits(e)); }
NK_HD double inverse_of_power(double e) { return bits_double(2 * float_bits(1.0) - float_bits(e)); }
// x where a < b, else y.
template <class F>
NK_HD F where_less(F a, F b, F x, F y) {
  return a < b ? x : y;
}
// To a whole number: towards zero; to the nearest, ties to even.
#if defined(__CUDA_ARCH__)
NK_HD float whole_part(float a) { return truncf(a); }
NK_HD float nearest_whole(float a) { return rintf(a); }
NK_HD double whole_part(double a) { return trunc(a); }
NK_HD double nearest_whole(double a) { return rint(a); }
#else
NK_HD float whole_part(float a) { return std::trunc(a); }
NK_HD float nearest_whole(float a) { return std::nearbyint(a); }
NK_HD double whole_part(double a) { return std::trunc(a); }
NK_HD double nearest_whole(double a) { return std::nearbyint(a); }
#endif

// A raw word as a fraction in [0, 1), of its upper 24 bits.
struct Fraction {
  template <class F, class W>
  NK_HD static void sample(W w0, W w1, F& z0, F& z1) {
    z0 = mul_rn(int_to_float(w0 >> 8), splat<F>(0x1p-24f));
    z1 = mul_rn(int_to_float(w1 >> 8), splat<F>(0x1p-24f));
  }
};

// --------------------------------------------------------------------------------------------------------- rounding

// How a format's rounding is computed. kScaled is the definition; the others give the same values in fewer operations
// where they can, but for kBits, which is the definition where the format has the range of float32.
enum class Rule : int { kExact = 0, kScaled, kBits, kTruncate, kNearest, kNearestFlushed, kNearestBits, kFixed, kAny };

template <class C>
inline constexpr int kMantissa = sizeof(C) == 4 ? 23 : 52;

// 2^e, and the bits of the exponent field, as a value.
template <class C>
NK_HD C power_of_two(int e) {
  if constexpr (sizeof(C) == 4) {
    return bits_float(static_cast<uint32_t>(e + 127) << 23);
  } else {
    return bits_double(static_cast<uint64_t>(e + 1023) << 52);
  }
}
NK_HD float just_below(float a) { return bits_float(float_bits(a) - 1); }
NK_HD double just_below(double a) { return bits_double(float_bits(a) - 1); }
template <class C>
NK_HD C of_bits(uint64_t bits_from_the_top) {
  if constexpr (sizeof(C) == 4) {
    return bits_float(static_cast<uint32_t>(bits_from_the_top >> 32));
  } else {
    return bits_double(bits_from_the_top);
  }
}

// Rounding to a format of values of type C, with its constants.
template <class C>
struct Rounder {
  Rule rule = Rule::kExact;
  Format::Rounding rounding = Format::kTruncate;
  bool infinite = false;
  C largest = 0, cap = 0;    // cap: what magnitudes are cut to first, so that nothing overflows
  C highest = 0;             // kNearest: magnitudes above it become infinite
  C tiny = 0;                // smaller magnitudes count as zero
  C least = 0;               // the smallest normal number
  C steps = 0, unit = 0;     // of a binade: 2^bits, 2^-bits; of a fixed format likewise
  C spread = 0;              // kNearest: added to 2^e, makes the last bit that is kept the last one there is
  C exponent = 0, kept = 0;  // bits of the exponent; of the magnitude that truncation keeps
  int cut = 0;               // mantissa bits that are cut off

  Rounder() = default;
  NK_HD explicit Rounder(const Format& f) {
    if (!f.given) return;
    rounding = f.rounding;
    infinite = f.infinite;
    largest = static_cast<C>(f.largest);
    steps = power_of_two<C>(f.bits), unit = power_of_two<C>(-f.bits);
    if (f.fixed) {
      rule = Rule::kFixed;
      return;
    }
    cut = kMantissa<C> - f.bits;
    least = power_of_two<C>(f.least_exponent);
    tiny = f.subnormals ? C(0) : least;
    cap = infinite ? mul_rn(largest, C(2)) : largest;
    spread = power_of_two<C>(cut);
    exponent = of_bits<C>(sizeof(C) == 4 ? 0x7f80000000000000u : 0x7ff0000000000000u);
    kept = of_bits<C>(sizeof(C) == 4 ? uint64_t{0x7fffffffu & ~((uint64_t{1} << cut) - 1)} << 32
                                     : 0x7fffffffffffffffu & ~((uint64_t{1} << cut) - 1));
    const bool whole_range = sizeof(C) == 4 && f.least_exponent == -126;
    rule = whole_range ? Rule::kBits : Rule::kScaled;
    if (rounding == Format::kTruncate && (whole_range || !f.subnormals)) rule = Rule::kTruncate;
    if (rounding != Format::kNearest) return;
    // Half a step above the largest value is a tie, which goes to the even neighbour.
    const C step = mul_rn(larger(least, common_bits(largest, exponent)), unit);
    highest = add_rn(largest, mul_rn(step, C(0.5)));
    const C half = mul_rn(div_rn(largest, step), C(0.5));
    if (half != whole_part(half)) highest = just_below(highest);
    if (whole_range && f.subnormals) rule = Rule::kNearestBits;
    if (!whole_range && cut > 0) rule = f.subnormals ? Rule::kNearest : Rule::kNearestFlushed;
  }
};

// A whole number near the magnitude t.
template <class F>
NK_HD F to_whole(Format::Rounding rounding, F t, F u) {
  if (rounding == Format::kNearest) return nearest_whole(t);
  const F below = whole_part(t);
  if (rounding == Format::kTruncate) return below;
  return where_less(u, sub_rn(t, below), add_rn(below, splat<F>(1.0f)), below);
}

// v rounded by a rule; u: a fraction for stochastic rounding. F: lanes of C.
template <Rule R, class F, class C>
NK_HD F round_by(const Rounder<C>& c, F v, F u) {
  if constexpr (R == Rule::kExact) {
    return v;
  } else if constexpr (R == Rule::kAny) {
    switch (c.rule) {
      case Rule::kScaled:
        return round_by<Rule::kScaled>(c, v, u);
      case Rule::kBits:
        if constexpr (sizeof(C) == 4) return round_by<Rule::kBits>(c, v, u);
        return v;
      case Rule::kTruncate:
        return round_by<Rule::kTruncate>(c, v, u);
      case Rule::kNearest:
        return round_by<Rule::kNearest>(c, v, u);
      case Rule::kNearestFlushed:
        return round_by<Rule::kNearestFlushed>(c, v, u);
      case Rule::kNearestBits:
        if constexpr (sizeof(C) == 4) return round_by<Rule::kNearestBits>(c, v, u);
        return v;
      case Rule::kFixed:
        return round_by<Rule::kFixed>(c, v, u);
      default:
        return v;
    }
  } else {
    constexpr bool kByAdding = R == Rule::kNearest || R == Rule::kNearestFlushed;
    const F largest = splat<F>(c.largest);
    F m = abs_of(v);
    if constexpr (R == Rule::kFixed) {
      m = mul_rn(to_whole(c.rounding, mul_rn(m, splat<F>(c.steps)), u), splat<F>(c.unit));
      return with_sign(smaller(largest, m), v);
    } else if constexpr (R == Rule::kTruncate) {
      m = common_bits(v, splat<F>(c.kept));
    } else if constexpr (kByAdding) {
      const F whole = m;
      if (!c.infinite) m = smaller(largest, m);
      const F e = larger(splat<F>(c.least), common_bits(m, splat<F>(c.exponent))), more = mul_rn(e, splat<F>(c.spread));
      m = sub_rn(add_rn(m, more), more);
      if (c.infinite) m = where_less(splat<F>(c.highest), whole, splat<F>(kInfinity<C>), m);
    } else if constexpr (R == Rule::kNearestBits || R == Rule::kBits) {
      const auto bits = float_bits(m);
      using W = std::remove_const_t<decltype(bits)>;
      const W half = splat<W>(c.cut == 0 ? 0u : (1u << (c.cut - 1)) - 1u), one = splat<W>(1u);
      const W low = splat<W>((1u << c.cut) - 1u), all = splat<W>(0xffffffffu);
      if (R == Rule::kNearestBits || c.rounding == Format::kNearest) {
        // Of the rest that is cut off: more than a half, or a half and an odd bit above it. Infinity stays; a NaN too.
        const W odd = c.cut == 0 ? splat<W>(0u) : (bits >> c.cut) & one;
        const F up = bits_float((bits + odd + half) & (low ^ all));
        m = where_less(m, splat<F>(kInfinity<float>), up, m);
      } else {
        const F below = bits_float(bits & (low ^ all)), next = bits_float((bits & (low ^ all)) + splat<W>(1u << c.cut));
        const F rest = mul_rn(int_to_float(bits & low), splat<F>(power_of_two<float>(-c.cut)));
        const F up = c.rounding == Format::kStochastic ? where_less(u, rest, next, below) : below;
        m = where_less(m, splat<F>(kInfinity<float>), up, m);
      }
    } else {  // kScaled: in units of the step at v
      m = smaller(splat<F>(c.cap), m);
      const F e = larger(splat<F>(c.least), common_bits(m, splat<F>(c.exponent)));
      const F t = mul_rn(m, mul_rn(inverse_of_power(e), splat<F>(c.steps)));
      m = mul_rn(to_whole(c.rounding, t, u), mul_rn(e, splat<F>(c.unit)));
    }
    if constexpr (R != Rule::kNearest && R != Rule::kNearestBits) {
      m = where_less(m, splat<F>(c.tiny), splat<F>(C(0)), m);
    }
    if (kByAdding) return with_sign(m, v);
    if (!c.infinite) return with_sign(smaller(largest, m), v);
    return with_sign(where_less(largest, m, splat<F>(kInfinity<C>), m), v);
  }
}

// ------------------------------------------------------------------------------------------------------------ a step

// What steps may have beside product, sum and clamp.
enum More : unsigned { kLeaks = 1, kSynapse = 2, kRandom = 4, kTracks = 8, kEverything = 15 };

// The constants of all steps of a sum, for values of type C.
template <class C>
struct Steps {
  Rounder<C> product, sum;
  C low, high, leak, synapse_limit, synapse_decay, level;
  bool leaks, synapse, noisy, random_product, random_sum;

  NK_HD explicit Steps(const Serial& s)
      : product(s.product),
        sum(s.sum),
        low(static_cast<C>(s.low)),
        high(static_cast<C>(s.high)),
        leak(static_cast<C>(s.leak)),
        synapse_limit(static_cast<C>(s.synapse_limit)),
        synapse_decay(static_cast<C>(s.synapse_decay)),
        level(s.noisy ? checked_level(level_of_row(s.noise.add, static_cast<const C*>(s.noise.add.data))) : C(0)),
        leaks(s.leak != 1),
        synapse(s.synapse),
        noisy(s.noisy),
        random_product(s.product.given && s.product.rounding == Format::kStochastic),
        random_sum(s.sum.given && s.sum.rounding == Format::kStochastic) {}
};

// The state of a sum.
template <class F>
struct State {
  F v, plus, minus, last;
};

// One step. R: the rule of product and sum; position: in the order, as a value; random numbers are used where the steps
// have them.
template <Rule R, unsigned Has, class F, class C>
NK_HD void step(const Steps<C>& s, State<F>& state, F x, F w, F position, F for_product, F for_sum, F eps) {
  F p = round_by<R>(s.product, mul_rn(x, w), for_product);
  if constexpr ((Has & kSynapse) != 0) {
    if (Has != kEverything || s.synapse) {
      const F zero = splat<F>(C(0)), limit = splat<F>(s.synapse_limit), decay = splat<F>(s.synapse_decay);
      // larger(zero, p): p if it is NaN, and so for both.
      const F down = larger(zero, sub_rn(zero, p)), up = larger(zero, p);
      state.plus = smaller(limit, add_rn(mul_rn(decay, state.plus), up));
      state.minus = smaller(limit, add_rn(mul_rn(decay, state.minus), down));
      p = sub_rn(state.plus, state.minus);
    }
  }
  F v = state.v;
  if constexpr ((Has & kLeaks) != 0) {
    if (s.leaks) v = mul_rn(splat<F>(s.leak), v);
  }
  v = add_rn(v, p);
  if constexpr ((Has & kRandom) != 0) {
    if (s.noisy) v = fma_rn(splat<F>(s.level), eps, v);
  }
  v = round_by<R>(s.sum, v, for_sum);
  if constexpr ((Has & kTracks) != 0) {
    state.last = where_less(v, splat<F>(s.low), position, where_less(splat<F>(s.high), v, position, state.last));
  }
  state.v = smaller(splat<F>(s.high), larger(splat<F>(s.low), v));
}

// f.template operator()<R, Has>() for the steps of a sum: the common ones by themselves, the rest by what can do all
// (which serves float64 data, too: they are for reference).
template <class C, class Fn>
void visit_steps(const Serial& s, const Steps<C>& steps, Fn&& f) {
  const bool more = steps.noisy || s.track || steps.random_product || steps.random_sum;
  const bool exact = steps.product.rule == Rule::kExact && steps.sum.rule == Rule::kExact;
  if (!more && exact && !steps.synapse && !steps.leaks) return f.template operator()<Rule::kExact, 0>();
  if constexpr (sizeof(C) == 4) {
    if (!more && exact && !steps.synapse) return f.template operator()<Rule::kExact, kLeaks>();
    if (!more && exact) return f.template operator()<Rule::kExact, kSynapse | kLeaks>();
    if (!more && !steps.synapse && !steps.leaks && steps.product.rule == steps.sum.rule) {
      switch (steps.sum.rule) {
        case Rule::kTruncate:
          return f.template operator()<Rule::kTruncate, 0>();
        case Rule::kNearest:
          return f.template operator()<Rule::kNearest, 0>();
        case Rule::kNearestFlushed:
          return f.template operator()<Rule::kNearestFlushed, 0>();
        case Rule::kNearestBits:
          return f.template operator()<Rule::kNearestBits, 0>();
        case Rule::kFixed:
          return f.template operator()<Rule::kFixed, 0>();
        default:
          break;
      }
    }
  }
  return f.template operator()<Rule::kAny, kEverything>();
}

// Which element of which row of the noise the first step of an output has.
struct OutputPlace {
  int64_t row, element;
  NK_HD OutputPlace(const Serial& s, int64_t t, int64_t i, int64_t j) {
    const int64_t output = (t * s.I + i) * s.J + j;
    row = output / s.n;
    element = output % s.n * s.K;
  }
};

}  // namespace noisykernels
