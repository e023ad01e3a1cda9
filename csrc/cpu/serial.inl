// Sums with a defined arithmetic on the CPU: tiles of outputs in registers, over the lanes of an instruction-set level
// A. Operands are copied into the order of the steps first, so that the inner loop runs straight on.
#pragma once

#include "epilogue.inl"

namespace noisykernels::cpu {
namespace {

template <class A, class C>
class SerialSums {
  using L = typename A::template Lanes<C>;
  using V = typename L::V;
  static constexpr int kRows = 4, kVectors = 2, kWide = kVectors * L::kWidth;

 public:
  explicit SerialSums(const Serial& s)
      : s_(s),
        steps_(s),
        random_(steps_.noisy || steps_.random_product || steps_.random_sum),
        noise_(Generator<A>::template of<Gaussian>(seed_of(s.noise))),
        fractions_(Generator<A>::template of<Fraction>(seed_of(s.noise))),
        a_(sizeof(C) * s.K * std::max<int64_t>(kRows, s.order_of_each ? 0 : s.block_i)),
        b_(sizeof(C) * s.K * kWide),
        random_values_(random_ ? sizeof(float) * (kStreams * kRows + 1) * random_size() : 64) {
    if (s.order_of_each) std::fill_n(a_.template as<C>(), s.K * kRows, C(1));
    visit_steps(s, steps_, [&]<Rule R, unsigned Has>() {
      tiles_[0] = &SerialSums::tile<R, Has, 1>;
      tiles_[1] = &SerialSums::tile<R, Has, 2>;
      tiles_[2] = &SerialSums::tile<R, Has, 4>;
    });
  }

  ~SerialSums() {}  // a destructor that GCC makes by itself would not be compiled for this level
  SerialSums(const SerialSums&) = delete;

  void block(int64_t t, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    if (!s_.order_of_each) {
      for (int64_t i = i0; i < i1; i += rows_from(i, i1)) pack_a(t, i, rows_from(i, i1), a_at(i - i0));
    }
    for (int64_t j = j0; j < j1; j += kWide) {
      const int count = static_cast<int>(std::min<int64_t>(kWide, j1 - j));
      if (!s_.order_of_each) pack_b(t, j, count);
      for (int64_t i = i0; i < i1; i += rows_from(i, i1)) {
        if (s_.order_of_each) pack_products(t, i, j, count);
        const int rows = rows_from(i, i1);
        (this->*tiles_[rows / 2])(t, i, j, count, s_.order_of_each ? a_.template as<C>() : a_at(i - i0));
      }
    }
  }

 private:
  static constexpr int kStreams = 3;  // of fractions for products and sums, and of eps

  int rows_from(int64_t i, int64_t end) const {
    if (s_.order_of_each) return 1;
    return end - i >= 4 ? 4 : (end - i >= 2 ? 2 : 1);
  }
  C* a_at(int64_t i) { return a_.template as<C>() + i * s_.K; }
  int64_t natural(int64_t position) const { return s_.order == nullptr ? position : s_.order[position]; }

  void pack_a(int64_t t, int64_t i, int rows, C* to) {
    const C* a = static_cast<const C*>(s_.a) + t % s_.Ta * s_.a_t + i * s_.a_i;
    for (int r = 0; r < rows; ++r) {
      for (int64_t p = 0; p < s_.K; ++p) to[p * rows + r] = a[r * s_.a_i + natural(p) * s_.a_k];
    }
  }

  void pack_b(int64_t t, int64_t j, int count) {
    constexpr int64_t kPart = 64;  // positions; so much of the copy stays in the L1 cache
    const C* b = static_cast<const C*>(s_.b) + t % s_.Tb * s_.b_t + j * s_.b_j;
    C* to = b_.template as<C>();
    if (count < kWide) std::fill_n(to, s_.K * kWide, C(0));
    if (s_.b_j == 1) {
      for (int64_t p = 0; p < s_.K; ++p) std::copy_n(b + natural(p) * s_.b_k, count, to + p * kWide);
      return;
    }
    for (int64_t first = 0; first < s_.K; first += kPart) {
      const int64_t last = std::min(s_.K, first + kPart);
      for (int l = 0; l < count; ++l) {
        for (int64_t p = first; p < last; ++p) to[p * kWide + l] = b[l * s_.b_j + natural(p) * s_.b_k];
      }
    }
  }

