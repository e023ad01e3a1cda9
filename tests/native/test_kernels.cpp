// The CPU kernels at every level against the plain oracle of cases.h, bit for bit.
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "check.h"

using namespace noisykernels;
using namespace noisykernels::test;

// ---------------------------------------------------------------------------------------------------------- epilogues

// Runs a case at every level: as a whole, and cut into ranges at random, where nothing outside a range may change.
template <class T>
void check_case(Case<T>& c, Random& r) {
  Epilogue& e = c.e;
  const int64_t total = c.total(), step = c.whole_rows() ? e.n : 1;
  std::vector<T> want(static_cast<size_t>(total)), first;
  for (int64_t k = 0; k < total; ++k) want[k] = narrow<T>(expected<T>(e, k / e.n, k % e.n));
  const auto compare = [&](const std::vector<T>& y, const char* name, const char* how) {
    for (int64_t k = 0; k < total; ++k) {
      if (same(y[k], want[k])) continue;
      CHECK(false,
            "%s, %s: mode %d kind %d dtype %d n %lld channels %lld D %lld B %lld shared %d relu %d bias %lld: value "
            "%lld is %.9g, not %.9g",
            name, how, static_cast<int>(e.noise.mode), e.noise.kind, static_cast<int>(e.dtype),
            static_cast<long long>(e.n), static_cast<long long>(e.channels), static_cast<long long>(e.noise.D),
            static_cast<long long>(e.noise.B), e.shared, e.relu, static_cast<long long>(e.bias_size),
            static_cast<long long>(k), static_cast<double>(widen(y[k])), static_cast<double>(widen(want[k])));
      return;
    }
  };
  for (const cpu::Kernels* k : levels()) {
    std::vector<T> y = blank<T>(total);
    e.y = y.data();
    k->epilogue(e, 0, total);
    compare(y, k->name, "whole");

    y = blank<T>(total), e.y = y.data();
    for (int64_t begin = 0; begin < total;) {
      const int64_t end = std::min(total, begin + step * (1 + r.below(total / step / (r.one_in(2) ? 1 : 5) + 1)));
      const std::vector<T> before = y;
      k->epilogue(e, begin, end);
      CHECK(std::memcmp(before.data(), y.data(), sizeof(T) * begin) == 0 &&
                std::memcmp(before.data() + end, y.data() + end, sizeof(T) * (total - end)) == 0,
            "%s: written outside [%lld, %lld)", k->name, static_cast<long long>(begin), static_cast<long long>(end));
      begin = end;
    }
    compare(y, k->name, "in ranges");

    if (e.noise.mode != Mode::kEps && !e.shared) {
      y = c.x, e.y = y.data(), e.x = y.data();
      cpu::run(*k, e, 1);
      compare(y, k->name, "in place");
      e.x = c.x.data();
    }
  }
}

void check_cases(uint64_t seed, bool hostile, std::vector<int64_t> lengths) {
  Random r{seed};
  for_each_type([&]<class T>() {
    for (int mode = 0; mode <= static_cast<int>(Mode::kEps); ++mode) {
      for (int kind = 0; kind < Kinds::kSize; ++kind) {
        for (int64_t n : lengths) {
          auto c = random_case<T>(r, static_cast<Mode>(mode), kind, n, hostile);
          check_case(c, r);
        }
      }
    }
  });
}

TEST(epilogues) {
  check_cases(4, false, {1,   2,   3,   4,   5,   8,   12,  15,  16,   17,   31,   60,   63,   64,   65,  100,
                         128, 130, 192, 252, 255, 256, 257, 513, 1023, 1024, 1025, 1029, 2100, 3100, 3100});
}

// Bad ids and levels make NaN exactly where they apply; x may be anything.
TEST(bad_values) { check_cases(5, true, {1, 3, 16, 50, 64, 65, 513, 700}); }

TEST(element_beyond_32_bits) {
  const int64_t n = (int64_t{1} << 34), begin = n - 1001, seed = 77;
  Epilogue e;
  e.n = n, e.noise.B = 1, e.noise.mode = Mode::kEps, e.noise.seed = &seed;
  for (const cpu::Kernels* k : levels()) {
    for (int64_t at : {begin, (int64_t{1} << 32) - 500, (int64_t{1} << 31) - 7}) {
      std::vector<float> y = blank<float>(1001);
      e.y =
          reinterpret_cast<float*>(reinterpret_cast<uintptr_t>(y.data()) - sizeof(float) * static_cast<uintptr_t>(at));
      k->epilogue(e, at, at + 1001);
      for (int64_t i = 0; i < 1001; ++i) {
        CHECK(same(y[i], eps_at(0, seed, 0, Operand::kAdd, 0, 0, at + i)), "%s: element %lld", k->name,
              static_cast<long long>(at + i));
      }
    }
  }
}

