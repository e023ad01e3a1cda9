// Random roundings to number formats, serial sums and their gradients, and what they must give, computed one value at a
// time in the plainest way: nothing here is shared with serial.h but the structs. For the native tests.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>

#include "pairwise.h"

namespace noisykernels::test {

// ----------------------------------------------------------------------------------------------------------- formats

inline Format float_format(int mantissa, int exponent, Format::Rounding rounding, bool subnormals, bool infinite,
                           double largest = 0, int bias = INT32_MAX) {
  if (bias == INT32_MAX) bias = (1 << (exponent - 1)) - 1;
  const int highest = std::min((1 << exponent) - (infinite ? 2 : 1) - bias, 127);
  Format f;
  f.given = true, f.rounding = rounding, f.bits = mantissa, f.least_exponent = 1 - bias;
  f.largest = largest > 0 ? largest : std::ldexp(2 - std::ldexp(1, -mantissa), highest);
  f.subnormals = subnormals, f.infinite = infinite;
  return f;
}

inline Format fixed_format(int left, int right, Format::Rounding rounding) {
  Format f;
  f.given = f.fixed = f.subnormals = true, f.rounding = rounding, f.bits = right;
  f.largest = std::ldexp(1, left) - std::ldexp(1, -right);
  return f;
}

inline constexpr auto kTruncate = Format::kTruncate, kNearest = Format::kNearest, kStochastic = Format::kStochastic;

// Of every way to round, and the ends of what formats may be. The first is none.
template <class C>
std::vector<Format> formats() {
  std::vector<Format> list = {
      {},
      float_format(7, 6, kTruncate, false, false),
      float_format(7, 8, kTruncate, true, false),
      float_format(2, 5, kTruncate, true, true),
      float_format(23, 5, kTruncate, false, true),
      float_format(10, 5, kNearest, true, true),            // IEEE half
      float_format(3, 4, kNearest, true, false, 448),       // fp8_e4m3
      float_format(10, 5, kNearest, false, false),          //
      float_format(7, 8, kNearest, true, true),             // bfloat16
      float_format(5, 8, kNearest, false, false),           //
      float_format(23, 8, kNearest, true, true),            // float32
      float_format(23, 7, kNearest, true, true),            //
      float_format(3, 4, kStochastic, true, false),         //
      float_format(4, 5, kStochastic, false, true),         //
      float_format(7, 8, kStochastic, true, true),          //
      float_format(23, 8, kStochastic, false, false),       //
      float_format(1, 2, kNearest, true, true, 0, -99),     // of the largest values
      float_format(2, 3, kTruncate, false, false, 0, 125),  // and the least ones
      fixed_format(8, 8, kTruncate),
      fixed_format(0, 6, kNearest),
      fixed_format(3, 6, kStochastic),
      fixed_format(24, 0, kNearest),
  };
  if (sizeof(C) == 8) list.push_back(fixed_format(30, 23, kStochastic)), list.push_back(fixed_format(0, 53, kNearest));
  return list;
}

// Any valid format.
template <class C>
Format random_format(Random& r) {
  const auto rounding = static_cast<Format::Rounding>(r.below(3));
  if (r.one_in(4)) {
    const int bits = 1 + static_cast<int>(r.below(sizeof(C) == 8 ? 53 : 24)),
              right = static_cast<int>(r.below(bits + 1));
    return fixed_format(bits - right, right, rounding);
  }
  const int mantissa = 1 + static_cast<int>(r.below(23)), exponent = 2 + static_cast<int>(r.below(7));
  const bool infinite = r.one_in(2);
  // The highest exponent is at most 103, the least step at least 2^-126; or all is as in float32.
  const int low = (1 << exponent) - (infinite ? 2 : 1) - 103, high = 127 - mantissa;
  const int bias = low > high || (exponent == 8 && r.one_in(2))
                       ? INT32_MAX
                       : low + static_cast<int>(r.below(std::min(high - low + 1, 1 << exponent)));
  Format f = float_format(mantissa, bias == INT32_MAX ? 8 : exponent, rounding, r.one_in(2), infinite, 0, bias);
  if (r.one_in(3)) {  // a lower largest value: in the same binade, a lower one, or among the subnormals
    int exponent_of_it = std::ilogb(f.largest);
    if (r.one_in(2)) exponent_of_it -= static_cast<int>(r.below(exponent_of_it - f.least_exponent + 1));
    const double step = std::ldexp(1, exponent_of_it - mantissa), codes = std::ldexp(1, mantissa);
    f.largest = step * (codes + static_cast<double>(r.below(int64_t{1} << mantissa)));
    if (f.subnormals && r.one_in(3)) {
      f.largest =
          std::ldexp(1 + static_cast<double>(r.below((int64_t{1} << mantissa) - 1)), f.least_exponent - mantissa);
    }
  }
  return f;
}

// v rounded to a format; u: the fraction of stochastic rounding. In float64, which holds every number in between.
inline double rounded(const Format& f, double v, double u) {
  if (!f.given || v != v) return v;
  const double m = std::fabs(v);
  if (m == 0) return v;
  // A whole number of steps of 2^unit.
  const int unit = f.fixed ? -f.bits : std::max(std::isinf(m) ? 1024 : std::ilogb(m), f.least_exponent) - f.bits;
  double result = m;
  if (!std::isinf(m)) {
    const double steps = std::ldexp(m, -unit), below = std::floor(steps), rest = steps - below;
    bool up = false;
    if (f.rounding == kNearest) up = rest > 0.5 || (rest == 0.5 && std::fmod(below, 2) == 1);
    if (f.rounding == kStochastic) up = u < rest;
    result = std::ldexp(up ? below + 1 : below, unit);
  }
  if (!f.fixed && !f.subnormals && result < std::ldexp(1, f.least_exponent)) result = 0;
  if (result > f.largest) result = f.infinite ? std::numeric_limits<double>::infinity() : f.largest;
  return std::copysign(result, v);
}

// The fraction that an element of a stream rounds by.
inline double fraction_at(int64_t seed, uint32_t site, Operand operand, uint32_t draw, uint32_t row, int64_t element) {
  uint32_t c[4] = {static_cast<uint32_t>(element / 4), row, draw, counter_word3(site, operand)};
  philox(RoundKeys<uint32_t>(static_cast<uint64_t>(seed)), c);
  return std::ldexp(static_cast<double>(c[element % 4] >> 8), -24);
}

// A value where a format has its edges: ties and their neighbours, powers of two, around the least and largest values.
template <class C>
C value_near(Random& r, const Format& f, bool special) {
  const C inf = std::numeric_limits<C>::infinity();
  C nan;  // all of its bits are set: rounding those up would make it zero
  std::memset(&nan, 0xff, sizeof nan);
  if (r.one_in(2)) nan = std::copysign(nan, C(1));
  const C specials[] = {
      0, C(-0.0), inf, -inf, nan, std::numeric_limits<C>::max(), std::numeric_limits<C>::denorm_min()};
  if (special && r.one_in(30)) return specials[r.below(7)];
  const int M = f.given ? f.bits : 10, low = f.fixed ? -M - 3 : f.given ? f.least_exponent - M - 3 : -4;
  const int high = f.given ? std::ilogb(f.largest) + 2 : 4;
  const int e = r.one_in(3) ? low + static_cast<int>(r.below(high - low + 1))
                            : std::clamp(static_cast<int>(r.below(9)) - 5, low, high);
  // One and a few more bits than the format has, or a quarter, half and three quarters of a step, or a hair beside.
  const int bits = f.fixed ? std::clamp(e + M, 0, 50) : M;
  double v = 1 + std::ldexp(static_cast<double>(r.below((int64_t{1} << bits) * 4)), -bits - 2);
  if (r.one_in(3)) v += std::ldexp(static_cast<double>(r.below(3) - 1), sizeof(C) == 8 ? -50 : -23);
  if (r.one_in(4)) v = 1 + std::ldexp(static_cast<double>(r.below(int64_t{1} << 52)), -52);
  v = std::ldexp(v, e);
  if (f.given && r.one_in(20)) v = f.largest * (r.one_in(2) ? 1 + std::ldexp(r.one_in(2) ? 1 : 3, -M - 3) : 1);
  return static_cast<C>(r.one_in(2) ? v : -v);
}

// ------------------------------------------------------------------------------------------------------------ a step

// The ids of a row of outputs, as ids_of in rows.h has them.
struct RowIds {
  uint32_t row = 0, draw = 0;
  bool good = true;
  RowIds(const NoiseParams& p, int64_t d, int64_t b) {
    const int64_t draw_id = p.draws ? p.draws[d] : p.first_draw, row_id = p.rows ? p.rows[b] : p.first_row + b;
    good = draw_id >= 0 && row_id >= 0 && draw_id >> 32 == 0 && row_id >> 32 == 0;
    draw = static_cast<uint32_t>(draw_id), row = static_cast<uint32_t>(row_id);
  }
};

// Output (t, i, j) of serial sums.
template <class C>
C expected(const Serial& s, int64_t t, int64_t i, int64_t j) {
  const C nan = std::numeric_limits<C>::quiet_NaN();
  const NoiseParams& p = s.noise;
  const int64_t output = (t * s.I + i) * s.J + j, seed = p.seed ? *p.seed : p.seed_value;
  const bool of_product = s.product.given && s.product.rounding == kStochastic,
             of_sum = s.sum.given && s.sum.rounding == kStochastic;
  const RowIds id(p, 0, output / s.n);
  if (!id.good && (of_product || of_sum || s.noisy)) return nan;
  C level = static_cast<C>(p.add.one ? *p.add.one : p.add.value);
  if (!(level >= 0 && level <= std::numeric_limits<C>::max())) level = nan;
  C v = 0, plus = 0, minus = 0, last = -1;
  for (int64_t step = 0; step < s.K; ++step) {
    const int64_t k = s.order == nullptr ? step : s.order[(s.order_of_each ? output * s.K : 0) + step];
    const int64_t element = output % s.n * s.K + k;
    const auto fraction = [&](bool there, Operand operand) {
      return there ? fraction_at(seed, p.site, operand, id.draw, id.row, element) : 0;
    };
    const C x = static_cast<const C*>(s.a)[t % s.Ta * s.a_t + i * s.a_i + k * s.a_k];
    const C w = static_cast<const C*>(s.b)[t % s.Tb * s.b_t + k * s.b_k + j * s.b_j];
    C product = x * w;
    product = static_cast<C>(rounded(s.product, product, fraction(of_product, Operand::kRoundingOfProduct)));
    if (s.synapse) {
      const C limit = static_cast<C>(s.synapse_limit), decay = static_cast<C>(s.synapse_decay);
      for (C* input : {&plus, &minus}) {
        const C part = input == &plus ? product : -product;
        const C kept = decay * *input, next = kept + (part < 0 ? C(0) : part);
        *input = next > limit ? limit : next;
      }
      product = plus - minus;
    }
    if (s.leak != 1) v = static_cast<C>(s.leak) * v;
    v = v + product;
    if (s.noisy) {
      v = std::fma(level, C(eps_at(0, seed, p.site, Operand::kPerStep, id.draw, id.row, element)), v);
    }
    v = static_cast<C>(rounded(s.sum, v, fraction(of_sum, Operand::kRoundingOfSum)));
    const C low = static_cast<C>(s.low), high = static_cast<C>(s.high);
    if (v < low || v > high) last = static_cast<C>(step), v = v < low ? low : high;
  }
  return s.track ? last : v;
}

// -------------------------------------------------------------------------------------------------------------- cases

inline std::string text(const Format& f) {
  if (!f.given) return "exact";
  char buffer[128];
  std::snprintf(buffer, sizeof buffer, "%s(bits %d, least %d, largest %g%s%s, %s)", f.fixed ? "fixed" : "float", f.bits,
                f.least_exponent, f.largest, f.subnormals ? ", subnormals" : "", f.infinite ? ", infinite" : "",
                f.rounding == kTruncate  ? "truncate"
                : f.rounding == kNearest ? "nearest"
                                         : "stochastic");
  return buffer;
}

inline std::string text(const Serial& s) {
  char buffer[512];
  std::snprintf(
      buffer, sizeof buffer,
      "type %d T %lld (%lld, %lld) I %lld J %lld K %lld n %lld order %s strides %lld %lld, %lld %lld blocks %lld "
      "%lld low %g high %g leak %g synapse %d %g %g noisy %d track %d product ",
      static_cast<int>(s.dtype), static_cast<long long>(s.T), static_cast<long long>(s.Ta),
      static_cast<long long>(s.Tb), static_cast<long long>(s.I), static_cast<long long>(s.J),
      static_cast<long long>(s.K), static_cast<long long>(s.n),
      s.order == nullptr ? "none" : (s.order_of_each ? "of each" : "one"), static_cast<long long>(s.a_i),
      static_cast<long long>(s.a_k), static_cast<long long>(s.b_k), static_cast<long long>(s.b_j),
      static_cast<long long>(s.block_i), static_cast<long long>(s.block_j), s.low, s.high, s.leak, s.synapse,
      s.synapse_limit, s.synapse_decay, s.noisy, s.track);
  return buffer + text(s.product) + " sum " + text(s.sum);
}

struct SumShape {
  int64_t I, J, K;
};
inline constexpr SumShape kSumShapes[] = {{1, 1, 1},  {3, 1, 17},  {1, 3, 70},  {17, 17, 3}, {4, 70, 5},
                                          {70, 5, 9}, {5, 33, 16}, {2, 130, 8}, {3, 65, 0},  {9, 12, 33}};
inline constexpr int64_t kDepths[][2] = {{1, 1}, {3, 1}, {1, 2}, {2, 2}, {4, 2}};  // Ta, Tb
inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kLimits[][2] = {{-kInf, kInf}, {-1.5, 1.25}, {-kInf, 2}, {-0.75, 0}};
inline constexpr double kLeakFactors[] = {1, 0.8125, 0};
struct Synapse {
  bool there;
  double limit, decay;
};
inline constexpr Synapse kSynapses[] = {{false, 0, 0}, {true, 1.5, 0}, {true, 2, 0.75}, {true, kInf, 0.5}};

// What a case of serial sums is chosen by.
struct SumFactor {
  enum : int {
    kType,
    kProduct,
    kSum,
    kOrder,  // none, one, of each
    kShape,
    kDepth,
    kLayoutOfA,
    kLayoutOfB,
    kLimits,
    kLeak,
    kSynapse,
    kNoise,  // none, good, bad
    kTrack,
    kIds,      // by value, listed, bad
    kOutputs,  // of a row: J, I * J, all
    kValues,   // near 1, near the edges of the format
    kCount
  };
};
using SumChoice = Choice<SumFactor::kCount>;
inline const SumChoice kSumChoices = {2,
                                      static_cast<int>(formats<float>().size()),
                                      static_cast<int>(formats<float>().size()),
                                      3,
                                      static_cast<int>(std::size(kSumShapes)),
                                      static_cast<int>(std::size(kDepths)),
                                      4,
                                      4,
                                      static_cast<int>(std::size(kLimits)),
                                      static_cast<int>(std::size(kLeakFactors)),
                                      static_cast<int>(std::size(kSynapses)),
                                      3,
                                      2,
                                      3,
                                      3,
                                      2};

// Strides of [T, lines, K] values in some layout; returns how many values it spans.
inline int64_t lay_out(int layout, int64_t T, int64_t lines, int64_t K, int64_t& of_t, int64_t& of_line,
                       int64_t& of_k) {
  switch (layout) {
    case 0:
      of_k = 1, of_line = K;
      break;
    case 1:
      of_k = lines, of_line = 1;
      break;
    case 2:
      of_k = 3, of_line = 3 * K + 2;
      break;
    default:
      of_k = 1, of_line = 0;
  }
  of_t = layout == 3 ? K : lines * std::max<int64_t>(of_line, 1) * (layout == 1 ? K : 1);
  return T * of_t + 1;
}

// Serial sums with the memory that they point to.
template <class C>
struct SumCase {
  std::vector<C> a, b;
  std::vector<int32_t> order;
  std::vector<int64_t> draws, rows;
  std::vector<int64_t> seed;  // empty: by value
  std::vector<double> one;    // likewise the level
  Serial s;

