// The values of an output row on the device: four at a time from memory, with the noise that the row draws. For the
// kernels of this folder.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "../rows.h"
#include "divisor.h"

namespace noisykernels::cuda {
namespace {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ------------------------------------------------------------------------------------------------ values of a row

// Four values that are moved at once: 16 bytes (twice for double, 8 for half types).
template <class T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Four {
  T v[4];
};

// Which of the four values of a block are wanted, and where they lie in their row: value k at item + k * stride.
struct Place {
  int64_t item, stride;
  int first, last;
  __device__ bool wants(int k) const { return k >= first && k < last; }
  template <class T>
  __device__ bool at_once(const T* row) const {
    return stride == 1 && first == 0 && last == 4 && reinterpret_cast<uintptr_t>(row + item) % alignof(Four<T>) == 0;
  }
};

template <class T>
__device__ Four<T> load(const T* row, const Place& place) {
  if (place.at_once(row)) return *reinterpret_cast<const Four<T>*>(row + place.item);
  Four<T> to = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (place.wants(k)) to.v[k] = row[place.item + k * place.stride];
  }
  return to;
}

template <class T>
__device__ void store(T* row, const Place& place, const Four<T>& from) {
  if (place.at_once(row)) {
    *reinterpret_cast<Four<T>*>(row + place.item) = from;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (place.wants(k)) row[place.item + k * place.stride] = from.v[k];
    }
  }
}

// An epilogue, with the divisors that its rows need.
struct Work {
  Epilogue e;
  Divisor rows, bias, given;
  explicit Work(const Epilogue& epilogue)
      : e(epilogue), rows(e.noise.B), bias(std::max<int64_t>(1, e.bias_size)), given(e.noise.given_rows) {}
};

// What the elements of one output row share. T: type of the data, C: type computed in. kGiven: the eps are read.
template <Mode M, class T, class C, bool kGiven>
class Row {
 public:
  __device__ Row(const Work& work, int64_t i) : Row(work, i, work.rows(i)) {}

  // The values of element .. element + 3 (element: a multiple of four).
  __device__ Four<C> values(int64_t element, const Place& place) const {
    Four<T> x = {};
    if constexpr (M != Mode::kEps) x = load(x_, place);
    return values(element, place, x);
  }

  // The same where the noiseless values are there already.
  __device__ Four<C> values(int64_t element, const Place& place, const Four<T>& x) const {
    Four<float> ea = {}, em = {};
    Four<T> bias = {};
    Four<C> a = {}, m = {}, out;
    if constexpr (kGiven) {
      ea = load(given_, place);
    } else {
      if constexpr (draws_add(M)) ea = draw(add_row_, element);
      if constexpr (draws_mul(M)) em = draw(mul_row_, element);
    }
    if (work_.e.bias != nullptr) bias = load_bias(place);
    if constexpr (has_add_level(M)) a = levels(work_.e.noise.add, add_, a_, place);
    if constexpr (has_mul_level(M)) m = levels(work_.e.noise.mul, mul_, m_, place);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      C v = widen_value(x.v[k]);
      if (work_.e.bias != nullptr) v = add_rn(v, static_cast<C>(widen_value(bias.v[k])));
      if constexpr (M == Mode::kFold) {  // the formula compares its levels, so a NaN must be in both
        if (a.v[k] != a.v[k] || m.v[k] != m.v[k]) a.v[k] = m.v[k] = kNaN<C>;
      }
      v = apply_noise<M>(v, a.v[k], m.v[k], static_cast<C>(ea.v[k]), static_cast<C>(em.v[k]));
      out.v[k] = larger(work_.e.relu ? C(0) : -kInfinity<C>, v);
    }
    return out;
  }

 private:
  __device__ Row(const Work& work, int64_t i, const Division& draw_and_row)
      : work_(work),
        ids_(ids_of(work.e.noise, draw_and_row.quotient, draw_and_row.remainder)),
        keys_(seed()),
        add_row_(seed(), ids_.row, ids_.draw, counter_word3(work.e.noise.site, work.e.noise.operand)),
        mul_row_(seed(), ids_.row, ids_.draw, counter_word3(work.e.noise.site, mul_operand(work.e.noise))) {
    const Epilogue& e = work.e;
    if constexpr (M != Mode::kEps) x_ = static_cast<const T*>(e.x) + (kGiven || e.shared ? ids_.b : i) * e.n;
    if constexpr (kGiven) given_ = e.noise.given + work.given(i).remainder * e.n;
    if constexpr (has_add_level(M)) add_ = level_row(e.noise.add, a_);
    if constexpr (has_mul_level(M)) mul_ = level_row(e.noise.mul, m_);
  }

  __device__ uint64_t seed() const { return kGiven ? 0 : seed_of(work_.e.noise); }

  __device__ Four<float> draw(const RowConstants<uint32_t>& row, int64_t element) const {
    uint32_t w[4];
    Four<float> z;
    philox_in_row(keys_, row, static_cast<uint32_t>(element / 4), w);
    Kinds::visit(work_.e.noise.kind, [&]<class Kind>() {
      Kind::sample(w[0], w[1], z.v[0], z.v[1]);
      Kind::sample(w[2], w[3], z.v[2], z.v[3]);
    });
#pragma unroll
    for (int k = 0; k < 4; ++k) z.v[k] = ids_.valid ? z.v[k] : kNaN<float>;
    return z;
  }

  // Levels that come with given eps are not checked, as on the CPU.
  __device__ static C checked(C level) { return kGiven ? level : checked_level(level); }

  // The levels of this row, and the one that all of it has, if so.
  __device__ const C* level_row(const Level& level, C& of_row) const {
    const C* row = static_cast<const C*>(level.data) + ids_.d * level.draw_stride + ids_.b * level.row_stride;
    if (level.item_stride == 0) of_row = checked(level_of_row(level, row));
    return row;
  }

  __device__ static Four<C> levels(const Level& level, const C* row, C of_row, const Place& place) {
    Four<C> out = {of_row, of_row, of_row, of_row};
    if (level.item_stride != 0) {
      out = load(row, place);
#pragma unroll
      for (int k = 0; k < 4; ++k) out.v[k] = checked(out.v[k]);
    }
    return out;
  }

  // The bias repeats along the row; mostly these four values lie in one repetition.
  __device__ Four<T> load_bias(const Place& place) const {
    const T* bias = static_cast<const T*>(work_.e.bias);
    const int64_t begin = work_.bias(place.item + place.first * place.stride).remainder;
    if (begin + (place.last - 1 - place.first) * place.stride < work_.e.bias_size) {
      return load(bias, {begin - place.first * place.stride, place.stride, place.first, place.last});
    }
    Four<T> out = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (place.wants(k)) out.v[k] = bias[work_.bias(place.item + k * place.stride).remainder];
    }
    return out;
  }

  const Work& work_;
  const Ids ids_;
  const RoundKeys<uint32_t> keys_;
  const RowConstants<uint32_t> add_row_, mul_row_;
  const T* x_ = nullptr;
  const float* given_ = nullptr;
  const C *add_ = nullptr, *mul_ = nullptr;
  C a_ = 0, m_ = 0;
};

// Of the launches so far: null, or what went wrong.
inline const char* outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace noisykernels::cuda
