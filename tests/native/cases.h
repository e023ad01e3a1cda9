// Random epilogues and what they must give, computed one value at a time in the plainest way. Shared by the native
// tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/launch.h"

namespace noisykernels::test {

// splitmix64: the same numbers on every machine and standard library.
struct Random {
  uint64_t state;
  uint64_t bits() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  float uniform() { return static_cast<float>(below(1 << 24)) * 0x1p-24f; }  // [0, 1), exact
};

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr DType kDType = DType::kFloat32;
  using Compute = float;
};
template <>
struct TypeOf<double> {
  static constexpr DType kDType = DType::kFloat64;
  using Compute = double;
};
template <>
struct TypeOf<BFloat16> {
  static constexpr DType kDType = DType::kBFloat16;
  using Compute = float;
  static constexpr int kExponentBits = 8, kMantissaBits = 7;
};
template <>
struct TypeOf<Float16> {
  static constexpr DType kDType = DType::kFloat16;
  using Compute = float;
  static constexpr int kExponentBits = 5, kMantissaBits = 10;
};
template <class T>
inline constexpr bool kIsHalf = sizeof(T) == 2;

template <class Fn>
void for_each_type(Fn&& f) {
  f.template operator()<float>();
  f.template operator()<double>();
  f.template operator()<BFloat16>();
  f.template operator()<Float16>();
}

// ------------------------------------------------------------------------------------------- half precision by
// integers

// Value of a half, from its fields.
template <class T>
double widen_by_fields(T h) {
  constexpr int kM = TypeOf<T>::kMantissaBits, kBias = (1 << (TypeOf<T>::kExponentBits - 1)) - 1;
  const int exponent = h.bits >> kM & ((1 << TypeOf<T>::kExponentBits) - 1), mantissa = h.bits & ((1 << kM) - 1);
  double v = std::ldexp(mantissa, 1 - kBias - kM);
  if (exponent == 2 * kBias + 1) {
    v = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  } else if (exponent > 0) {
    v = std::ldexp(mantissa + (1 << kM), exponent - kBias - kM);
  }
  return h.bits & 0x8000 ? -v : v;
}

// To the nearest half, ties to even, by integer arithmetic on the significand. NaN: 0xffff, to be compared as a NaN
// only.
template <class T>
uint16_t narrow_by_integers(float value) {
  constexpr int kM = TypeOf<T>::kMantissaBits, kBias = (1 << (TypeOf<T>::kExponentBits - 1)) - 1;
  uint32_t u;
  std::memcpy(&u, &value, sizeof u);
  const int exponent = u >> 23 & 0xff;
  const auto sign = static_cast<uint16_t>(u >> 16 & 0x8000);
  if (value != value) return 0xffff;
  const uint64_t significand = exponent ? (u & 0x7fffff) | 0x800000 : u & 0x7fffff;
  const int power = (exponent ? exponent : 1) - 127 - 23;  // value = significand 2^power
  int target = std::max(1 - kBias, power + 23) - kM;       // and is rounded to a multiple of 2^target
  const int shift = std::min(target - power, 40);
  uint64_t rounded = significand >> shift;
  const uint64_t rest = significand & ((uint64_t{1} << shift) - 1), half = uint64_t{1} << (shift - 1);
  if (shift > 0 && (rest > half || (rest == half && rounded % 2 == 1))) ++rounded;
  if (rounded >> (kM + 1)) rounded >>= 1, ++target;  // it was rounded up to the next power of two
  const bool normal = rounded >> kM;
  const uint64_t field = normal ? target + kM + kBias : 0;
  if (exponent == 255 || field >= (1 << TypeOf<T>::kExponentBits) - 1) {
    return sign | static_cast<uint16_t>(((1 << TypeOf<T>::kExponentBits) - 1) << kM);
  }
  return sign | static_cast<uint16_t>(field << kM | (rounded & ((1 << kM) - 1)));
}

template <class T>
typename TypeOf<T>::Compute widen(T v) {
  if constexpr (kIsHalf<T>) {
    return static_cast<float>(widen_by_fields(v));
  } else {
    return v;
  }
}
template <class T>
T narrow(typename TypeOf<T>::Compute v) {
  if constexpr (kIsHalf<T>) {
    return {narrow_by_integers<T>(v)};
  } else {
    return v;
  }
}