  int64_t total() const { return s.T * s.I * s.J; }
  int64_t blocks() const { return s.T * ((s.I + s.block_i - 1) / s.block_i) * ((s.J + s.block_j - 1) / s.block_j); }
  void point() {
    const auto of = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    s.a = a.data(), s.b = b.data(), s.order = of(order), s.noise.draws = of(draws), s.noise.rows = of(rows);
    s.noise.seed = of(seed), s.noise.add.one = of(one);
  }

  SumCase(Random& r, const SumChoice& choice) {
    using Factor = SumFactor;
    const std::vector<Format> list = formats<C>();
    s.dtype = TypeOf<C>::kDType;
    s.product = list[choice[Factor::kProduct]], s.sum = list[choice[Factor::kSum]];
    if (sizeof(C) == 8 && r.one_in(8)) s.sum = list[list.size() - 1 - r.below(2)];  // those that float cannot have
    const SumShape shape = kSumShapes[choice[Factor::kShape]];
    s.I = shape.I, s.J = shape.J, s.K = shape.K;
    s.Ta = kDepths[choice[Factor::kDepth]][0], s.Tb = kDepths[choice[Factor::kDepth]][1], s.T = std::max(s.Ta, s.Tb);
    s.low = kLimits[choice[Factor::kLimits]][0], s.high = kLimits[choice[Factor::kLimits]][1];
    s.leak = kLeakFactors[choice[Factor::kLeak]];
    const Synapse synapse = kSynapses[choice[Factor::kSynapse]];
    s.synapse = synapse.there, s.synapse_limit = synapse.limit, s.synapse_decay = synapse.decay;
    s.track = choice[Factor::kTrack] != 0;
    a.resize(lay_out(choice[Factor::kLayoutOfA], s.Ta, s.I, s.K, s.a_t, s.a_i, s.a_k));
    b.resize(lay_out(choice[Factor::kLayoutOfB], s.Tb, s.J, s.K, s.b_t, s.b_j, s.b_k));
    const bool edges = choice[Factor::kValues] != 0;
    const auto value = [&] {
      return r.one_in(3) ? static_cast<C>(r.below(17) - 8) / 4 : static_cast<C>(r.uniform() - 0.5f) * 2;
    };
    for (C& v : a) {
      const bool special = r.one_in(9);  // here: compilers differ in the order of arguments
      v = edges ? value_near<C>(r, r.one_in(2) ? s.sum : s.product, special) : value();
    }
    for (C& v : b) v = edges && r.one_in(2) ? C(r.one_in(2) ? 1 : -1) : value();
    if (choice[Factor::kOrder] > 0 && s.K > 0) {
      s.order_of_each = choice[Factor::kOrder] == 2;
      order.resize(s.K * (s.order_of_each ? total() : 1));
      for (size_t first = 0; first < order.size(); first += s.K) {
        for (int64_t k = 0; k < s.K; ++k) {  // the k-th goes to a place at random
          const int64_t place = r.below(k + 1);
          order[first + k] = order[first + place], order[first + place] = static_cast<int32_t>(k);
        }
      }
    }
    const int64_t outputs[] = {s.J, s.I * s.J, total()};
    s.n = outputs[choice[Factor::kOutputs]];
    NoiseParams& p = s.noise;
    p.B = total() / s.n;
    p.site = static_cast<uint32_t>(r.below(1 << 24)), p.kind = static_cast<int>(r.below(Kinds::kSize));
    const bool bad_ids = choice[Factor::kIds] == 2;
    p.seed_value = static_cast<int64_t>(r.bits()), p.first_draw = random_id(r, false);
    p.first_row = r.below((int64_t{1} << 32) - p.B);
    if (choice[Factor::kIds] > 0) {
      seed = {static_cast<int64_t>(r.bits())}, draws = {random_id(r, bad_ids && r.one_in(3))};
      rows.resize(p.B);
      for (int64_t& row : rows) row = random_id(r, bad_ids);
    } else if (r.one_in(4)) {
      p.first_row = (int64_t{1} << 32) - (p.B + 1) / 2;  // the last ones are beyond what there is
    }
    s.noisy = choice[Factor::kNoise] > 0;
    if (s.noisy) {
      const double bad[] = {-0.5, kInf, std::numeric_limits<double>::quiet_NaN()};
      p.add.value = choice[Factor::kNoise] == 2 && r.one_in(4) ? bad[r.below(3)] : 0.3 * r.uniform();
      if (r.one_in(2)) one = {p.add.value}, p.add.value = 7;
    }
    point();
  }

