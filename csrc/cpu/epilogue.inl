// Noise on values, over the lanes of an instruction-set level A. Work goes in chunks of at most 1024 values: words,
// then eps, then the formula, all within the L1 cache.
#pragma once

#include <algorithm>
#include <cstring>

#include "launch.h"
#include "scratch.h"

namespace noisykernels::cpu {
namespace {  // each level keeps its own copies

inline constexpr int kChunk = 1024;    // values
inline constexpr int kPad = 64;        // slack behind every buffer, so that vector steps may overrun
inline constexpr int kTile = 32;       // positions of a channels_last tile where there are many
inline constexpr int kWholeTile = 64;  // up to so many, a tile holds them all

// ------------------------------------------------------------------------------------------------------ generator

template <class A>
class Generator {
 public:
  Generator(uint64_t seed, int kind) : seed_(seed), keys_(seed) {
    Kinds::visit(kind, [&]<class Kind>() { sample_ = &sample_blocks<Kind>; });
  }

  // Of values that another sampler than a kind's makes of the words.
  template <class Sampler>
  static Generator of(uint64_t seed) {
    Generator made(seed, 0);
    made.sample_ = &sample_blocks<Sampler>;
    return made;
  }

  // z[0 .. 4 count) (and up to kPad more) = eps of blocks first, first + 1, ... of one row.
  void in_row(uint32_t row, uint32_t draw, uint32_t word3, uint32_t first, int count, float* z) {
    const RowConstants<typename A::Key> constants(seed_, row, draw, word3);
    int i = 0;
    for (; i + A::kStep < count; i += A::kSteps * A::kStep) {  // several steps at once, if there are the registers
      A::template words_in_row<A::kSteps>(keys_, constants, first + i, words_ + 4 * i);
    }
    if (i < count) A::template words_in_row<1>(keys_, constants, first + i, words_ + 4 * i);
    sample_(words_, count, z);
  }

  // The same for any list of blocks of one row.
  void listed(uint32_t row, uint32_t draw, uint32_t word3, const uint32_t* block, int count, float* z) {
    const RowConstants<typename A::Key> constants(seed_, row, draw, word3);
    for (int i = 0; i < count; i += A::kStep) A::words_listed(keys_, constants, block + i, words_ + 4 * i);
    sample_(words_, count, z);
  }

  // The same for any list of (block, row, draw).
  void anywhere(const uint32_t* block, const uint32_t* row, const uint32_t* draw, uint32_t word3, int count, float* z) {
    for (int i = 0; i < count; i += A::kStep) A::words(keys_, block + i, row + i, draw + i, word3, words_ + 4 * i);
    sample_(words_, count, z);
  }

 private:
  template <class Kind>
  static void sample_blocks(const uint32_t* words, int count, float* z) {
    for (int i = 0; i < count; i += A::kLanes) A::template sample<Kind>(words + 4 * i, z + 4 * i);
  }

  uint64_t seed_;
  RoundKeys<typename A::Key> keys_;
  void (*sample_)(const uint32_t*, int, float*) = nullptr;
  alignas(64) uint32_t words_[kChunk + kPad];
};

// ---------------------------------------------------------------------------------------------- formula on a chunk

// Everything that a chunk of consecutive output values needs, one array entry per value.
template <class C>
struct Operands {
  alignas(64) float ea[kChunk + kPad], em[kChunk + kPad];
  alignas(64) C a[kChunk + kPad], m[kChunk + kPad], bias[kChunk + kPad];
};

template <class A, Mode M, class T, class O, class C>
NK_HD void formula(const T* x, O* y, const Operands<C>& op, int i, bool has_bias, C low) {
  using L = typename A::template Lanes<C>;
  typename L::V v = M == Mode::kEps ? L::splat(C(0)) : L::load(x);
  if (has_bias) v = add_rn(v, L::load(op.bias + i));
  v = apply_noise<M>(v, L::load(op.a + i), L::load(op.m + i), L::load_eps(op.ea + i), L::load_eps(op.em + i));
  L::store(y, larger(L::splat(low), v));
}

template <class A, Mode M, class T, class O, class C>
void formula_chunk(const T* x, O* y, const Operands<C>& op, int count, bool has_bias, bool relu) {
  constexpr int kWidth = A::template Lanes<C>::kWidth;
  const C low = relu ? C(0) : -kInfinity<C>;
  int i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    formula<A, M>(M == Mode::kEps ? x : x + i, y + i, op, i, has_bias, low);
  }
  if (i < count) {
    T x_tail[kWidth] = {};
    O y_tail[kWidth];
    if (M != Mode::kEps) std::memcpy(x_tail, x + i, sizeof(T) * (count - i));
    formula<A, M>(x_tail, y_tail, op, i, has_bias, low);
    std::memcpy(y + i, y_tail, sizeof(O) * (count - i));
  }
}

// A level as an array over the chunk. A constant is written once and kept: out[0 .. filled_) holds value_.
template <class C>
class LevelFiller {
 public:
  explicit LevelFiller(const Level& level) : level_(level) {}