// Equal bits; a NaN equals every NaN, since machines differ in the sign and payload of the NaN they make.
template <class T>
bool same(T a, T b) {
  const auto wa = widen(a), wb = widen(b);
  if (wa != wa || wb != wb) return wa != wa && wb != wb;
  return std::memcmp(&a, &b, sizeof a) == 0;
}

// -------------------------------------------------------------------------------------------------------- the oracle

template <class Kind>
void sample_block(const uint32_t w[4], float z[4]) {
  Kind::sample(w[0], w[1], z[0], z[1]);
  Kind::sample(w[2], w[3], z[2], z[3]);
}

// One eps, from a whole counter.
inline float eps_at(int kind, int64_t seed, uint32_t site, Operand operand, uint32_t draw, uint32_t row,
                    int64_t element) {
  uint32_t c[4] = {static_cast<uint32_t>(element / 4), row, draw, counter_word3(site, operand)};
  float z[4];
  philox(RoundKeys<uint32_t>(static_cast<uint64_t>(seed)), c);
  Kinds::visit(kind, [&]<class Kind>() { sample_block<Kind>(c, z); });
  return z[element % 4];
}

template <class C>
C formula(Mode mode, C x, C a, C m, C ea, C em) {
  const auto fma = [](C p, C q, C r) { return std::fma(p, q, r); };
  switch (mode) {
    case Mode::kEps:
      return ea;
    case Mode::kAdd:
      return fma(a, ea, x);
    case Mode::kMul:
      return x * fma(m, em, C(1));
    case Mode::kMulAdd:
      return fma(a, ea, x * fma(m, em, C(1)));
    case Mode::kAddMul:
      return fma(a, ea, x) * fma(m, em, C(1));
    case Mode::kFold:
      break;
  }
  const C mx = std::fabs(m * x), h = mx > a ? mx : a, q = h > 0 ? (mx < a ? mx : a) / h : C(0);
  return fma(h * std::sqrt(fma(q, q, C(1))), ea, x);
}

// The value an epilogue computes for memory position `item` of output row i, before it is rounded to the type of the
// data.
template <class T, class C = typename TypeOf<T>::Compute>
C expected(const Epilogue& e, int64_t i, int64_t item) {
  const NoiseParams& p = e.noise;
  const C nan = std::numeric_limits<C>::quiet_NaN();
  const int64_t d = i / p.B, b = i % p.B;
  const int64_t draw = p.draws ? p.draws[d] : p.first_draw, row = p.rows ? p.rows[b] : p.first_row + b;
  const auto level = [&](const Level& l) {
    C v = static_cast<C>(l.one != nullptr ? *l.one : l.value);
    if (l.data) v = static_cast<const C*>(l.data)[d * l.draw_stride + b * l.row_stride + item * l.item_stride];
    return v >= 0 && v <= std::numeric_limits<C>::max() ? v : nan;
  };
  const int64_t element = item % e.channels * (e.n / e.channels) + item / e.channels;
  const auto eps = [&](Operand o) -> C {
    if (draw < 0 || draw >> 32 || row < 0 || row >> 32) return nan;
    return eps_at(p.kind, p.seed ? *p.seed : p.seed_value, p.site, o, static_cast<uint32_t>(draw),
                  static_cast<uint32_t>(row), element);
  };
  C x = 0, a = 0, m = 0, ea = 0, em = 0;
  if (p.mode != Mode::kEps) x = widen(static_cast<const T*>(e.x)[(e.shared ? b : i) * e.n + item]);
  if (e.bias) x += widen(static_cast<const T*>(e.bias)[item % e.bias_size]);
  if (draws_add(p.mode)) ea = eps(p.operand);
  if (draws_mul(p.mode)) em = eps(p.operand == Operand::kAdd ? Operand::kMul : p.operand);
  if (has_add_level(p.mode)) a = level(p.add);
  if (has_mul_level(p.mode)) m = level(p.mul);
  C v = a != a || m != m ? nan : formula(p.mode, x, a, m, ea, em);
  return e.relu && v < 0 ? C(0) : v;
}

