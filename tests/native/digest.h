// A hash over results, to compare compilers and machines by one number.
#pragma once

#include "cases.h"

namespace noisykernels::test {

// FNV-1a, 64 bits.
struct Digest {
  uint64_t h = 0xcbf29ce484222325u;
  template <class T>
  void add(const std::vector<T>& v) {
    const auto* p = reinterpret_cast<const unsigned char*>(v.data());
    for (size_t i = 0; i < v.size() * sizeof(T); ++i) h = (h ^ p[i]) * 0x100000001b3u;
  }
  // The same, with one NaN for all of them.
  template <class T>
  void add_numbers(std::vector<T> v) {
    for (T& x : v) {
      if (const auto wide = widen(x); wide != wide) std::memset(&x, 0xff, sizeof x);
    }
    add(v);
  }
};

}  // namespace noisykernels::test
