// The product with noise in its end (csrc/cuda/gemm.cu): the CPU's noise, bit for bit, on a product that is exact; and
// the product itself within the bounds of its roundings. On the host's emulated device or, compiled with the CUDA
// toolkit, on a GPU.
#include <cmath>

#include "on_device.h"

using namespace noisykernels;
using namespace noisykernels::test;

namespace {

// A product of [M, K] and [N, K]: the rows of `noise` are `inner` rows of the product each.
template <class T>
struct ProductCase {
  Case<T> noise;  // x: the noiseless result, where it is exact
  std::vector<T> a, w, bias;
  int64_t M, N, K;

  ProductCase(Random& r, Mode mode, int kind, int64_t inner, int64_t n, int64_t k, bool hostile)
      : noise(random_case<T>(r, mode, kind, inner * n, hostile)), M(0), N(n), K(k) {
    Epilogue& e = noise.e;
    // Levels by element were made for whatever order of memory the case had: they are as good for this one.
    e.shared = false, e.channels = 1, noise.bias.clear();
    M = e.noise.D * e.noise.B * inner;
    if (r.one_in(2)) bias.resize(static_cast<size_t>(N));
    a.resize(static_cast<size_t>(M * K)), w.resize(static_cast<size_t>(N * K)),
        noise.x.resize(static_cast<size_t>(M * N));
    noise.point();
  }

  template <class Fn>
  void fill(Fn&& number) {
    for (std::vector<T>* v : {&a, &w, &bias}) {
      for (T& one : *v) one = narrow<T>(number());
    }
  }
  // The sum of products at a place, the bias among them, and of their magnitudes.
  std::pair<double, double> sum(int64_t m, int64_t n) const {
    double total = bias.empty() ? 0 : static_cast<double>(widen(bias[static_cast<size_t>(n)])),
           magnitude = std::fabs(total);
    for (int64_t k = 0; k < K; ++k) {
      const double p = static_cast<double>(widen(a[static_cast<size_t>(m * K + k)])) *
                       static_cast<double>(widen(w[static_cast<size_t>(n * K + k)]));
      total += p, magnitude += std::fabs(p);
    }
    return {total, magnitude};
  }
};

// The results on the device, in every order of its threads.
template <class T, class Fn>
void each_result(const ProductCase<T>& c, bool tf32, Fn&& look) {
  in_every_order(2, [&](const char* how) {
    const DeviceCase<T> d(c.noise, 0);
    const OnDevice<T> a(c.a), w(c.w), bias(c.bias), y(blank<T>(c.M * c.N));
    cuda::Gemm g;
    g.epilogue = d.e, g.epilogue.y = y.data();
    g.a = a.data(), g.w = w.data(), g.bias = bias.data_or_null();
    g.M = c.M, g.N = c.N, g.K = c.K, g.tf32 = tf32;
    CHECK(cuda::fits(g), "M %lld N %lld K %lld", static_cast<long long>(c.M), static_cast<long long>(c.N),
          static_cast<long long>(c.K));
    run_to_the_end(g, how);
    look(how, y.copy());
  });
}

template <class T>
void check_noise(Random& r, ProductCase<T>& c, bool tf32) {
  c.fill([&] { return static_cast<float>(r.below(5) - 2); });
  for (int64_t m = 0; m < c.M; ++m) {
    for (int64_t k = 0; k < c.N; ++k) {
      c.noise.x[static_cast<size_t>(m * c.N + k)] = narrow<T>(static_cast<float>(c.sum(m, k).first));
    }
  }
  std::vector<T> want = blank<T>(c.M * c.N);
  c.noise.e.y = want.data();
  cpu::run(*levels().front(), c.noise.e, 1);
  each_result(c, tf32, [&](const char* how, const std::vector<T>& got) {
    for (size_t k = 0; k < want.size(); ++k) {
      if (same(got[k], want[k])) continue;
      const NoiseParams& p = c.noise.e.noise;
      CHECK(false, "%s: mode %d kind %d dtype %d tf32 %d M %lld N %lld K %lld n %lld: value %zu is %.9g, not %.9g", how,
            static_cast<int>(p.mode), p.kind, static_cast<int>(c.noise.e.dtype), tf32, static_cast<long long>(c.M),
            static_cast<long long>(c.N), static_cast<long long>(c.K), static_cast<long long>(c.noise.e.n), k,
            static_cast<double>(widen(got[k])), static_cast<double>(widen(want[k])));
      return;
    }
  });
}

template <class T>
void check_sums(Random& r, bool tf32) {
  ProductCase<T> c(r, Mode::kAdd, 0, 1, 64 + 4 * r.below(30), (1 + r.below(12)) * 16 / static_cast<int64_t>(sizeof(T)),
                   false);
  c.noise.e.relu = false, c.noise.add.assign(c.noise.add.size(), 0), c.noise.point();
  c.fill([&] { return static_cast<float>(r.uniform() - 0.5) * (r.one_in(9) ? 100 : 1); });
  // K + 2 roundings of 2^-24 (Higham, section 4.2; a tensor core may cut where it should round, which counts double);
  // of both factors by 2^-11 as tf32; and the result's own.
  const double own = sizeof(T) == 4 ? 0x1p-24 : std::is_same_v<T, BFloat16> ? 0x1p-8 : 0x1p-11;
  const double of_sum = 2 * static_cast<double>(c.K + 2) * 0x1p-24 + (tf32 ? 0x1p-10 + 0x1p-21 : 0);
  each_result(c, tf32, [&](const char* how, const std::vector<T>& got) {
    for (int64_t m = 0; m < c.M; ++m) {
      for (int64_t n = 0; n < c.N; ++n) {
        const auto [total, magnitude] = c.sum(m, n);
        const double error = std::fabs(static_cast<double>(widen(got[static_cast<size_t>(m * c.N + n)])) - total);
        const double bound = of_sum * magnitude * (1 + own) + own * std::fabs(total) + 0x1p-25;
        CHECK(error <= bound, "%s: tf32 %d K %lld: error %g, at most %g", how, tf32, static_cast<long long>(c.K), error,
              bound);
      }
    }
  });
}

// f.template operator()<T>(tf32) for every way to multiply.
template <class Fn>
void for_each_way(Fn&& f) {
  f.template operator()<BFloat16>(false);
  f.template operator()<Float16>(false);
  f.template operator()<float>(true);
  f.template operator()<float>(false);
}

}  // namespace

