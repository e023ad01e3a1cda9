// The library's single-precision product, for contractions that are cut into parts here.
#pragma once

#include "../cpu/launch.h"

namespace noisykernels {

inline constexpr int64_t kWorthAThread = int64_t{1} << 17;  // multiply-adds: some 3 us

// Found at run time; null if torch was built without one.
using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);
inline Sgemm find_sgemm() {
  static const Sgemm sgemm = cpu::find_in_torch<Sgemm>("sgemm_");
  return sgemm;
}

}  // namespace noisykernels
