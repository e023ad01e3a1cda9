// The definition of the noise: generator, kinds, half-precision conversions, and digests of everything. The native
// tests are built for every compiler, optimisation level and architecture that cross.sh finds; the digests must come
// out the same in all of them.
#include <fstream>
#include <sstream>
#include <string>

#include "check.h"
#include "digest.h"

using namespace noisykernels;
using namespace noisykernels::test;

// --------------------------------------------------------------------------------------------------------- definition

TEST(known_answers) {
  std::ifstream file(NK_PHILOX_KAT);
  int seen = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line.substr(0, line.find('#')));
    int rounds = 0;
    uint32_t w[10];
    if (!(in >> rounds) || rounds != kRounds) continue;
    in >> std::hex;
    for (uint32_t& v : w) in >> v;
    CHECK(!in.fail(), "not a vector: %s", line.c_str());
    uint32_t c[4], row[4] = {0xcacacaca, 0xcacacaca, 0xcacacaca, 0xcacacaca};
    std::memcpy(c, w, sizeof c);
    const uint64_t seed = w[4] | static_cast<uint64_t>(w[5]) << 32;
    const RoundKeys<uint32_t> keys(seed);
    philox(keys, c);
    philox_in_row(keys, RowConstants<uint32_t>(seed, w[1], w[2], w[3]), w[0], row);
    for (int i = 0; i < 4; ++i) CHECK(c[i] == w[6 + i] && row[i] == w[6 + i], "word %d of %s", i, line.c_str());
    ++seen;
  }
  CHECK(seen >= 3, "%d vectors of ten rounds in %s", seen, NK_PHILOX_KAT);
}

TEST(row_constants) {
  Random r{1};
  const auto word = [&] {
    return r.one_in(4) ? 0u - static_cast<uint32_t>(r.below(2)) : static_cast<uint32_t>(r.bits());
  };
  for (int i = 0; i < 200000; ++i) {
    const uint64_t seed = r.one_in(4) ? 0 - r.bits() % 2 : r.bits();
    const RoundKeys<uint32_t> keys(seed);
    uint32_t c[4] = {word(), word(), word(), word()}, row[4] = {0xcacacaca, 0xcacacaca, 0xcacacaca, 0xcacacaca};
    philox_in_row(keys, RowConstants<uint32_t>(seed, c[1], c[2], c[3]), c[0], row);
    philox(keys, c);
    CHECK(std::memcmp(c, row, sizeof c) == 0, "seed %llx", static_cast<unsigned long long>(seed));
  }
}

// The kinds against their formulas in double with libm, from the same uniform number in float. The errors of the
// polynomials (1.9e-7 for the logarithm) and of a few roundings (6e-8 each) stay below 4e-7 of the radius or magnitude.
TEST(transforms) {
  const auto log_of = [](uint32_t w) -> double {
    const float u = std::fma(static_cast<float>(w / 2), 0x1p-31f, 0x1p-32f);
    return -2 * std::log(static_cast<double>(u));
  };
  double gaussian = 0, uniform = 0, laplace = 0, top = 0;
  const auto raise = [](double& most, double v) {
    most = std::fabs(v) <= most || most != most ? most : std::fabs(v);
  };  // keeps a NaN
  const auto check = [&](const uint32_t w[4]) {
    float z[4];
    sample_block<Gaussian>(w, z);
    for (int i = 0; i < 4; i += 2) {
      const double radius = std::sqrt(log_of(w[i])), unit = radius + 1e-30;
      const double angle = (static_cast<int32_t>(w[i + 1] << 2) * 0x1p-32 + 0.5) * std::acos(0.0);
      const double c = std::cos(angle) * (w[i + 1] >> 31 ? -1 : 1), s = std::sin(angle) * (w[i + 1] >> 30 & 1 ? -1 : 1);
      raise(gaussian, (z[i] - radius * c) / unit), raise(gaussian, (z[i + 1] - radius * s) / unit);
      raise(top, z[i]), raise(top, z[i + 1]);
    }
    sample_block<Uniform>(w, z);
    for (int i = 0; i < 4; ++i) {
      raise(uniform, z[i] - (static_cast<int32_t>(w[i]) + 0.5) * std::sqrt(3.0) * 0x1p-31);
    }
    sample_block<Laplace>(w, z);
    for (int i = 0; i < 4; ++i) {
      const double magnitude = log_of(w[i]) / std::sqrt(8.0);
      raise(laplace, (z[i] - (w[i] % 2 ? -magnitude : magnitude)) / (magnitude + 1e-30));
      CHECK(z[i] == 0 || std::signbit(z[i]) == (w[i] % 2 == 1), "sign of %08x", w[i]);
    }
  };
  Random r{2};
  for (int i = 0; i < 200000; ++i) {
    const uint64_t a = r.bits(), b = r.bits();
    const uint32_t w[4] = {static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32), static_cast<uint32_t>(b),
                           static_cast<uint32_t>(b >> 32)};
    check(w);
  }
  for (uint32_t k = 0; k < 100000; ++k) {  // both ends, where the logarithm is largest and where it vanishes
    const uint32_t w[4] = {k, 0x20000000u ^ k << 30, 0 - k - 1, 0x1fffffffu - k};
    check(w);
  }
  std::printf("largest errors: gaussian %.3g of the radius, uniform %.3g, laplace %.3g relative; largest normal %.5f\n",
              gaussian, uniform, laplace, top);
  CHECK(gaussian < 4e-7 && uniform < 3e-7 && laplace < 4e-7 && top > 6.65 && top < 6.67);
}