  // The products of one row of outputs, each in its own order.
  void pack_products(int64_t t, int64_t i, int64_t j, int count) {
    const C* a = static_cast<const C*>(s_.a) + t % s_.Ta * s_.a_t + i * s_.a_i;
    const C* b = static_cast<const C*>(s_.b) + t % s_.Tb * s_.b_t + j * s_.b_j;
    C* to = b_.template as<C>();
    std::fill_n(to, s_.K * kWide, C(0));
    for (int l = 0; l < count; ++l) {
      const int32_t* order = order_of(t, i, j + l);
      for (int64_t p = 0; p < s_.K; ++p) {
        to[p * kWide + l] = mul_rn(a[order[p] * s_.a_k], b[order[p] * s_.b_k + l * s_.b_j]);
      }
    }
  }
  const int32_t* order_of(int64_t t, int64_t i, int64_t j) const {
    return s_.order + ((t * s_.I + i) * s_.J + j) * s_.K;
  }

  int64_t random_size() const { return s_.K * kWide + 2 * kPad; }
  float* random_at(int stream, int row) {
    return random_values_.template as<float>() + (stream * kRows + row) * random_size();
  }

  // The random numbers of a row of outputs of a tile, as [k][output]. Returns whether its ids are good.
  bool draw_row(int64_t t, int64_t i, int64_t j, int count, int row) {
    const OutputPlace place(s_, t, i, j);
    const Ids id = ids_of(s_.noise, 0, place.row);
    const auto draw = [&](int stream, Generator<A>& generator, Operand operand) {
      float* z = random_at(kStreams, 0);
      const int64_t skip = place.element % 4, values = skip + count * s_.K, first = place.element / 4;
      for (int64_t at = 0; at < values; at += kChunk) {
        const int blocks = static_cast<int>((std::min<int64_t>(kChunk, values - at) + 3) / 4);
        generator.in_row(id.row, id.draw, counter_word3(s_.noise.site, operand), static_cast<uint32_t>(first + at / 4),
                         blocks, z + at);
      }
      int starts[kWide];  // of each output's values; behind the last output stands a copy of it
      for (int l = 0; l < kWide; ++l) starts[l] = static_cast<int>(skip + std::min(l, count - 1) * s_.K);
      float* to = random_at(stream, row);
      const int64_t by_squares = s_.K / A::kSquare * A::kSquare;
      for (int64_t k = 0; k < by_squares; k += A::kSquare) {
        for (int l = 0; l < kWide; l += A::kSquare) A::transpose(z + k, starts + l, to + k * kWide + l, kWide);
      }
      for (int64_t k = by_squares; k < s_.K; ++k) {
        for (int l = 0; l < kWide; ++l) to[k * kWide + l] = z[starts[l] + k];
      }
      if (s_.order_of_each) in_their_orders(t, i, j, count, to, z);
    };
    if (steps_.random_product) draw(0, fractions_, Operand::kRoundingOfProduct);
    if (steps_.random_sum) draw(1, fractions_, Operand::kRoundingOfSum);
    if (steps_.noisy) draw(2, noise_, Operand::kPerStep);
    return id.valid;
  }

  // values, [k][output], as [position][output].
  void in_their_orders(int64_t t, int64_t i, int64_t j, int count, float* values, float* spare) const {
    std::copy_n(values, s_.K * kWide, spare);
    for (int l = 0; l < count; ++l) {
      const int32_t* order = order_of(t, i, j + l);
      for (int64_t p = 0; p < s_.K; ++p) values[p * kWide + l] = spare[order[p] * kWide + l];
    }
  }

