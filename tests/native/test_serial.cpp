// Roundings to formats, serial sums and their gradients at every CPU level against the plain oracle of serial_cases.h:
// bit for bit, but for the gradients, whose order of summation is not defined.
#include <thread>

#include "check.h"
#include "digest.h"
#include "serial_cases.h"

using namespace noisykernels;
using namespace noisykernels::test;

namespace {

template <class T>
bool compare(const std::vector<T>& got, const std::vector<T>& want, const char* name, const char* how,
             const std::string& what) {
  for (size_t k = 0; k < want.size(); ++k) {
    if (same(got[k], want[k])) continue;
    CHECK(false, "%s, %s: %s: value %zu is %.17g, not %.17g", name, how, what.c_str(), k,
          static_cast<double>(widen(got[k])), static_cast<double>(widen(want[k])));
    return false;
  }
  return true;
}

// --------------------------------------------------------------------------------------------------- single values

// Runs a case at every level as a whole, and cut into ranges at random, where nothing outside a range may change.
template <class T>
void check_case(Random& r, QuantizeCase<T>& c) {
  const std::vector<T> want = c.expected_all();
  const int64_t total = c.total();
  for (const cpu::Kernels* k : levels()) {
    std::vector<T> y = blank<T>(total);
    c.q.y = y.data();
    k->quantize(c.q, 0, total);
    compare(y, want, k->name, "whole", text(c.q.format));
    y = blank<T>(total), c.q.y = y.data();
    for (int64_t begin = 0; begin < total;) {
      const int64_t end = std::min(total, begin + 1 + r.below(total / 2 + 1));
      const std::vector<T> before = y;
      k->quantize(c.q, begin, end);
      CHECK(std::memcmp(before.data(), y.data(), sizeof(T) * begin) == 0 &&
                std::memcmp(before.data() + end, y.data() + end, sizeof(T) * (total - end)) == 0,
            "%s: written outside [%lld, %lld)", k->name, static_cast<long long>(begin), static_cast<long long>(end));
      begin = end;
    }
    compare(y, want, k->name, "in ranges", text(c.q.format));
  }
}

}  // namespace

TEST(quantize_cases) {
  Random r{31};
  for_each_type([&]<class T>() {
    using C = typename TypeOf<T>::Compute;
    const std::vector<Format> list = formats<C>();
    for (const Format& f : list) {
      for (const int64_t n : {1, 6, 300, 1030}) {
        QuantizeCase<T> c(r, f, n, r.one_in(4));
        check_case(r, c);
      }
    }
    for (int k = 0; k < (g_full ? 20000 : 400); ++k) {
      const Format f = random_format<C>(r);
      QuantizeCase<T> c(r, f, 130, r.one_in(9));
      check_case(r, c);
    }
  });
}

// Every value of the half types.
TEST(quantize_halves) {
  Random r{32};
  const auto each = [&]<class T>() {
    for (const Format& f : formats<float>()) {
      QuantizeCase<T> c(r, f, 1 << 16, false);
      c.q.noise.D = c.q.noise.B = 1, c.x.resize(1 << 16);
      for (size_t k = 0; k < c.x.size(); ++k) c.x[k].bits = static_cast<uint16_t>(k);
      c.point();
      const std::vector<T> want = c.expected_all();
      for (const cpu::Kernels* k : levels()) {
        std::vector<T> y = blank<T>(c.total());
        c.q.y = y.data();
        cpu::run(*k, c.q, 1);
        compare(y, want, k->name, "every half", text(f));
      }
    }
  };
  each.operator()<BFloat16>();
  each.operator()<Float16>();
}

// --------------------------------------------------------------------------------------------------------------- sums

namespace {

// Runs a case at every level: as the library cuts it, and in blocks and ranges at random.
template <class C>
void check_case(Random& r, SumCase<C>& c) {
  const std::vector<C> want = c.expected_all();
  for (const cpu::Kernels* k : levels()) {
    c.s.block_i = Serial().block_i, c.s.block_j = Serial().block_j;
    std::vector<C> y = blank<C>(c.total());
    c.s.y = y.data();
    cpu::run(*k, c.s, 1 + static_cast<int>(r.below(kMostOpenMpThreads)));
    compare(y, want, k->name, "whole", text(c.s));

    c.s.block_i = 1 + r.below(c.s.I + 3), c.s.block_j = 1 + r.below(c.s.J + 3);
    y = blank<C>(c.total()), c.s.y = y.data();
    const int64_t cut = r.below(c.blocks() + 1);
    k->serial(c.s, cut, c.blocks());
    const std::vector<C> before = y;
    k->serial(c.s, 0, cut);
    for (size_t n = 0; n < y.size(); ++n) {  // each half writes what is its own
      const bool first = std::memcmp(&before[n], blank<C>(1).data(), sizeof(C)) == 0;
      CHECK(first || std::memcmp(&before[n], &y[n], sizeof(C)) == 0, "%s: output %zu is written twice", k->name, n);
    }
    if (!compare(y, want, k->name, "in blocks", text(c.s))) return;
  }
}

}  // namespace

