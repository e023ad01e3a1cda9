// Vector lanes for the x86 levels: the primitives of noise.h on groups of N registers. A step runs over all registers
// of a group before the next step begins, so that independent chains hide each other's latency. A level's file defines
// NK_BYTES, the size of a register, NK_WORDS, its type for integer intrinsics, NK_MM(name), the intrinsic of that
// name, and NK_ROUND(ps), the one that rounds to whole numbers. It includes this inside its region compiled for the
// wider set, before noise.h's templates are used; everything here is always inlined, so that no copy compiled for one
// level can serve another. Includes nothing itself.
#pragma once

namespace noisykernels {

using FloatRegister = float __attribute__((vector_size(NK_BYTES)));
using DoubleRegister = double __attribute__((vector_size(NK_BYTES)));
using IntRegister = uint32_t __attribute__((vector_size(NK_BYTES)));
// A Philox word in the low half of each lane, garbage above it.
using WordRegister = uint64_t __attribute__((vector_size(NK_BYTES)));

template <class V, int N = 1>
struct Group {
  V v[N];
};
template <int N>
using Floats = Group<FloatRegister, N>;
template <int N>
using Ints = Group<IntRegister, N>;
template <int N>
using Doubles = Group<DoubleRegister, N>;
template <int N>
using PhiloxWords = Group<WordRegister, N>;

// f(i) of every register.
template <class V, int N, class Fn>
NK_HD Group<V, N> each(Fn f) {
  Group<V, N> g;
  NK_UNROLL
  for (int i = 0; i < N; ++i) g.v[i] = f(i);
  return g;
}

NK_HD FloatRegister broadcast(FloatRegister, float s) { return NK_MM(set1_ps)(s); }
NK_HD DoubleRegister broadcast(DoubleRegister, double s) { return NK_MM(set1_pd)(s); }
NK_HD DoubleRegister broadcast(DoubleRegister, float s) { return NK_MM(set1_pd)(s); }
NK_HD IntRegister broadcast(IntRegister, uint32_t s) { return IntRegister{} + s; }
NK_HD WordRegister broadcast(WordRegister, uint32_t s) { return WordRegister{} + s; }

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
  return NK_EACH(IntRegister, a.v[i] & b.v[i]);
}
template <int N>
NK_HD Ints<N> operator-(const Ints<N>& a, const Ints<N>& b) {
  return NK_EACH(IntRegister, a.v[i] - b.v[i]);
}
template <int N>
NK_HD Ints<N> operator+(const Ints<N>& a, const Ints<N>& b) {
  return NK_EACH(IntRegister, a.v[i] + b.v[i]);
}
template <int N>
NK_HD Ints<N> operator<<(const Ints<N>& a, int s) {
  return NK_EACH(IntRegister, a.v[i] << s);
}
template <int N>
NK_HD Ints<N> operator>>(const Ints<N>& a, int s) {
  return NK_EACH(IntRegister, a.v[i] >> s);
}
template <int N>
NK_HD PhiloxWords<N> mul_wide(const PhiloxWords<N>& a, uint32_t m) {
  return NK_EACH(WordRegister, NK_MM(mul_epu32)((NK_WORDS)a.v[i], (NK_WORDS)(WordRegister{} + m)));
}
template <int N>
NK_HD PhiloxWords<N> high_word(const PhiloxWords<N>& a) {
  return NK_EACH(WordRegister, a.v[i] >> 32);
}
template <int N>
NK_HD PhiloxWords<N> low_word(const PhiloxWords<N>& a) {
  return a;
}

