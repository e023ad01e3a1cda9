// Writes the raw words of the noise generator to stdout, as the counter layout delivers them, for a test battery to
// read.
//   stream WALK [--seed N] [--rounds N] [--words N]
//   stream --bad NAME      a generator known to be bad, to see a battery fail
// A walk is the order in which the counter words run: the first coordinate named runs fastest.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../../csrc/noise.h"

namespace nk = noisykernels;

namespace {

struct Walk {
  const char* name;
  const char* order;
};
constexpr Walk kWalks[] = {
    {"element", "blocks of a row of 3072 elements, then rows (32 bits), then draws"},
    {"row", "rows (32 bits) at one element block, then the next block"},
    {"draw", "draws (32 bits) at one element block, then the next block"},
    {"site", "sites (24 bits) at one element block, then the next block"},
    {"operand", "the operands, then sites (24 bits), then the next block"},
    {"seed", "seeds 0, 1, 2, ... of one element block, its coordinates all 0"},
};
constexpr uint32_t kRowBlocks = 3072 / 4;
constexpr uint32_t kOperands = static_cast<uint32_t>(nk::Operand::kCount);
// Where the coordinates that a walk leaves alone stand; any numbers would do.
constexpr uint32_t kSite = 0x2f1c07, kRow = 5, kDraw = 3;

struct Position {
  uint64_t key;
  uint32_t counter[4];
};

// The i-th block of a walk.
Position at(const char* walk, uint64_t seed, uint64_t i) {
  const auto word3 = [](uint64_t site, uint64_t operand) {
    return nk::counter_word3(static_cast<uint32_t>(site & 0xffffff), static_cast<nk::Operand>(operand));
  };
  const auto low = static_cast<uint32_t>(i), high = static_cast<uint32_t>(i >> 32);
  const uint64_t rows = i / kRowBlocks;
  switch (walk[0]) {
    case 'e':
      return {seed,
              {static_cast<uint32_t>(i % kRowBlocks), static_cast<uint32_t>(rows), static_cast<uint32_t>(rows >> 32),
               word3(kSite, 0)}};
    case 'r':
      return {seed, {high, low, kDraw, word3(kSite, 0)}};
    case 'd':
      return {seed, {high, kRow, low, word3(kSite, 0)}};
    case 's':
      if (walk[1] == 'e') return {seed + i, {0, 0, 0, 0}};
      return {seed, {static_cast<uint32_t>(i >> 24), kRow, kDraw, word3(i, 0)}};
    default:
      return {seed, {static_cast<uint32_t>(i / kOperands >> 24), kRow, kDraw, word3(i / kOperands, i % kOperands)}};
  }
}

// Philox with any number of rounds up to ten; ten are the library's own loop.
void philox(const Position& p, int rounds, uint32_t out[4]) {
  const nk::RoundKeys<uint32_t> keys(p.key);
  std::memcpy(out, p.counter, sizeof p.counter);
  if (rounds == nk::kRounds) return nk::philox(keys, out);
  for (int r = 0; r < rounds; ++r) nk::philox_round(out, keys.k0[r], keys.k1[r]);
}

struct Bad {
  const char* name;
  const char* what;
};
constexpr Bad kBad[] = {
    {"randu", "RANDU, x = 65539 x mod 2^31, shifted up by one bit"},
    {"counter", "0, 1, 2, ..."},
    {"added_seed",
     "the element walk with block b of row r drawn as block 0 of seed b + r: a loop index added to a seed"},
    {"short_table", "a table of 32,768 words, read over and over"},
};

template <class Fill>
void write(uint64_t words, Fill&& fill) {  // fill(i, out): the four words of block i
  std::vector<uint32_t> buffer(1 << 14);
  for (uint64_t i = 0; words > 0;) {
    const uint64_t count = words < buffer.size() ? words : buffer.size();
    for (size_t k = 0; k < buffer.size(); k += 4) fill(i++, &buffer[k]);
    if (std::fwrite(buffer.data(), 4, count, stdout) != count) return;  // the reader has enough
    words -= count;
  }
}

int usage() {
  std::fputs("stream WALK [--seed N] [--rounds 1..10] [--words N]\nstream --bad NAME [--words N]\n", stderr);
  for (const Walk& w : kWalks) std::fprintf(stderr, "  %-12s %s\n", w.name, w.order);
  for (const Bad& b : kBad) std::fprintf(stderr, "  --bad %-12s %s\n", b.name, b.what);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  const char *walk = nullptr, *bad = nullptr;
  uint64_t seed = 0, words = UINT64_MAX;
  int rounds = nk::kRounds;
  for (int i = 1; i < argc; ++i) {
    const auto is = [&](const char* name) { return std::strcmp(argv[i], name) == 0 && i + 1 < argc; };
    if (is("--seed")) {
      seed = std::strtoull(argv[++i], nullptr, 0);
    } else if (is("--rounds")) {
      rounds = std::atoi(argv[++i]);
    } else if (is("--words")) {
      words = std::strtoull(argv[++i], nullptr, 0);
    } else if (is("--bad")) {
      ++i;
      for (const Bad& b : kBad) bad = std::strcmp(argv[i], b.name) == 0 ? b.name : bad;
      if (bad == nullptr) return usage();
    } else {
      for (const Walk& w : kWalks) walk = std::strcmp(argv[i], w.name) == 0 ? w.name : walk;
      if (walk == nullptr) return usage();
    }
  }
  if ((walk == nullptr) == (bad == nullptr) || rounds < 1 || rounds > nk::kRounds) return usage();

  if (walk != nullptr) {
    write(words, [&](uint64_t i, uint32_t* out) { philox(at(walk, seed, i), rounds, out); });
  } else if (std::strcmp(bad, "randu") == 0) {
    write(words, [x = 1u](uint64_t, uint32_t* out) mutable {
      for (int k = 0; k < 4; ++k) out[k] = (x = x * 65539u & 0x7fffffffu) << 1;
    });
  } else if (std::strcmp(bad, "counter") == 0) {
    write(words, [](uint64_t i, uint32_t* out) {
      for (uint32_t k = 0; k < 4; ++k) out[k] = static_cast<uint32_t>(4 * i) + k;
    });
  } else if (std::strcmp(bad, "added_seed") == 0) {
    write(words,
          [](uint64_t i, uint32_t* out) { philox({i % kRowBlocks + i / kRowBlocks, {0, 0, 0, 0}}, nk::kRounds, out); });
  } else {
    write(words,
          [](uint64_t i, uint32_t* out) { philox({0, {static_cast<uint32_t>(i % 8192), 0, 0, 0}}, nk::kRounds, out); });
  }
}