TEST(serial_plain) {
  Random r{33};
  for (int round = 0; round < (g_full ? 50 : 1); ++round) {
    for (const SumChoice& choice : plain_sums(r)) {
      with_type(choice, [&]<class C>() {
        SumCase<C> c(r, choice);
        check_case(r, c);
      });
    }
  }
}

TEST(serial_sums) {
  Random r{34};
  for (int round = 0; round < (g_full ? 20 : 1); ++round) {
    for (const SumChoice& choice : pairwise(r, kSumChoices)) {
      with_type(choice, [&]<class C>() {
        SumCase<C> c(r, choice);
        check_case(r, c);
      });
    }
  }
}

// Formats at random, the same or different ones for products and sums.
TEST(serial_formats) {
  Random r{35};
  for (int k = 0; k < (g_full ? 10000 : 500); ++k) {
    SumChoice choice = random_choice(r, kSumChoices);
    choice[SumFactor::kTrack] = 0;
    if (r.one_in(2)) choice[SumFactor::kLeak] = choice[SumFactor::kSynapse] = choice[SumFactor::kNoise] = 0;
    with_type(choice, [&]<class C>() {
      SumCase<C> c(r, choice);
      c.s.product = random_format<C>(r), c.s.sum = r.one_in(2) ? c.s.product : random_format<C>(r);
      for (C& v : c.a) v = value_near<C>(r, c.s.sum, false);
      for (C& v : c.b) v = r.one_in(2) ? C(1) : value_near<C>(r, c.s.product, false);
      check_case(r, c);
    });
  }
}

