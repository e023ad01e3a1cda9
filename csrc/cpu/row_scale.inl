// The size of each row of a value, by which levels that are relative to it are multiplied.
//
// Elements are put on a grid of whole numbers first, so fine that nothing of a float32 near the largest is lost and so
// coarse that every sum of squares is exact. So no order of additions can be told from another: the size is that of the
// set of the row's elements, for any lanes, threads, memory order and device (noise/units.py says the same in torch).
#pragma once

#include <algorithm>
#include <cstring>

#include "launch.h"

namespace noisykernels::cpu {
namespace {

inline constexpr int kFinest = 24;      // bits of the grid
inline constexpr int kSumLanes = 16;    // sums side by side
inline constexpr int kSquares = 8;      // of 25 bits that a double adds up exactly
inline constexpr int64_t kSized = 128;  // values taken together

// Values that are finite; the largest magnitude of them.
struct Extent {
  int64_t count = 0;
  double largest = 0;
};

inline double power_of_two(int64_t exponent) {
  const auto bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// f with 2^(f - 1) <= x < 2^f, for x > 0 that is no denormal.
inline int exponent_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<int>(bits >> 52 & 0x7ff) - 1022;
}

// Rows of n values, of type T and computed in C.
template <class A, class T, class C>
class Sizes {
 public:
  Sizes(const T* x, int64_t n) : x_(x), n_(n) {}

  double largest() const { return extent().largest; }

  // The root of the mean square; `centred`: of what is left of the values without their mean.
  double root_mean_square(bool centred) const {
    const Extent found = extent();
    if (!(found.largest > 0)) return 0;
    const int length = found.count < 2 ? 0 : exponent_of(static_cast<double>(found.count - 1));
    const int bits = std::min(kFinest, (61 - length) / 2), exponent = std::max(exponent_of(found.largest), -990);
    const double grid = power_of_two(bits - exponent), count = static_cast<double>(found.count);
    const bool all = found.count == n_;
    double centre = 0;
    if (centred) centre = whole((all ? sum<false, false>(grid, 0) : sum<true, false>(grid, 0)) / count);
    const double squares = all ? sum<false, true>(grid, centre) : sum<true, true>(grid, centre);
    return std::sqrt(squares / count) * power_of_two(exponent - bits);
  }

 private:
  // f(values, how many) for the row, some at a time.
  template <class Fn>
  void for_some(Fn&& f) const {
    using L = typename A::template Lanes<C>;
    if constexpr (std::is_same_v<T, C>) {
      for (int64_t i = 0; i < n_; i += kSized) f(x_ + i, static_cast<int>(std::min(kSized, n_ - i)));
    } else {
      C some[kSized];
      for (int64_t i = 0; i < n_; i += kSized) {
        const int count = static_cast<int>(std::min(kSized, n_ - i));
        int k = 0;
        for (; k + L::kWidth <= count; k += L::kWidth) L::store(some + k, L::load(x_ + i + k));
        for (; k < count; ++k) some[k] = L::widen(x_[i + k]);
        f(some, count);
      }
    }
  }

  Extent extent() const {
    using Bits = std::conditional_t<sizeof(C) == 8, int64_t, int32_t>;  // magnitudes have the order of their bits
    constexpr Bits kInfinite = sizeof(C) == 8 ? static_cast<Bits>(0x7ff0000000000000) : static_cast<Bits>(0x7f800000);
    Bits most = 0;
    Extent found;
    for_some([&](const C* v, int count) {
      Bits here = 0, infinite = 0;
      for (int k = 0; k < count; ++k) {
        Bits b;
        std::memcpy(&b, v + k, sizeof b);
        b &= std::numeric_limits<Bits>::max();
        infinite += b >= kInfinite ? 1 : 0;
        b = b >= kInfinite ? 0 : b;
        here = b > here ? b : here;
      }
      most = here > most ? here : most;
      found.count += count - static_cast<int64_t>(infinite);
    });
    C largest;
    std::memcpy(&largest, &most, sizeof largest);
    found.largest = static_cast<double>(largest);
    return found;
  }

  // The whole number next to v, of two the even one.
  static NK_HD double whole(double v) { return (v + 0x1.8p52) - 0x1.8p52; }

  // The exact sum of the values on the grid, or of the squares of what is left of them without the centre.
  template <bool kSome, bool kSquared>
  double sum(double grid, double centre) const {
    int64_t total = 0;
    for_some([&](const C* v, int count) {
      double parts[kSumLanes] = {};
      C last[kSized];
      if (count < kSized) {  // what is left out counts for nothing
        std::fill(std::copy_n(v, count, last), last + kSized, kInfinity<C>);
        add<true, kSquared>(last, grid, centre, parts);
      } else {
        add<kSome, kSquared>(v, grid, centre, parts);
      }
      for (double part : parts) total += static_cast<int64_t>(part);
    });
    return static_cast<double>(total);
  }

  template <bool kSome, bool kSquared>
  static NK_HD void add(const C* v, double grid, double centre, double* parts) {
    static_assert(kSized == kSquares * kSumLanes);
    for (int k = 0; k < kSized; k += kSumLanes) {
      for (int j = 0; j < kSumLanes; ++j) {
        const double given = static_cast<double>(v[k + j]);
        double q = whole(given * grid) - centre;
        if constexpr (kSquared) q = q * q;
        if constexpr (kSome) q = std::fabs(given) < kInfinity<double> ? q : 0.0;
        parts[j] += q;
      }
    }
  }

  const T* x_;
  int64_t n_;
};

template <class A>
void row_scales(const RowScale& r, int64_t begin, int64_t end) {
  const auto of_type = [&]<class T, class C>() {
    for (int64_t i = begin; i < end; ++i) {
      const Sizes<A, T, C> row(static_cast<const T*>(r.x) + i * r.n, r.n);
      r.y[i] = r.statistic == Statistic::kMax ? row.largest() : row.root_mean_square(r.statistic == Statistic::kStd);
    }
  };
  switch (r.dtype) {
    case DType::kFloat32:
      return of_type.template operator()<float, float>();
    case DType::kFloat64:
      return of_type.template operator()<double, double>();
    case DType::kBFloat16:
      return of_type.template operator()<BFloat16, float>();
    case DType::kFloat16:
      return of_type.template operator()<Float16, float>();
  }
}

}  // namespace
}  // namespace noisykernels::cpu
