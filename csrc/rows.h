// What a row of an output is to the CPU and the CUDA kernels alike: its ids, which of its levels are good, and the
// template that its mode and type choose. Always inlined, for the reason given in cpu/scratch.h, or a template over a
// caller's own lambda.
#pragma once

#include <limits>

#include "half.h"
#include "params.h"

namespace noisykernels {

NK_HD Operand mul_operand(const NoiseParams& p) { return p.operand == Operand::kAdd ? Operand::kMul : p.operand; }
NK_HD uint64_t seed_of(const NoiseParams& p) { return static_cast<uint64_t>(p.seed ? *p.seed : p.seed_value); }

// The ids of the output row of the draw with index d and the row with index b.
struct Ids {
  uint32_t row, draw;
  int64_t b, d;
  bool valid;
};
NK_HD Ids ids_of(const NoiseParams& p, int64_t d, int64_t b) {
  constexpr int64_t kIdLimit = int64_t{1} << 32;
  const int64_t draw = p.draws ? p.draws[d] : p.first_draw, row = p.rows ? p.rows[b] : p.first_row + b;
  const bool valid = draw >= 0 && draw < kIdLimit && row >= 0 && row < kIdLimit;
  return {static_cast<uint32_t>(row), static_cast<uint32_t>(draw), b, d, valid};
}

template <class C>
inline constexpr C kNaN = std::numeric_limits<C>::quiet_NaN();
template <class C>
inline constexpr C kInfinity = std::numeric_limits<C>::infinity();

// NaN for a level that is NaN, negative or infinite.
template <class C>
NK_HD C checked_level(C v) {
  return v >= C(0) && v < kInfinity<C> ? v : kNaN<C>;
}

// The level of a row that has only one; `row`: where the row's levels would lie.
template <class C>
NK_HD C level_of_row(const Level& level, const C* row) {
  if (level.data != nullptr) return *row;
  return static_cast<C>(level.one != nullptr ? *level.one : level.value);
}

// Calls f.template operator()<Mode, T, C>() for the mode and type of an epilogue.
template <class Fn>
void visit(const Epilogue& e, Fn&& f) {
  const auto with_type = [&]<Mode M>() {
    switch (e.dtype) {
      case DType::kFloat32:
        return f.template operator()<M, float, float>();
      case DType::kFloat64:
        return f.template operator()<M, double, double>();
      case DType::kBFloat16:
        return f.template operator()<M, BFloat16, float>();
      case DType::kFloat16:
        return f.template operator()<M, Float16, float>();
    }
  };
  switch (e.noise.mode) {
    case Mode::kAdd:
      return with_type.template operator()<Mode::kAdd>();
    case Mode::kMul:
      return with_type.template operator()<Mode::kMul>();
    case Mode::kMulAdd:
      return with_type.template operator()<Mode::kMulAdd>();
    case Mode::kAddMul:
      return with_type.template operator()<Mode::kAddMul>();
    case Mode::kFold:
      return with_type.template operator()<Mode::kFold>();
    case Mode::kEps:
      return with_type.template operator()<Mode::kEps>();
  }
}

}  // namespace noisykernels