  std::vector<C> expected_all() const {
    std::vector<C> want(static_cast<size_t>(total()));
    for (int64_t k = 0; k < total(); ++k) want[k] = expected<C>(s, k / s.J / s.I, k / s.J % s.I, k % s.J);
    return want;
  }
};

// Sums whose steps only round and clamp, which have kernels of their own: of every type and format.
inline std::vector<SumChoice> plain_sums(Random& r) {
  using Factor = SumFactor;
  std::vector<SumChoice> list, with_synapses;
  for (int type = 0; type < 2; ++type) {
    for (int format = 0; format < kSumChoices[Factor::kSum]; ++format) {
      SumChoice c = random_choice(r, kSumChoices);
      c[Factor::kType] = type, c[Factor::kProduct] = c[Factor::kSum] = format, c[Factor::kOrder] = format % 2;
      c[Factor::kLeak] = c[Factor::kSynapse] = c[Factor::kNoise] = c[Factor::kTrack] = 0;
      list.push_back(c);
    }
    // Those without formats may leak and have synapses, too.
    for (const auto [leak, synapse] : {std::array{1, 0}, {0, 1}, {1, 2}}) {
      SumChoice c = list[list.size() - kSumChoices[Factor::kSum]];
      c[Factor::kLeak] = leak, c[Factor::kSynapse] = synapse;
      with_synapses.push_back(c);
    }
  }
  list.insert(list.end(), with_synapses.begin(), with_synapses.end());
  return list;
}

// f.template operator()<C>() for the type of a choice.
template <class Fn>
void with_type(const SumChoice& choice, Fn&& f) {
  choice[SumFactor::kType] == 0 ? f.template operator()<float>() : f.template operator()<double>();
}

// --------------------------------------------------------------------------------------------------------- gradients

// Gradients of sums, with what they must be and by how much they may differ from it.
template <class C>
struct GradientCase {
  std::vector<C> grad, last, a, b;
  std::vector<int32_t> position;
  std::vector<double> a_want, b_want, a_bound, b_bound;
  SerialGradient g;