  // Returns whether all of the levels are good.
  bool fill(C* out, int at, int count, int64_t draw, int64_t row, int64_t item) {
    const C* p = static_cast<const C*>(level_.data) + draw * level_.draw_stride + row * level_.row_stride;
    if (level_.item_stride == 0) {
      const C v = checked_level(level_of_row(level_, p));
      const bool same = std::memcmp(&v, &value_, sizeof v) == 0;
      if (same && at + count <= filled_) return v == v;
      std::fill_n(out + at, count, v);
      if (same && at <= filled_) {
        filled_ = at + count;
      } else if (at == 0) {
        value_ = v;
        filled_ = count;
      } else {
        filled_ = std::min(filled_, at);
      }
      return v == v;
    }
    filled_ = 0;
    bool good = true;
    for (int i = 0; i < count; ++i) {
      out[at + i] = checked_level(p[item + i]);
      good = good && out[at + i] == out[at + i];
    }
    return good;
  }

  void forget() { filled_ = 0; }  // what it wrote has been changed

 private:
  const Level& level_;
  int filled_ = 0;
  C value_ = C(-1);
};

// ------------------------------------------------------------------------------------------------------- epilogue

// Applies an epilogue to ranges of its output. T: type of the data, O: type written, C: type computed in.
template <class A, Mode M, class T, class O, class C>
class Applier {
 public:
  Applier(const Epilogue& e, O* y)
      : e_(e), p_(e.noise), y_(y), gen_(seed_of(p_), p_.kind), add_(p_.add), mul_(p_.mul) {}

  void set_output(O* y) { y_ = y; }

  void range(int64_t begin, int64_t end) {
    if (e_.channels > 1) {
      channels_last(begin / e_.n, end / e_.n);
    } else if (short_rows(e_.n)) {
      rows(begin / e_.n, end / e_.n);
    } else {
      while (begin < end) {
        const int64_t i = begin / e_.n, stop = std::min(end, (i + 1) * e_.n);
        long_row(i, begin - i * e_.n, stop - i * e_.n);
        begin = stop;
      }
    }
  }

 private:
  Ids ids(int64_t i) const { return ids_of(p_, i / p_.B, i % p_.B); }

  const T* x_row(int64_t i) const {
    return M == Mode::kEps ? nullptr : static_cast<const T*>(e_.x) + (e_.shared ? i % p_.B : i) * e_.n;
  }

  // Levels and bias of `count` values of a row from its memory position `item` on, to chunk position `at`.
  void fill(const Ids& id, int at, int count, int64_t item) {
    bool good = true;
    if constexpr (has_add_level(M)) good = add_.fill(op_.a, at, count, id.d, id.b, item) && good;
    if constexpr (has_mul_level(M)) good = mul_.fill(op_.m, at, count, id.d, id.b, item) && good;
    if (M == Mode::kFold && !good) {  // the formula compares its levels, so a NaN must be in both
      for (int i = at; i < at + count; ++i) {
        if (op_.a[i] == op_.a[i] && op_.m[i] == op_.m[i]) continue;
        op_.a[i] = op_.m[i] = kNaN<C>;
      }
      add_.forget(), mul_.forget();
    }
    if (e_.bias != nullptr) fill_bias(at, count, item % e_.bias_size);
    if (!id.valid) {
      for (int i = at; i < at + count; ++i) op_.ea[i] = op_.em[i] = kNaN<float>;
    }
  }