// ----------------------------------------------------------------------------------------------------- half precision

TEST(halves) {
  Random r{3};
  const auto each = [&]<class T>() {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const T h = {static_cast<uint16_t>(bits)};
      const float exact = static_cast<float>(widen_by_fields(h)), wide = widen_value(h);
      CHECK(same(wide, exact), "widen %04x", bits);
      CHECK(same(narrow_value<T>(wide), h), "there and back %04x", bits);
    }
    // Every sign, exponent and upper mantissa, and what lies near a tie below it.
    for (uint32_t i = 0; i < 1 << 20; ++i) {
      const uint32_t low[] = {0, 1, 0x7ff, 0x800, 0xfff, 0x1000, 0x1001, static_cast<uint32_t>(r.below(1 << 13))};
      const float v = bits_float((i << 12) ^ low[r.below(8)]);
      CHECK(same(narrow_value<T>(v), narrow<T>(v)), "narrow %08x", float_bits(v));
    }
    // Through the kernels: multiplicative noise of level 0 leaves x + bias: often a tie, subnormal or too large.
    std::vector<T> x(65536), y;
    for (uint32_t bits = 0; bits < 65536; ++bits) x[bits].bits = static_cast<uint16_t>(bits);
    const float zero = 0;
    const int64_t seed = 0;
    for (float shift : {0.0f, 1.0f, 6.103515625e-05f, 5.9604645e-08f, -31.98f, 65504.0f}) {
      const T bias = narrow<T>(shift);
      Epilogue e;
      e.x = x.data(), e.bias = shift == 0 ? nullptr : &bias, e.bias_size = 1, e.dtype = TypeOf<T>::kDType, e.n = 65536;
      e.noise.B = 1, e.noise.seed = &seed, e.noise.mode = Mode::kMul, e.noise.mul.data = &zero;
      for (const cpu::Kernels* k : levels()) {
        y = blank<T>(e.n), e.y = y.data();
        k->epilogue(e, 0, e.n);
        for (int64_t i = 0; i < e.n; ++i) {
          const float sum = shift == 0 ? widen(x[i]) : widen(x[i]) + widen(bias);
          CHECK(same(y[i], narrow<T>(sum)), "%s: %04x + %g gives %04x", k->name, x[i].bits, shift, y[i].bits);
        }
      }
    }
  };
  each.operator()<BFloat16>();
  each.operator()<Float16>();
}

// ------------------------------------------------------------------------------------------------------------- digests

// Hashes over fixed sets of values: the same for every level, compiler, setting and machine. The first one changes only
// with kStreamVersion, the second one with the formulas or the cases.
constexpr uint64_t kNoiseDigest = 0x652b949c448322ee, kEpilogueDigest = 0x5f385def826d99db;

TEST(digests) {
  for (const cpu::Kernels* k : levels()) {
    Digest noise, epilogue;
    const int64_t seed = 0x0123456789abcdef, draws[] = {0, 0xffffffff}, rows[] = {0, 7, 0xffffffff};
    for (int kind = 0; kind < Kinds::kSize; ++kind) {
      for (int64_t n : {1, 10, 4099, 60000}) {
        std::vector<float> y = blank<float>(2 * 3 * n);
        Epilogue e;
        e.y = y.data(), e.n = n;
        e.noise.seed = &seed, e.noise.draws = draws, e.noise.D = 2, e.noise.rows = rows, e.noise.B = 3;
        e.noise.site = 0xabcdef, e.noise.operand = Operand::kWeight, e.noise.kind = kind, e.noise.mode = Mode::kEps;
        k->epilogue(e, 0, 2 * 3 * n);
        noise.add(y);
      }
    }
    Random r{9};
    for_each_type([&]<class T>() {
      for (int mode = 0; mode < static_cast<int>(Mode::kEps); ++mode) {
        for (int64_t n : {7, 48, 900, 5000}) {
          auto c = random_case<T>(r, static_cast<Mode>(mode), mode % Kinds::kSize, n, false);
          std::vector<T> y = blank<T>(c.total());
          c.e.y = y.data();
          k->epilogue(c.e, 0, c.total());
          epilogue.add(y);
        }
      }
    });
    std::printf("%-8s noise %016llx epilogue %016llx\n", k->name, static_cast<unsigned long long>(noise.h),
                static_cast<unsigned long long>(epilogue.h));
    CHECK(noise.h == kNoiseDigest && epilogue.h == kEpilogueDigest, "%s", k->name);
  }
}
