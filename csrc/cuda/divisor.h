// Division by a number that a whole launch shares, without the hundred instructions that a 64-bit division is on a GPU.
#pragma once

#include "../noise.h"

namespace noisykernels::cuda {

struct Division {
  int64_t quotient, remainder;
};

// Multiplies instead (Granlund and Montgomery, PLDI '94). With 2^(s-1) < d <= 2^s and m = floor(2^(N+s) / d) + 1, a m /
// 2^(N+s) exceeds a / d by less than 1 / d for a < 2^N: N = 63, and 31 for the numbers that there mostly are.
struct Divisor {
  int64_t d;
  uint64_t m = 0;
  uint32_t m32 = 0;  // stays zero, which gives the quotient zero, where d is above them all
  int s = 0;

  explicit Divisor(int64_t by) : d(by) {
    while (uint64_t{1} << s < static_cast<uint64_t>(d)) ++s;
    m = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (63 + s)) / static_cast<uint64_t>(d)) + 1;
    if (d >> 31 == 0) m32 = static_cast<uint32_t>((uint64_t{1} << (31 + s)) / static_cast<uint64_t>(d)) + 1;
  }
  // a: not negative.
  NK_HD Division operator()(int64_t a) const {
    if (a >> 31 == 0) {
      const auto a32 = static_cast<uint32_t>(a);
      const uint32_t q = high_word(mul_wide(a32 << 1, m32)) >> (s & 31);  // above 31 it is zero that is shifted
      return {q, a32 - q * static_cast<uint32_t>(d)};
    }
    const auto product = static_cast<unsigned __int128>(static_cast<uint64_t>(a) << 1) * m;
    const auto q = static_cast<int64_t>(static_cast<uint64_t>(product >> 64) >> s);
    return {q, a - q * d};
  }
};

}  // namespace noisykernels::cuda