  template <Rule R, unsigned Has, int M>
  void tile(int64_t t, int64_t i, int64_t j, int count, const C* a) {
    bool valid[M];
    const float* random[kStreams][M] = {};
    for (int r = 0; r < M; ++r) {
      valid[r] = !random_ || draw_row(t, i + r, j, count, r);
      for (int k = 0; k < kStreams; ++k) random[k][r] = random_ ? random_at(k, r) : nullptr;
    }
    const Steps<C> steps = steps_;  // where the compiler sees that nothing else writes to it
    const C* b = b_.template as<C>();
    const V zero = L::splat(C(0));
    State<V> state[M][kVectors];
    NK_UNROLL
    for (int r = 0; r < M; ++r) {
      NK_UNROLL
      for (int n = 0; n < kVectors; ++n) state[r][n] = {zero, zero, zero, L::splat(C(-1))};
    }
    for (int64_t p = 0; p < s_.K; ++p) {
      const V position = (Has & kTracks) != 0 ? L::splat(static_cast<C>(p)) : zero;
      const int64_t k = (Has & kRandom) != 0 && !s_.order_of_each ? natural(p) : p;
      NK_UNROLL
      for (int n = 0; n < kVectors; ++n) {
        const V w = L::load(b + p * kWide + n * L::kWidth);
        NK_UNROLL
        for (int r = 0; r < M; ++r) {
          const auto drawn = [&](bool there, int stream) NK_LAMBDA {
            if ((Has & kRandom) == 0 || !there) return zero;
            return V(L::load_eps(random[stream][r] + k * kWide + n * L::kWidth));
          };
          step<R, Has>(steps, state[r][n], L::splat(a[p * M + r]), w, position, drawn(steps.random_product, 0),
                       drawn(steps.random_sum, 1), drawn(steps.noisy, 2));
        }
      }
    }
    for (int r = 0; r < M; ++r) {
      C values[kWide];
      for (int n = 0; n < kVectors; ++n) {
        L::store(values + n * L::kWidth, (Has & kTracks) != 0 && s_.track ? state[r][n].last : state[r][n].v);
      }
      if (!valid[r]) std::fill_n(values, kWide, kNaN<C>);
      std::copy_n(values, count, static_cast<C*>(s_.y) + ((t * s_.I + i + r) * s_.J + j));
    }
  }

  const Serial& s_;
  const Steps<C> steps_;
  const bool random_;
  Generator<A> noise_, fractions_;
  Scratch a_, b_, random_values_;
  void (SerialSums::* tiles_[3])(int64_t, int64_t, int64_t, int, const C*) = {};  // of 1, 2 and 4 rows
};

template <class A, class C>
void serial_blocks(const Serial& s, int64_t begin, int64_t end) {
  SerialSums<A, C> sums(s);
  const int64_t across = (s.J + s.block_j - 1) / s.block_j, down = (s.I + s.block_i - 1) / s.block_i;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t j = block % across * s.block_j, i = block / across % down * s.block_i, t = block / across / down;
    sums.block(t, i, std::min(s.I, i + s.block_i), j, std::min(s.J, j + s.block_j));
  }
}

template <class A>
void serial_range(const Serial& s, int64_t begin, int64_t end) {
  s.dtype == DType::kFloat64 ? serial_blocks<A, double>(s, begin, end) : serial_blocks<A, float>(s, begin, end);
}

// --------------------------------------------------------------------------------------------------------- gradients

// Of `Count` steps from k on: a_grad[i, k] = sum over j of m b[k, j] and b_grad[k, j] = sum over i of m a[i, k], with
// m = grad[i, j] where the step comes after the last clamp of output (i, j), else 0.
template <class A, class C, int Count>
void gradient_of_steps(const SerialGradient& g, int64_t t, int64_t k) {
  using L = typename A::template Lanes<C>;
  using V = typename L::V;
  const C *a = static_cast<const C*>(g.a) + t * g.I * g.K + k, *b = static_cast<const C*>(g.b) + (t * g.K + k) * g.J;
  C *a_grad = static_cast<C*>(g.a_grad) + t * g.I * g.K + k, *b_grad = static_cast<C*>(g.b_grad) + (t * g.K + k) * g.J;
  std::fill_n(b_grad, Count * g.J, C(0));
  for (int64_t i = 0; i < g.I; ++i) {
    const int64_t row = (t * g.I + i) * g.J;
    const C *grad = static_cast<const C*>(g.grad) + row, *last = static_cast<const C*>(g.last) + row;
    const int64_t by_lanes = g.J / L::kWidth * L::kWidth;
    V sums[Count], x[Count], position[Count];
    C rest[Count] = {};
    NK_UNROLL
    for (int n = 0; n < Count; ++n) {
      sums[n] = L::splat(C(0)), x[n] = L::splat(a[i * g.K + n]);
      position[n] = L::splat(static_cast<C>(g.position[k + n]));
    }
    for (int64_t j = 0; j < by_lanes; j += L::kWidth) {
      const V pull = L::load(grad + j), from = L::load(last + j);
      NK_UNROLL
      for (int n = 0; n < Count; ++n) {
        const V m = where_less(from, position[n], pull, L::splat(C(0)));
        sums[n] = fma_rn(m, L::load(b + n * g.J + j), sums[n]);
        L::store(b_grad + n * g.J + j, fma_rn(m, x[n], L::load(b_grad + n * g.J + j)));
      }
    }
    for (int64_t j = by_lanes; j < g.J; ++j) {
      for (int n = 0; n < Count; ++n) {
        const C m = last[j] < static_cast<C>(g.position[k + n]) ? grad[j] : C(0);
        rest[n] += m * b[n * g.J + j];
        b_grad[n * g.J + j] += m * a[i * g.K + n];
      }
    }
    for (int n = 0; n < Count; ++n) {
      C lanes[L::kWidth];
      L::store(lanes, sums[n]);
      for (int l = 0; l < L::kWidth; ++l) rest[n] += lanes[l];
      a_grad[i * g.K + n] = rest[n];
    }
  }
}

template <class A, class C>
void serial_gradients(const SerialGradient& g, int64_t begin, int64_t end) {
  const int64_t groups = (g.K + kStepsTogether - 1) / kStepsTogether;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t t = group / groups, first = group % groups * kStepsTogether,
                  last = std::min(g.K, first + kStepsTogether);
    if (last - first == kStepsTogether) {
      gradient_of_steps<A, C, kStepsTogether>(g, t, first);
    } else {
      for (int64_t k = first; k < last; ++k) gradient_of_steps<A, C, 1>(g, t, k);
    }
  }
}

