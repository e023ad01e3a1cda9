// Cases that are chosen by factors: at random, or so that every two values of every two factors meet.
#pragma once

#include <array>
#include <vector>

#include "cases.h"

namespace noisykernels::test {

// Of each factor one of so many values.
template <size_t N>
using Choice = std::array<int, N>;

template <size_t N>
Choice<N> random_choice(Random& r, const Choice<N>& counts) {
  Choice<N> c;
  for (size_t f = 0; f < N; ++f) c[f] = static_cast<int>(r.below(counts[f]));
  return c;
}

// Choices among which every two values of every two factors meet: each the best of fifty at random.
template <size_t N>
std::vector<Choice<N>> pairwise(Random& r, const Choice<N>& counts) {
  constexpr size_t kMost = 32;  // values of a factor
  std::vector<bool> met(N * kMost * N * kMost);
  int missing = 0;
  for (size_t f = 0; f < N; ++f) {
    for (size_t g = f + 1; g < N; ++g) missing += counts[f] * counts[g];
  }
  const auto each_new_pair = [&](const Choice<N>& c, auto&& f) {
    for (size_t a = 0; a < N; ++a) {
      for (size_t b = a + 1; b < N; ++b) {
        const size_t pair = ((a * kMost + c[a]) * N + b) * kMost + c[b];
        if (!met[pair]) f(pair);
      }
    }
  };
  std::vector<Choice<N>> list;
  while (missing > 0) {
    Choice<N> best{};
    int most = 0;
    for (int attempt = 0; attempt < 50; ++attempt) {
      const Choice<N> c = random_choice(r, counts);
      int pairs = 0;
      each_new_pair(c, [&](size_t) { ++pairs; });
      if (pairs > most) most = pairs, best = c;
    }
    each_new_pair(best, [&](size_t pair) { met[pair] = true; });
    missing -= most;
    if (most > 0) list.push_back(best);
  }
  return list;
}

}  // namespace noisykernels::test
