// Half-precision types, which neither C++ nor every compiler has, with their conversions: the same bits on the CPU and
// in CUDA. Always inlined, for the reason given in cpu/scratch.h.
#pragma once

#include "noise.h"

namespace noisykernels {

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

}  // namespace noisykernels