// Floats.
template <int N>
NK_HD Floats<N> int_to_float(const Ints<N>& a) {
  return NK_EACH(FloatRegister, NK_MM(cvtepi32_ps)((NK_WORDS)a.v[i]));
}
template <int N>
NK_HD Ints<N> float_bits(const Floats<N>& a) {
  return NK_EACH(IntRegister, a.v[i]);
}
template <int N>
NK_HD Floats<N> bits_float(const Ints<N>& a) {
  return NK_EACH(FloatRegister, a.v[i]);
}
template <int N>
NK_HD Floats<N> fma_rn(const Floats<N>& a, const Floats<N>& b, const Floats<N>& c) {
  return NK_EACH(FloatRegister, NK_MM(fmadd_ps)(a.v[i], b.v[i], c.v[i]));
}
template <int N>
NK_HD Floats<N> fnma_rn(const Floats<N>& a, const Floats<N>& b, const Floats<N>& c) {
  return NK_EACH(FloatRegister, NK_MM(fnmadd_ps)(a.v[i], b.v[i], c.v[i]));
}
template <int N>
NK_HD Doubles<N> fma_rn(const Doubles<N>& a, const Doubles<N>& b, const Doubles<N>& c) {
  return NK_EACH(DoubleRegister, NK_MM(fmadd_pd)(a.v[i], b.v[i], c.v[i]));
}
template <class V, int N>
NK_HD Group<V, N> mul_rn(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] * b.v[i]);
}
template <class V, int N>
NK_HD Group<V, N> sub_rn(const Group<V, N>& a, const Group<V, N>& b) {
  return NK_EACH(V, a.v[i] - b.v[i]);
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
#define NK_BOTH(F, ps, Register, Bits)                                                               \
  template <int N>                                                                                   \
  NK_HD F<N> sqrt_rn(const F<N>& a) {                                                                \
    return NK_EACH(Register, NK_MM(sqrt_##ps)(a.v[i]));                                              \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> abs_of(const F<N>& a) {                                                                 \
    return NK_EACH(Register, (Bits)a.v[i] << 1 >> 1);                                                \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> larger(const F<N>& a, const F<N>& b) {                                                  \
    return NK_EACH(Register, NK_MM(max_##ps)(a.v[i], b.v[i]));                                       \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> smaller(const F<N>& a, const F<N>& b) {                                                 \
    return NK_EACH(Register, NK_MM(min_##ps)(a.v[i], b.v[i]));                                       \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> max_or_nan(const F<N>& a, const F<N>& b) {                                              \
    return NK_EACH(Register, a.v[i] != a.v[i] ? a.v[i] : (Register)NK_MM(max_##ps)(a.v[i], b.v[i])); \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> common_bits(const F<N>& a, const F<N>& b) {                                             \
    return NK_EACH(Register, (Bits)a.v[i] & (Bits)b.v[i]);                                           \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> with_sign(const F<N>& magnitude, const F<N>& v) {                                       \
    const Register sign = -Register{};                                                               \
    return NK_EACH(Register, (Bits)magnitude.v[i] | ((Bits)v.v[i] & (Bits)sign));                    \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> inverse_of_power(const F<N>& e) {                                                       \
    const Register one = Register{} + 1;                                                             \
    return NK_EACH(Register, (Bits)one + (Bits)one - (Bits)e.v[i]);                                  \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> where_less(const F<N>& a, const F<N>& b, const F<N>& x, const F<N>& y) {                \
    return NK_EACH(Register, a.v[i] < b.v[i] ? x.v[i] : y.v[i]);                                     \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> whole_part(const F<N>& a) {                                                             \
    return NK_EACH(Register, NK_ROUND(ps)(a.v[i], _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC));          \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> nearest_whole(const F<N>& a) {                                                          \
    return NK_EACH(Register, NK_ROUND(ps)(a.v[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));   \
  }                                                                                                  \
  template <int N>                                                                                   \
  NK_HD F<N> where_positive(const F<N>& c, const F<N>& a) {                                          \
    return NK_EACH(Register, c.v[i] > 0 ? a.v[i] : Register{});                                      \
  }
NK_BOTH(Floats, ps, FloatRegister, IntRegister)
NK_BOTH(Doubles, pd, DoubleRegister, WordRegister)
#undef NK_BOTH
#undef NK_EACH

namespace {  // each level keeps its own copies

// What the levels of every width do alike. Level derives from this and says how 16 blocks lie in its Words, by load()
// and store(): kLanes blocks make a group, [word][block].
template <class Level>
struct X86 {
  using Key = PhiloxWords<1>;
  static constexpr int kStep = 16, kLanes = NK_BYTES / 4, kSquare = 8;

  static NK_HD void words_listed(const RoundKeys<Key>& keys, const RowConstants<Key>& constants, const uint32_t* block,
                                 uint32_t* w) {
    typename Level::Words c[4];
    philox_in_row(keys, constants, Level::load(block), c);
    Level::store(c, w);
  }
  static NK_HD void words(const RoundKeys<Key>& keys, const uint32_t* block, const uint32_t* row, const uint32_t* draw,
                          uint32_t word3, uint32_t* w) {
    typename Level::Words c[4] = {Level::load(block), Level::load(row), Level::load(draw),
                                  splat<typename Level::Words>(word3)};
    philox(keys, c);
    Level::store(c, w);
  }

  // One group of blocks at a time, both pairs of words of all of them.
  template <class Kind>
  static NK_HD void sample(const uint32_t* words, float* out) {
    Ints<2> w[2];  // register h: pair h
    Floats<2> z[2];
    NK_UNROLL
    for (int k = 0; k < 4; ++k) {
      w[k % 2].v[k / 2] = (IntRegister) * reinterpret_cast<const NK_WORDS*>(words + kLanes * k);
    }
    Kind::sample(w[0], w[1], z[0], z[1]);
    const FloatRegister t0 = NK_MM(unpacklo_ps)(z[0].v[0], z[1].v[0]), t1 = NK_MM(unpackhi_ps)(z[0].v[0], z[1].v[0]);
    const FloatRegister t2 = NK_MM(unpacklo_ps)(z[0].v[1], z[1].v[1]), t3 = NK_MM(unpackhi_ps)(z[0].v[1], z[1].v[1]);
    NK_MM(storeu_ps)(out, NK_MM(shuffle_ps)(t0, t2, 0x44));
    NK_MM(storeu_ps)(out + kLanes, NK_MM(shuffle_ps)(t0, t2, 0xEE));
    NK_MM(storeu_ps)(out + 2 * kLanes, NK_MM(shuffle_ps)(t1, t3, 0x44));
    NK_MM(storeu_ps)(out + 3 * kLanes, NK_MM(shuffle_ps)(t1, t3, 0xEE));
  }

  // By registers of 256 bits whatever the level's width.
  static NK_HD void copy(float* to, const float* from, int n) {
    for (int i = 0; i < n; i += 8) _mm256_storeu_ps(to + i, _mm256_loadu_ps(from + i));
  }

  // to[p * stride + c] = z[first[c] + p] for eight c and eight p.
  static NK_HD void transpose(const float* z, const int* first, float* to, int64_t stride) {
    __m256 r[8], t[8];
    NK_UNROLL
    for (int c = 0; c < 4; ++c) {  // rows c and c + 4 in the halves, 4 positions at a time
      const float *low = z + first[c], *high = z + first[c + 4];
      r[c] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
      r[c + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
    }
    NK_UNROLL
    for (int k = 0; k < 8; k += 4) {
      t[k] = _mm256_unpacklo_ps(r[k], r[k + 1]), t[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
      t[k + 2] = _mm256_unpacklo_ps(r[k + 2], r[k + 3]), t[k + 3] = _mm256_unpackhi_ps(r[k + 2], r[k + 3]);
      _mm256_storeu_ps(to + k * stride, _mm256_shuffle_ps(t[k], t[k + 2], 0x44));
      _mm256_storeu_ps(to + (k + 1) * stride, _mm256_shuffle_ps(t[k], t[k + 2], 0xEE));
      _mm256_storeu_ps(to + (k + 2) * stride, _mm256_shuffle_ps(t[k + 1], t[k + 3], 0x44));
      _mm256_storeu_ps(to + (k + 3) * stride, _mm256_shuffle_ps(t[k + 1], t[k + 3], 0xEE));
    }
  }
};

// What their lanes do alike, of floats and of doubles.
template <class C>
struct X86Lanes {
  static constexpr int kWidth = NK_BYTES / sizeof(C);
  using V = std::conditional_t<sizeof(C) == 4, Floats<1>, Doubles<1>>;
  static NK_HD V splat(C v) { return noisykernels::splat<V>(v); }
  template <class T>
  static NK_HD C widen(T v) {
    return widen_value(v);
  }
  template <class T>
  static NK_HD T narrow(C v) {
    return narrow_value<T>(v);
  }
};

}  // namespace
}  // namespace noisykernels