template <class A>
void serial_gradient_range(const SerialGradient& g, int64_t begin, int64_t end) {
  g.dtype == DType::kFloat64 ? serial_gradients<A, double>(g, begin, end) : serial_gradients<A, float>(g, begin, end);
}

// --------------------------------------------------------------------------------------------------- single values

template <class A, class T, class C>
void quantize_values(const Quantize& q, int64_t begin, int64_t end) {
  using L = typename A::template Lanes<C>;
  using V = typename L::V;
  const Rounder<C> c(q.format);
  const bool random = q.format.rounding == Format::kStochastic;
  Generator<A> fractions = Generator<A>::template of<Fraction>(seed_of(q.noise));
  alignas(64) float drawn[kChunk + kPad];
  const auto* x = static_cast<const T*>(q.x);
  auto* y = static_cast<T*>(q.y);
  while (begin < end) {
    const int64_t row = begin / q.n, element = begin % q.n, skip = random ? element % 4 : 0;
    const int count = static_cast<int>(std::min({end - begin, random ? q.n - element : end - begin, kChunk - skip}));
    bool valid = true;
    if (random) {
      const Ids id = ids_of(q.noise, row / q.noise.B, row % q.noise.B);
      valid = id.valid;
      fractions.in_row(id.row, id.draw, counter_word3(q.noise.site, q.noise.operand),
                       static_cast<uint32_t>(element / 4), static_cast<int>((skip + count + 3) / 4), drawn);
    }
    for (int i = 0; i < count; i += L::kWidth) {
      const int some = std::min(L::kWidth, count - i);
      T in[L::kWidth] = {}, out[L::kWidth];
      std::memcpy(in, x + begin + i, sizeof(T) * some);
      const V u = random ? V(L::load_eps(drawn + skip + i)) : L::splat(C(0));
      const V v = L::load(in), nan = L::splat(kNaN<C>);
      // Of a signalling NaN truncation can leave the bits of infinity.
      L::store(out, valid ? where_less(L::splat(C(-1)), abs_of(v), round_by<Rule::kAny>(c, v, u), nan) : nan);
      std::memcpy(y + begin + i, out, sizeof(T) * some);
    }
    begin += count;
  }
}

template <class A>
void quantize_range(const Quantize& q, int64_t begin, int64_t end) {
  switch (q.dtype) {
    case DType::kFloat32:
      return quantize_values<A, float, float>(q, begin, end);
    case DType::kFloat64:
      return quantize_values<A, double, double>(q, begin, end);
    case DType::kBFloat16:
      return quantize_values<A, BFloat16, float>(q, begin, end);
    case DType::kFloat16:
      return quantize_values<A, Float16, float>(q, begin, end);
  }
}

}  // namespace
}  // namespace noisykernels::cpu