  void fill_bias(int at, int count, int64_t first) {
    if (at == 0 && first == bias_first_ && count <= bias_filled_) return;
    const T* bias = static_cast<const T*>(e_.bias);
    if (at == 0) bias_first_ = first, bias_filled_ = count;
    for (int64_t k = first; count > 0; k = 0) {
      const int part = static_cast<int>(std::min<int64_t>(count, e_.bias_size - k));
      for (int i = 0; i < part; ++i) op_.bias[at + i] = A::template Lanes<C>::widen(bias[k + i]);
      at += part, count -= part;
    }
  }

  void apply(const T* x, O* y, int count) { formula_chunk<A, M>(x, y, op_, count, e_.bias != nullptr, e_.relu); }

  uint32_t word3(Operand o) const { return counter_word3(p_.site, o); }

  void long_row(int64_t i, int64_t begin, int64_t end) {
    const Ids id = ids(i);
    const T* x = x_row(i);
    for (int64_t at = begin; at < end;) {
      const int skip = static_cast<int>(at % 4);  // a range may begin inside a block
      const int count = static_cast<int>(std::min<int64_t>(end - at, kChunk - skip));
      const int blocks = (skip + count + 3) / 4;
      const auto block = static_cast<uint32_t>(at / 4);
      if (M != Mode::kEps) {  // the values may lie beyond the L1 cache; they arrive while the noise is drawn
        for (int k = 0; k < count; k += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(x + at + k);
      }
      if constexpr (draws_add(M)) {
        eps(op_.ea, [&](float* z) { gen_.in_row(id.row, id.draw, word3(p_.operand), block, blocks, z); }, skip, count);
      }
      if constexpr (draws_mul(M)) {
        eps(
            op_.em, [&](float* z) { gen_.in_row(id.row, id.draw, word3(mul_operand(p_)), block, blocks, z); }, skip,
            count);
      }
      fill(id, 0, count, at);
      apply(M == Mode::kEps ? x : x + at, y_ + i * e_.n + at, count);
      at += count;
    }
  }

  template <class Draw>
  static void eps(float* out, Draw&& draw, int skip, int count) {
    draw(out);
    if (skip != 0) std::memmove(out, out + skip, sizeof(float) * count);
  }

  // Many rows in one chunk: lanes hold blocks of different rows; the eps behind the end of a row is dropped.
  void rows(int64_t begin, int64_t end) {
    const int n = static_cast<int>(e_.n), blocks = (n + 3) / 4;
    const int fit = std::max(1, std::min(kChunk / n, kChunk / (4 * blocks)));
    uint32_t block[kChunk / 4 + kPad], row[kChunk / 4 + kPad], draw[kChunk / 4 + kPad];
    alignas(64) float z[kChunk + kPad];
    for (int64_t i = begin; i < end;) {
      const int64_t same_x = e_.shared ? p_.B - i % p_.B : end - i;  // x must be consecutive too
      const int count = static_cast<int>(std::min<int64_t>({fit, end - i, same_x}));
      for (int r = 0; r < count; ++r) {
        const Ids id = ids(i + r);
        for (int k = 0; k < blocks; ++k) {
          block[r * blocks + k] = k;
          row[r * blocks + k] = id.row;
          draw[r * blocks + k] = id.draw;
        }
      }
      const auto draw_eps = [&](Operand o, float* out) {
        gen_.anywhere(block, row, draw, word3(o), count * blocks, z);
        for (int r = 0; r < count; ++r) A::copy(out + r * n, z + r * 4 * blocks, n);  // overruns into the next row
      };
      if constexpr (draws_add(M)) draw_eps(p_.operand, op_.ea);
      if constexpr (draws_mul(M)) draw_eps(mul_operand(p_), op_.em);
      for (int r = 0; r < count; ++r) fill(ids(i + r), r * n, n, 0);
      apply(x_row(i), y_ + i * n, count * n);
      i += count;
    }
  }

  // Memory order [positions, channels], element = channel * positions + position: tiles of some positions and all
  // channels are drawn channel by channel and transposed.
  void channels_last(int64_t begin, int64_t end) {
    const int64_t channels = e_.channels, positions = e_.n / channels;
    const int64_t tile = positions <= kWholeTile ? positions : kTile;
    Scratch scratch(2 * sizeof(float) * (tile * channels + kPad));
    float* tile_a = scratch.as<float>();
    float* tile_m = tile_a + tile * channels + kPad;
    for (int64_t i = begin; i < end; ++i) {
      const Ids id = ids(i);
      const T* x = x_row(i);
      for (int64_t p0 = 0; p0 < positions; p0 += tile) {
        const int width = static_cast<int>(std::min(tile, positions - p0));
        if constexpr (draws_add(M)) draw_tile(id, p_.operand, p0, width, tile_a);
        if constexpr (draws_mul(M)) draw_tile(id, mul_operand(p_), p0, width, tile_m);
        const int64_t first = p0 * channels, stop = (p0 + width) * channels;
        for (int64_t at = first; at < stop; at += kChunk) {
          const int count = static_cast<int>(std::min<int64_t>(kChunk, stop - at));
          if constexpr (draws_add(M)) std::memcpy(op_.ea, tile_a + (at - first), sizeof(float) * count);
          if constexpr (draws_mul(M)) std::memcpy(op_.em, tile_m + (at - first), sizeof(float) * count);
          fill(id, 0, count, at);
          apply(M == Mode::kEps ? x : x + at, y_ + i * e_.n + at, count);
        }
      }
    }
  }

  // tile[p * channels + c] = eps of element c * positions + p0 + p, for all channels and p < width.
  void draw_tile(const Ids& id, Operand operand, int64_t p0, int width, float* tile) {
    const int64_t channels = e_.channels, positions = e_.n / channels;
    const bool whole = width == positions;             // then the elements of neighbouring channels are neighbours
    const int most = whole ? 0 : (width + 3) / 4 + 1;  // blocks of one channel
    int group = whole ? std::max(1, (kChunk - 4) / width) : kChunk / 4 / most;
    if (group > A::kSquare) group -= group % A::kSquare;
    alignas(64) float z[kChunk + kPad];
    uint32_t block[kChunk / 4 + kPad];
    int first[kChunk];  // place of each channel's first value in z
    for (int64_t c0 = 0; c0 < channels; c0 += group) {
      const int count = static_cast<int>(std::min<int64_t>(group, channels - c0));
      const int64_t element = c0 * positions + p0;
      int blocks = 0;
      if (whole) {
        for (int c = 0; c < count; ++c) first[c] = static_cast<int>(element % 4) + c * width;
        blocks = (first[0] + count * width + 3) / 4;
        gen_.in_row(id.row, id.draw, word3(operand), static_cast<uint32_t>(element / 4), blocks, z);
      } else {
        for (int c = 0; c < count; ++c) {
          const int64_t e = element + c * positions;
          first[c] = 4 * blocks + static_cast<int>(e % 4);
          for (int64_t b = e / 4; b <= (e + width - 1) / 4; ++b) block[blocks++] = static_cast<uint32_t>(b);
        }
        gen_.listed(id.row, id.draw, word3(operand), block, blocks, z);
      }
      const int squares = channels < A::kSquare ? A::kSquare : count / A::kSquare * A::kSquare;
      // Where there are few channels, a square overruns into the next positions, which are written after it.
      for (int c = count; c < squares; ++c) first[c] = first[0];
      const int by_squares = width / A::kSquare * A::kSquare;
      for (int c = 0; c < squares; c += A::kSquare) {
        for (int p = 0; p < by_squares; p += A::kSquare)
          A::transpose(z + p, first + c, tile + p * channels + c0 + c, channels);
      }
      transpose_rest(z, first, 0, std::min(squares, count), by_squares, width, tile + c0);
      transpose_rest(z, first, squares, count, 0, width, tile + c0);
    }
  }

  void transpose_rest(const float* z, const int* first, int c0, int c1, int p0, int p1, float* to) const {
    for (int p = p0; p < p1; ++p) {
      for (int c = c0; c < c1; ++c) to[p * e_.channels + c] = z[first[c] + p];
    }
  }

  const Epilogue& e_;
  const NoiseParams& p_;
  O* y_;
  Generator<A> gen_;
  LevelFiller<C> add_, mul_;
  int64_t bias_first_ = -1;  // op_.bias[0 .. bias_filled_) holds the bias from here on, repeated
  int bias_filled_ = 0;
  Operands<C> op_;
};

template <class A>
void epilogue_range(const Epilogue& e, int64_t begin, int64_t end) {
  visit(e, [&]<Mode M, class T, class C>() { Applier<A, M, T, T, C>(e, static_cast<T*>(e.y)).range(begin, end); });
}

}  // namespace
}  // namespace noisykernels::cpu
