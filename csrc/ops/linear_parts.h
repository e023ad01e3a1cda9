// A linear layer of float32 on the CPU by threads' parts, each with its noise while it is in the cache. No torch here.
#pragma once

#include <algorithm>
#include <utility>

#include "sgemm.h"

namespace noisykernels {

inline constexpr int64_t kFewRows = 24, kLargeWeight = int64_t{1} << 17, kColumnsTogether = 64;

// y = noise(x W^T + b): one product for each thread's part, then its noise.
struct LinearParts {
  Sgemm sgemm;
  const cpu::Kernels* kernels;
  const Epilogue* epilogue;  // null: none here
  const float *x, *w;
  float* y;
  int64_t M, K, N, ldw;
  char trans_w;

  void product(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    const int m = static_cast<int>(columns), n = static_cast<int>(rows), k = static_cast<int>(K),
              ld = static_cast<int>(ldw), ldy = static_cast<int>(N);
    const float one = 1, zero = 0;
    const float* part_of_w = w + (trans_w == 'T' ? column * ldw : column);
    sgemm(&trans_w, "N", &m, &n, &k, &one, part_of_w, &ld, x + row * K, &k, &zero, y + row * N + column, &ldy);
  }
  // Rows of the flattened input.
  static void by_rows(void* context, int64_t begin, int64_t end) {
    const auto* self = static_cast<const LinearParts*>(context);
    if (begin >= end) return;
    self->product(begin, end - begin, 0, self->N);
    if (self->epilogue != nullptr) self->kernels->epilogue(*self->epilogue, begin * self->N, end * self->N);
  }
  // Output features: for few rows, whose weights are then read once between the threads.
  static void by_columns(void* context, int64_t begin, int64_t end) {
    const auto* self = static_cast<const LinearParts*>(context);
    if (begin >= end) return;
    self->product(0, self->M, begin, end - begin);
    if (self->epilogue == nullptr) return;
    for (int64_t row = 0; row < self->M; ++row) {
      self->kernels->epilogue(*self->epilogue, row * self->N + begin, row * self->N + end);
    }
  }

  // All of it. A row of the noise has n values.
  void run(int64_t n, int threads) {
    const int64_t rows_together = n / N;  // of the flattened input: a short row of noise is drawn whole
    const int64_t useful = std::min<int64_t>(threads, 1 + M * N * K / kWorthAThread);
    if (M >= useful * kFewRows || N * K < kLargeWeight) {
      cpu::parallel(M, rows_together > 1 ? rows_together : 8, static_cast<int>(useful), &by_rows, this);
      return;
    }
    const Epilogue* whole = cpu::short_rows(n) ? std::exchange(epilogue, nullptr) : nullptr;
    cpu::parallel(N, kColumnsTogether, static_cast<int>(useful), &by_columns, this);
    if (whole != nullptr) cpu::run(*kernels, *whole, threads);
  }
};

}  // namespace noisykernels