TEST(cuda_product_noise) {
  Random r{21};
  for (int round = 0; round < (g_full ? 60 : 1); ++round) {
    for (int mode = 0; mode < static_cast<int>(Mode::kEps); ++mode) {
      for_each_way([&]<class T>(bool tf32) {
        const int kind = static_cast<Mode>(mode) == Mode::kFold ? 0 : static_cast<int>(r.below(Kinds::kSize));
        constexpr int64_t kPerChunk = 16 / sizeof(T), kSizes[] = {4, 12, 64, 68, 128, 140};
        const int64_t inner = r.one_in(2) ? 1 : 1 + r.below(40), k = (1 + r.below(r.one_in(3) ? 20 : 5)) * kPerChunk;
        ProductCase<T> c(r, static_cast<Mode>(mode), kind, inner, kSizes[r.below(6)], k, r.one_in(3));
        check_noise(r, c, tf32);
      });
    }
  }
}

// More tiles of rows than are taken together.
TEST(cuda_product_of_many_rows) {
  Random r{24};
  ProductCase<Float16> c(r, Mode::kAdd, 0, 2200, 132, 8, false);
  check_noise(r, c, false);
}

TEST(cuda_product_sums) {
  Random r{22};
  for (int round = 0; round < (g_full ? 20 : 1); ++round) {
    for_each_way([&]<class T>(bool tf32) { check_sums<T>(r, tf32); });
  }
}

TEST(cuda_product_limits) {
  Random r{23};
  ProductCase<BFloat16> c(r, Mode::kAdd, 0, 1, 8, 16, false);
  const OnDevice<BFloat16> a(c.a, 1), w(c.w);
  cuda::Gemm g;
  g.epilogue = c.noise.e, g.M = c.M, g.N = c.N, g.K = c.K, g.w = w.data();
  CHECK(cuda::is_built_for_device());
  CHECK(cuda::fits(g));
  g.a = a.data();
  CHECK(!cuda::fits(g), "a misaligned");
  g.a = nullptr, g.K = 12;
  CHECK(!cuda::fits(g), "rows that are not of whole chunks");
  g.K = 16, g.N = 6;
  CHECK(!cuda::fits(g), "columns that are not of whole blocks");
  g.N = 8, g.epilogue.shared = true;
  CHECK(!cuda::fits(g), "one product for several draws");
  g.epilogue.shared = false, g.epilogue.dtype = DType::kFloat64;
  CHECK(!cuda::fits(g), "float64");
}