// --------------------------------------------------------------------------------------------------------- test cases

// An epilogue with the memory that it points to.
template <class T>
struct Case {
  using C = typename TypeOf<T>::Compute;
  std::vector<T> x, bias;
  std::vector<C> add, mul;
  std::vector<int64_t> draws, rows;
  int64_t seed = 0;
  double one[2] = {};  // the levels, where they are one number each
  enum class Numbers { kInRows, kRead, kByValue } numbers = Numbers::kInRows;  // where seed and such levels stand
  Epilogue e;

  int64_t total() const { return e.noise.D * e.noise.B * e.n; }
  bool whole_rows() const { return e.channels > 1 || cpu::short_rows(e.n); }
  // Seed and levels where they stand, given pointers to them in some memory.
  void place(NoiseParams& p, const int64_t* seed_there, const double* ones, const C* add_there, const C* mul_there) {
    const bool by_value = numbers == Numbers::kByValue;
    p.seed = by_value ? nullptr : seed_there, p.seed_value = by_value ? seed : 0;
    for (int k = 0; k < 2; ++k) {
      Level& l = k == 0 ? p.add : p.mul;
      const std::vector<C>& rows_of_it = k == 0 ? add : mul;
      const bool alone = rows_of_it.size() == 1 && l.draw_stride == 0 && l.row_stride == 0 && l.item_stride == 0;
      if (alone) one[k] = static_cast<double>(rows_of_it[0]);
      l.data = alone && numbers != Numbers::kInRows ? nullptr : (k == 0 ? add_there : mul_there);
      l.one = alone && numbers == Numbers::kRead ? ones + k : nullptr;
      l.value = alone && by_value ? one[k] : 0;
    }
  }
  void point() {
    e.x = x.data(), e.bias = bias.empty() ? nullptr : bias.data(), e.bias_size = static_cast<int64_t>(bias.size());
    place(e.noise, &seed, one, add.data(), mul.data());
    e.noise.draws = draws.empty() ? nullptr : draws.data(), e.noise.rows = rows.empty() ? nullptr : rows.data();
  }
};

inline int64_t random_id(Random& r, bool bad) {
  if (bad && r.one_in(3)) return r.one_in(2) ? -1 - r.below(9) : (int64_t{1} << 32) + r.below(9);
  return r.one_in(4) ? 0xffffffff - r.below(3) : r.one_in(2) ? r.below(100) : r.below(int64_t{1} << 32);
}

template <class C>
C random_level(Random& r, bool bad) {
  const C bads[] = {std::numeric_limits<C>::quiet_NaN(), std::numeric_limits<C>::infinity(), C(-1)};
  if (bad && r.one_in(4)) return bads[r.below(3)];
  return r.one_in(6) ? C(0) : C(r.uniform()) * (r.one_in(4) ? C(30) : C(0.5));
}

template <class C>
Level random_strides(Random& r, int64_t D, int64_t B, int64_t n, bool bad, std::vector<C>& data) {
  Level l;
  const int64_t items = r.one_in(3) ? n : 1;
  l.item_stride = items > 1 || (n == 1 && r.one_in(2));
  const bool per_row = r.one_in(2), per_draw = r.one_in(2);
  l.row_stride = per_row ? items : 0;
  l.draw_stride = per_draw ? items * (per_row ? B : 1) : 0;
  data.resize(static_cast<size_t>(items * (per_row ? B : 1) * (per_draw ? D : 1)));
  for (C& v : data) v = random_level<C>(r, bad);
  return l;
}

template <class T>
T random_value(Random& r, bool special) {
  using C = typename TypeOf<T>::Compute;
  const C inf = std::numeric_limits<C>::infinity();
  const C specials[] = {0,       C(-0.0), inf,       -inf,    std::numeric_limits<C>::quiet_NaN(),
                        C(1e-6), C(1e30), C(-65000), C(1e-41)};
  if (special && r.one_in(5)) return narrow<T>(specials[r.below(9)]);
  return narrow<T>((C(r.uniform()) - C(0.5)) * (r.one_in(8) ? C(4096) : C(4)));
}