  GradientCase(Random& r, int64_t T, int64_t I, int64_t J, int64_t K)
      : grad(T * I * J), last(T * I * J), a(T * I * K), b(T * K * J), position(K) {
    g.dtype = TypeOf<C>::kDType, g.T = T, g.I = I, g.J = J, g.K = K;
    for (std::vector<C>* v : {&grad, &a, &b}) {
      for (C& x : *v) x = (static_cast<C>(r.uniform()) - C(0.5)) * (r.one_in(8) ? 100 : 1);
    }
    for (C& x : last) x = r.one_in(20) ? std::numeric_limits<C>::quiet_NaN() : static_cast<C>(r.below(K + 1) - 1);
    std::iota(position.begin(), position.end(), 0);
    for (int64_t k = K; k > 1; --k) std::swap(position[k - 1], position[r.below(k)]);
    g.grad = grad.data(), g.last = last.data(), g.a = a.data(), g.b = b.data(), g.position = position.data();
    a_want.resize(a.size()), b_want.resize(b.size()), a_bound.resize(a.size()), b_bound.resize(b.size());
    for (int64_t n = 0; n < T * I * J * K; ++n) {
      const int64_t k = n % K, j = n / K % J, i = n / K / J % I, t = n / K / J / I;
      const int64_t output = (t * I + i) * J + j, of_a = (t * I + i) * K + k, of_b = (t * K + k) * J + j;
      if (!(last[output] < static_cast<C>(position[k]))) continue;
      const double to_a = static_cast<double>(grad[output]) * b[of_b],
                   to_b = static_cast<double>(grad[output]) * a[of_a];
      a_want[of_a] += to_a, a_bound[of_a] += std::fabs(to_a), b_want[of_b] += to_b, b_bound[of_b] += std::fabs(to_b);
    }
    // A sum of n products in any order: an error of (n + 1) / (1 - ...) roundings of their magnitudes (Higham, section
    // 3.1), and as much again for the float64 sum here.
    const double rounding = sizeof(C) == 4 ? 0x1p-24 : 0x1p-53;
    for (double& v : a_bound) v *= 2 * static_cast<double>(J + 2) * rounding;
    for (double& v : b_bound) v *= 2 * static_cast<double>(I + 2) * rounding;
  }
};

// --------------------------------------------------------------------------------------------------- single values

// Values to be rounded, with the memory that they point to.
template <class T>
struct QuantizeCase {
  std::vector<T> x;
  std::vector<int64_t> draws, rows, seed;
  Quantize q;