// Enough of them for several threads, and for several blocks of each size.
TEST(serial_threads) {
  Random r{36};
  for (int format : {0, 1, 12}) {
    SumChoice choice = random_choice(r, kSumChoices);
    choice[SumFactor::kProduct] = choice[SumFactor::kSum] = format;
    choice[SumFactor::kSynapse] = choice[SumFactor::kLeak] = choice[SumFactor::kTrack] = choice[SumFactor::kNoise] = 0;
    choice[SumFactor::kDepth] = choice[SumFactor::kIds] = choice[SumFactor::kOrder] = 0;
    SumCase<float> c(r, choice);
    c.s.I = 150, c.s.J = 300, c.s.K = 21, c.s.n = c.s.J, c.s.noise.B = c.s.I, c.s.noise.first_row = 5;
    c.s.a_i = c.s.K, c.s.a_k = 1, c.s.b_k = c.s.J, c.s.b_j = 1;
    c.a.resize(c.s.I * c.s.K), c.b.resize(c.s.J * c.s.K);
    for (std::vector<float>* v : {&c.a, &c.b}) {
      for (float& x : *v) x = r.uniform() - 0.5f;
    }
    c.point();
    const std::vector<float> want = c.expected_all();
    for (const cpu::Kernels* k : levels()) {
      for (int threads = 1; threads <= kMostOpenMpThreads; ++threads) {
        std::vector<float> y = blank<float>(c.total());
        c.s.y = y.data();
        cpu::run(*k, c.s, threads);
        compare(y, want, k->name, "threads", text(c.s));
      }
      std::vector<float> y = blank<float>(c.total());
      c.s.y = y.data();
      std::vector<std::thread> pool;
      for (int64_t t = 0; t < 3; ++t) {
        pool.emplace_back([&, t] { k->serial(c.s, c.blocks() * t / 3, c.blocks() * (t + 1) / 3); });
      }
      for (std::thread& t : pool) t.join();
      compare(y, want, k->name, "plain threads", text(c.s));
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- gradients

namespace {

template <class C>
void check_close(const std::vector<C>& got, const std::vector<double>& want, const std::vector<double>& bound,
                 const char* name, const char* which) {
  for (size_t k = 0; k < want.size(); ++k) {
    CHECK(std::fabs(static_cast<double>(got[k]) - want[k]) <= bound[k], "%s: %s %zu is %.9g, not %.9g", name, which, k,
          static_cast<double>(got[k]), want[k]);
  }
}

}  // namespace

TEST(serial_gradients) {
  Random r{37};
  const auto each = [&]<class C>() {
    for (const auto [T, I, J, K] : {std::array<int64_t, 4>{1, 1, 1, 1},
                                    {1, 3, 17, 5},
                                    {2, 17, 3, 4},
                                    {1, 70, 33, 1},
                                    {3, 2, 130, 11},
                                    {1, 5, 1, 70},
                                    {1, 40, 64, 23}}) {
      const GradientCase<C> c(r, T, I, J, K);
      for (const cpu::Kernels* k : levels()) {
        std::vector<C> first;
        for (int threads = 1; threads <= std::min(3, kMostOpenMpThreads); ++threads) {
          std::vector<C> a = blank<C>(T * I * K), b = blank<C>(T * K * J);
          SerialGradient g = c.g;
          g.a_grad = a.data(), g.b_grad = b.data();
          cpu::run(*k, g, threads);
          check_close(a, c.a_want, c.a_bound, k->name, "gradient of a");
          check_close(b, c.b_want, c.b_bound, k->name, "gradient of b");
          a.insert(a.end(), b.begin(), b.end());
          if (first.empty()) first = a;
          CHECK(a == first, "%s: %d threads", k->name, threads);
        }
      }
    }
  };
  each.operator()<float>();
  each.operator()<double>();
}

// ------------------------------------------------------------------------------------------------------ and the ends

TEST(serial_empty) {
  float y = 7, x = 1;
  for (const cpu::Kernels* k : levels()) {
    for (const auto [T, I, J, K] : {std::array<int64_t, 4>{0, 3, 3, 3}, {3, 0, 3, 3}, {3, 3, 0, 3}}) {
      Serial s;
      s.T = s.Ta = s.Tb = T, s.I = I, s.J = J, s.K = K, s.y = &y, s.a = s.b = &x;
      cpu::run(*k, s, 4);
      SerialGradient g;
      g.T = T, g.I = I, g.J = J;
      cpu::run(*k, g, 4);
      Quantize q;
      q.noise.D = T, q.noise.B = I, q.n = J, q.x = q.y = &y;
      cpu::run(*k, q, 4);
    }
  }
  CHECK(y == 7);
}

// The last elements of the longest row that the counter allows.
TEST(quantize_beyond_32_bits) {
  const int64_t n = int64_t{1} << 34, seed = 77;
  const Format f = float_format(3, 4, kStochastic, true, false);
  std::vector<float> x(1001, 1.0625f);
  for (const cpu::Kernels* k : levels()) {
    for (const int64_t at : {n - 1001, (int64_t{1} << 32) - 500, (int64_t{1} << 31) - 7}) {
      std::vector<float> y = blank<float>(1001);
      const auto there = [&](std::vector<float>& v) {
        return reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(v.data()) -
                                        sizeof(float) * static_cast<uintptr_t>(at));
      };
      Quantize q;
      q.x = there(x), q.y = there(y), q.n = n, q.format = f, q.noise.B = 1, q.noise.seed = &seed;
      k->quantize(q, at, at + 1001);
      for (int64_t i = 0; i < 1001; ++i) {
        const double u = fraction_at(seed, 0, Operand::kAdd, 0, 0, at + i);
        CHECK(y[i] == rounded(f, x[i], u), "%s: element %lld", k->name, static_cast<long long>(at + i));
      }
    }
  }
}

// Sums whose first steps lie beyond 2^32 elements of their row.
TEST(serial_beyond_32_bits) {
  const int64_t K = 1 << 10, n = int64_t{1} << 24, j = 9;
  Serial s;
  std::vector<float> a(K, 1.0f), b(K, 0.5f);
  s.T = s.Ta = s.Tb = 1, s.I = n / j + 1, s.J = j, s.K = K, s.n = n / j * j;
  s.a_k = 1, s.b_k = 1, s.a = a.data(), s.b = b.data();
  s.product = s.sum = float_format(3, 6, kStochastic, true, false);
  s.noisy = true, s.noise.add.value = 0.25, s.noise.B = 2, s.noise.seed_value = 3;
  s.block_i = 1, s.block_j = j;
  for (const cpu::Kernels* k : levels()) {
    for (const int64_t i : {s.I - 2, (int64_t{1} << 22) / j, (int64_t{1} << 21) / j}) {
      std::vector<float> y = blank<float>(j);
      s.y = reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y.data()) -
                                     sizeof(float) * static_cast<uintptr_t>(i * j));
      k->serial(s, i, i + 1);
      for (int64_t c = 0; c < j; ++c)
        CHECK(same(y[c], expected<float>(s, 0, i, c)), "%s: row %lld", k->name, static_cast<long long>(i));
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- digests

// Hashes over fixed cases: the same for every level, compiler, setting and machine. They change with the definitions or
// the cases.
constexpr uint64_t kSumDigest = 0xeb321c1fd03b0090, kQuantizeDigest = 0x5ff84dae4e6ac64c;

TEST(serial_digests) {
  for (const cpu::Kernels* k : levels()) {
    Digest sums, values;
    Random r{38};
    for (int n = 0; n < 100; ++n) {
      const SumChoice choice = random_choice(r, kSumChoices);
      with_type(choice, [&]<class C>() {
        SumCase<C> c(r, choice);
        std::vector<C> y = blank<C>(c.total());
        c.s.y = y.data();
        cpu::run(*k, c.s, 1);
        sums.add_numbers(y);
      });
    }
    for_each_type([&]<class T>() {
      for (const Format& f : formats<typename TypeOf<T>::Compute>()) {
        QuantizeCase<T> c(r, f, 500, false);
        std::vector<T> y = blank<T>(c.total());
        c.q.y = y.data();
        cpu::run(*k, c.q, 1);
        values.add_numbers(y);
      }
    });
    std::printf("%-8s sums %016llx values %016llx\n", k->name, static_cast<unsigned long long>(sums.h),
                static_cast<unsigned long long>(values.h));
    CHECK(sums.h == kSumDigest && values.h == kQuantizeDigest, "%s", k->name);
  }
}