// A random case with rows of n values. `hostile`: bad ids and levels, and values that are not finite, among the others.
template <class T>
Case<T> random_case(Random& r, Mode mode, int kind, int64_t n, bool hostile) {
  using C = typename TypeOf<T>::Compute;
  Case<T> c;
  Epilogue& e = c.e;
  NoiseParams& p = e.noise;
  e.dtype = TypeOf<T>::kDType, e.n = n, e.shared = r.one_in(3), e.relu = r.one_in(2);
  p.D = 1 + r.below(3), p.B = 1 + r.below(n > 600 ? 3 : 9), p.mode = mode, p.kind = kind;
  p.site = static_cast<uint32_t>(r.below(1 << 24)),
  p.operand = static_cast<Operand>(r.below(static_cast<int>(Operand::kCount)));
  c.seed = static_cast<int64_t>(r.bits());
  if (n > 1 && r.one_in(3)) {
    for (e.channels = 1 + r.below(n); n % e.channels != 0;) --e.channels;
  }
  c.x.resize(static_cast<size_t>((e.shared ? 1 : p.D) * p.B * n));
  for (T& v : c.x) v = random_value<T>(r, hostile);
  if (r.one_in(2))
    c.bias.resize(static_cast<size_t>(r.one_in(3) ? n : 1 + r.below(r.one_in(2) ? std::min<int64_t>(n, 3) : n)));
  for (T& v : c.bias) v = random_value<T>(r, false);
  if (r.one_in(2) || p.D > 1) c.draws.resize(static_cast<size_t>(p.D));
  for (int64_t& v : c.draws) v = random_id(r, hostile);
  if (r.one_in(2)) c.rows.resize(static_cast<size_t>(p.B));
  for (int64_t& v : c.rows) v = random_id(r, hostile);
  if (c.draws.empty()) p.first_draw = random_id(r, hostile);
  c.numbers = static_cast<typename Case<T>::Numbers>(r.below(3));
  p.first_row = random_id(r, hostile) - (hostile ? 0 : p.B);
  if (p.first_row < 0 && !hostile) p.first_row = 0;
  p.add = random_strides<C>(r, p.D, p.B, n, hostile, c.add);
  p.mul = random_strides<C>(r, p.D, p.B, n, hostile, c.mul);
  c.point();
  return c;
}

template <class T>
struct PoolCase : Case<T> {
  PoolEpilogue pool;
  PoolCase(Random& r, Mode mode, int kind) : PoolCase(r, mode, kind, r.one_in(3)) {}
  PoolCase(Random& r, Mode mode, int kind, bool by_twos) {
    PoolEpilogue& p = pool;
    p.planes = 1 + r.below(5), p.height = 1 + r.below(20), p.width = 1 + r.below(40);
    p.kernel_h = 1 + r.below(std::min<int64_t>(4, p.height)), p.kernel_w = r.one_in(2) ? 2 : 1 + r.below(4);
    p.kernel_w = std::min(p.kernel_w, p.width);
    p.stride_h = 1 + r.below(3), p.stride_w = r.one_in(2) ? 2 : 1 + r.below(3);
    p.pad_h = r.below(p.kernel_h / 2 + 1), p.pad_w = r.one_in(2) ? 0 : r.below(p.kernel_w / 2 + 1);
    if (by_twos) {  // and lines of whole blocks
      p.height = 2 + r.below(12), p.width = 4 * (1 + r.below(8));
      p.kernel_h = p.kernel_w = p.stride_h = p.stride_w = 2, p.pad_h = p.pad_w = 0;
    }
    p.out_height = (p.height + 2 * p.pad_h - p.kernel_h) / p.stride_h + 1;
    p.out_width = (p.width + 2 * p.pad_w - p.kernel_w) / p.stride_w + 1;
    static_cast<Case<T>&>(*this) = random_case<T>(r, mode, kind, p.planes * p.height * p.width, r.one_in(3));
    this->e.channels = 1;
    this->point();
    p.noise = this->e;
  }
  int64_t out_plane() const { return pool.out_height * pool.out_width; }
  int64_t out_total() const { return this->e.noise.D * this->e.noise.B * pool.planes * out_plane(); }
};

}  // namespace noisykernels::test