  int64_t total() const { return q.noise.D * q.noise.B * q.n; }
  void point() {
    const auto of = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    q.x = x.data(), q.noise.draws = of(draws), q.noise.rows = of(rows), q.noise.seed = of(seed);
  }

  QuantizeCase(Random& r, const Format& format, int64_t n, bool bad_ids) {
    using C = typename TypeOf<T>::Compute;
    NoiseParams& p = q.noise;
    q.dtype = TypeOf<T>::kDType, q.n = n, q.format = format;
    p.D = 1 + r.below(2), p.B = 1 + r.below(n > 300 ? 3 : 9);
    p.site = static_cast<uint32_t>(r.below(1 << 24)), p.seed_value = static_cast<int64_t>(r.bits());
    p.operand = static_cast<Operand>(r.below(static_cast<int>(Operand::kCount)));
    p.first_row = r.below(1000), p.first_draw = random_id(r, bad_ids);
    if (p.D > 1 || r.one_in(2)) draws.resize(p.D);
    if (bad_ids || r.one_in(2)) rows.resize(p.B);
    if (r.one_in(2)) seed = {static_cast<int64_t>(r.bits())};
    for (int64_t& id : draws) id = random_id(r, bad_ids);
    for (int64_t& id : rows) id = random_id(r, bad_ids);
    x.resize(total());
    for (T& v : x) {
      v = narrow<T>(value_near<C>(r, format, true));
      if (!r.one_in(4)) continue;  // any bits at all, signalling NaNs among them
      const uint64_t bits = r.bits();
      std::memcpy(&v, &bits, sizeof v);
    }
    point();
  }

  std::vector<T> expected_all() const {
    using C = typename TypeOf<T>::Compute;
    std::vector<T> want(static_cast<size_t>(total()));
    const NoiseParams& p = q.noise;
    const bool random = q.format.given && q.format.rounding == kStochastic;
    for (int64_t k = 0; k < total(); ++k) {
      const RowIds id(p, k / q.n / p.B, k / q.n % p.B);
      double v = std::numeric_limits<double>::quiet_NaN();
      if (!random || id.good) {
        const int64_t given = p.seed ? *p.seed : p.seed_value;
        v = rounded(q.format, widen(x[k]),
                    random ? fraction_at(given, p.site, p.operand, id.draw, id.row, k % q.n) : 0);
      }
      want[k] = narrow<T>(static_cast<C>(v));
    }
    return want;
  }
};

}  // namespace noisykernels::test