TEST(empty) {
  const int64_t seed = 0;
  float level = 1, y = 7;
  for (const cpu::Kernels* k : levels()) {
    Epilogue e;
    e.y = &y, e.x = &y, e.noise.seed = &seed, e.noise.add.data = &level;
    for (auto [d, b, n] : {std::array<int64_t, 3>{0, 3, 3}, {3, 0, 3}, {3, 3, 0}}) {
      e.noise.D = d, e.noise.B = b, e.n = n;
      cpu::run(*k, e, 4);
      k->epilogue(e, 0, 0);
    }
  }
  CHECK(y == 7);
}

// ------------------------------------------------------------------------------------------------------------ max-pool

template <class T>
T expected_maximum(const PoolCase<T>& c, int64_t out) {
  const PoolEpilogue& p = c.pool;
  const int64_t plane = out / c.out_plane(), oy = out % c.out_plane() / p.out_width, ox = out % p.out_width;
  typename TypeOf<T>::Compute best = -std::numeric_limits<typename TypeOf<T>::Compute>::infinity();
  for (int64_t y = std::max<int64_t>(0, oy * p.stride_h - p.pad_h);
       y < std::min(p.height, oy * p.stride_h - p.pad_h + p.kernel_h); ++y) {
    for (int64_t x = std::max<int64_t>(0, ox * p.stride_w - p.pad_w);
         x < std::min(p.width, ox * p.stride_w - p.pad_w + p.kernel_w); ++x) {
      const auto v = expected<T>(c.e, plane / p.planes, (plane % p.planes * p.height + y) * p.width + x);
      best = best != best || best > v ? best : v;
    }
  }
  return narrow<T>(best + 0);  // which of two equal zeros wins is not part of the contract: +0 here
}

