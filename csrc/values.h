// What the CPU and the CUDA kernels share beside the noise itself: half-precision types, the ids of a row, which levels
// are good, and the choice of a template by mode and type. Always inlined, for the reason given in cpu/common.h, or a
// template over a caller's own lambda.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels.h"

namespace noisykernels {

// -------------------------------------------------------------------------------------------------- half precision

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Conversions, to nearest even; a NaN stays a (quiet) NaN. As the hardware's where there is any.
NK_HD float widen_value(float v) { return v; }
NK_HD double widen_value(double v) { return v; }
NK_HD float widen_value(BFloat16 v) { return bits_float(static_cast<uint32_t>(v.bits) << 16); }
NK_HD float widen_value(Float16 v) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  const uint32_t sign = (v.bits & 0x8000u) << 16, magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return bits_float(sign | 0x7f800000u | magnitude << 13 | (magnitude > 0x7c00u ? 0x00400000u : 0u));
  }
  // The exponent field moved to float's place is 112 too small. A subnormal is a whole number of 2^-24: never a
  // subnormal float, which a thread may be told to flush to zero.
  if (magnitude < 0x400u) return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24f));
  return bits_float(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

template <class T>
NK_HD T narrow_value(float v);
template <>
NK_HD float narrow_value<float>(float v) {
  return v;
}
template <>
NK_HD BFloat16 narrow_value<BFloat16>(float v) {
  const uint32_t u = float_bits(v);
  if (v != v) return {0x7fc0};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};
}
template <>
NK_HD Float16 narrow_value<Float16>(float v) {
#if defined(__CUDA_ARCH__)
  Float16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
#else
  const uint32_t u = float_bits(v), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 rounds to a multiple of 2^-24
    return {static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13))};
#endif
}
template <class T>
NK_HD T narrow_value(double v) {
  return v;
}

// ------------------------------------------------------------------------------------------------- rows and levels

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

// ---------------------------------------------------------------------------------------------------------- dispatch

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