TEST(max_pool) {
  Random r{6};
  for_each_type([&]<class T>() {
    for (int i = 0; i < 150; ++i) {
      PoolCase<T> c(r, static_cast<Mode>(r.below(5)), static_cast<int>(r.below(Kinds::kSize)));
      const int64_t rows = c.e.noise.D * c.e.noise.B, step = cpu::short_rows(c.e.n) ? c.pool.planes : 1;
      std::vector<T> want(static_cast<size_t>(c.out_total())), first;
      for (int64_t k = 0; k < c.out_total(); ++k) want[k] = expected_maximum(c, k);
      for (const cpu::Kernels* k : levels()) {
        for (int how = 0; how < 3; ++how) {
          std::vector<T> y = blank<T>(c.out_total());
          c.pool.noise.y = y.data();
          if (how == 0) {
            k->pool(c.pool, 0, rows * c.pool.planes);
          } else if (how == 1) {
            cpu::run(*k, c.pool, std::min(3, kMostOpenMpThreads));
          } else {
            const int64_t cut = r.below(rows * c.pool.planes / step + 1) * step;
            std::thread other([&] { k->pool(c.pool, 0, cut); });
            k->pool(c.pool, cut, rows * c.pool.planes);
            other.join();
          }
          if (first.empty()) first = y;
          for (int64_t j = 0; j < c.out_total(); ++j) {
            const bool zero = widen(want[j]) == 0 && widen(y[j]) == 0;
            CHECK((zero || same(y[j], want[j])) && same(y[j], first[j]),
                  "%s, way %d, mode %d, case %d: %lld is %g, not %g", k->name, how, static_cast<int>(c.e.noise.mode), i,
                  static_cast<long long>(j), static_cast<double>(widen(y[j])), static_cast<double>(widen(want[j])));
          }
        }
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------ threads and dispatch

TEST(threads) {
  Random r{7};
  for (int64_t n : {100, 3072, 100000}) {
    for (int mode = 0; mode <= static_cast<int>(Mode::kEps); ++mode) {
      auto c = random_case<float>(r, static_cast<Mode>(mode), 0, n, false);
      c.e.noise.B = 1 + 200000 / n, c.e.noise.D = 1, c.e.noise.first_row = 12345, c.rows.clear(), c.draws.clear();
      c.e.noise.add = c.e.noise.mul = Level{};
      c.add = c.mul = {0.25f};
      c.x.resize(static_cast<size_t>(c.e.noise.B * n), 1.0f);
      c.point();
      std::vector<float> want = blank<float>(c.total());
      c.e.y = want.data();
      levels().back()->epilogue(c.e, 0, c.total());
      for (const cpu::Kernels* k : levels()) {
        for (int threads = 1; threads <= kMostOpenMpThreads; ++threads) {
          std::vector<float> y = blank<float>(c.total());
          c.e.y = y.data();
          cpu::run(*k, c.e, threads);
          CHECK(y == want, "%s, %d threads, mode %d, n %lld", k->name, threads, mode, static_cast<long long>(n));
        }
        // The same cut by plain threads, at places that are not the library's.
        std::vector<float> y = blank<float>(c.total());
        c.e.y = y.data();
        std::vector<std::thread> pool;
        const int64_t step = c.whole_rows() ? n : 1, steps = c.total() / step;
        for (int64_t t = 0; t < 5; ++t) {
          pool.emplace_back([&, t] { k->epilogue(c.e, steps * t / 5 * step, steps * (t + 1) / 5 * step); });
          pool.emplace_back([&] { CHECK(cpu::current_level() != nullptr); });
        }
        for (std::thread& t : pool) t.join();
        CHECK(y == want, "%s, plain threads, mode %d, n %lld", k->name, mode, static_cast<long long>(n));
      }
    }
  }
}

// Squares of a row and the deviations made of their sums: against float64, and the same bits on every level.
TEST(squares) {
  Random r{11};
  for (const int64_t n : {1, 7, 16, 33, 100}) {
    for (const int exponent : {-140, -60, -30, 0, 30, 60, 120}) {
      std::vector<float> x(static_cast<size_t>(n)), want = blank<float>(n);
      for (float& v : x) v = std::ldexp(static_cast<float>(r.below(2001) - 1000) / 1000.0f, exponent);
      const float scale = levels().back()->square_row(x.data(), n, want.data());
      double largest = 0;
      for (const float v : x) largest = std::max(largest, std::fabs(static_cast<double>(v)));
      for (int64_t k = 0; k < n; ++k) {
        const double back = std::sqrt(static_cast<double>(want[k])) * scale,
                     exact = std::fabs(static_cast<double>(x[k]));
        CHECK(std::fabs(back - exact) <= 1e-6 * exact + 0x1p-43 * largest, "2^%d: %g for %g", exponent, back, exact);
      }
      for (const cpu::Kernels* k : levels()) {
        std::vector<float> y = blank<float>(n);
        CHECK(k->square_row(x.data(), n, y.data()) == scale && y == want, "%s, n %lld", k->name,
              static_cast<long long>(n));
      }
    }
    for (int which = 1; which < 8; ++which) {
      std::vector<float> v(static_cast<size_t>(n)), product(v), read(v);
      for (int64_t j = 0; j < n; ++j) {
        v[j] = static_cast<float>(r.below(1000)), product[j] = static_cast<float>(r.below(1000)) * 1e17f;
        read[j] = static_cast<float>(r.below(3)) * 1e18f;
      }
      Deviations d;
      d.n = n, d.row_scale = 0.5f, d.row_length = 3.0f;
      if (which & 1) d.per_product = product.data();
      if (which & 2) d.read = read.data();
      if (which & 4) d.per_step = 1e19f;
      std::vector<float> want = v;
      levels().back()->deviations(d, want.data());
      for (int64_t j = 0; j < n; ++j) {
        const double p = which & 1 ? std::sqrt(static_cast<double>(v[j])) * product[j] * 0.5 : 0,
                     s = which & 2 ? 3.0 * read[j] : 0, a = which & 4 ? 1e19 : 0;
        CHECK(std::fabs(want[j] - std::sqrt(p * p + s * s + a * a)) <= 1e-6 * want[j], "%d: %g", which, want[j]);
      }
      for (const cpu::Kernels* k : levels()) {
        std::vector<float> y = v;
        k->deviations(d, y.data());
        CHECK(y == want, "%s, %d", k->name, which);
      }
    }
  }
}

TEST(level_choice) {
  for (const cpu::Kernels* k : levels()) {
    CHECK(cpu::set_level(k->name) && cpu::current_level() == k, "%s", k->name);
    setenv("NOISYKERNELS_CPU_LEVEL", k->name, 1);
    CHECK(cpu::set_level("auto") && cpu::current_level() == k, "%s", k->name);
  }
  CHECK(!cpu::set_level("none such") && cpu::current_level() == levels().back(),
        "a level that is not there changes nothing");
  setenv("NOISYKERNELS_CPU_LEVEL", "none such", 1);
  CHECK(!cpu::set_level("auto"));
  unsetenv("NOISYKERNELS_CPU_LEVEL");
  CHECK(cpu::set_level("auto") && cpu::current_level() == levels().front());
  CHECK(std::strcmp(levels().back()->name, "portable") == 0);
}

TEST(forked_child) {
  Random r{8};
  auto c = random_case<float>(r, Mode::kEps, 0, 100000, false);
  std::vector<float> y = blank<float>(c.total()), want = blank<float>(c.total());
  c.e.y = want.data();
  cpu::run(*levels().front(), c.e, kMostOpenMpThreads);  // the parent has its pool of threads; the child will not
  CHECK(!cpu::in_forked_child());
  const pid_t child = fork();
  if (child == 0) {
    c.e.y = y.data();
    cpu::run(*levels().front(), c.e, kMostOpenMpThreads);
    _exit(cpu::in_forked_child() && y == want ? 0 : 1);
  }
  int status = -1;
  for (int i = 0; i < 6000 && waitpid(child, &status, WNOHANG) == 0; ++i) usleep(10000);
  if (status == -1) kill(child, SIGKILL);
  CHECK(status == 0, "%d (-1: the child hangs)", status);
}
