// Contractions inside a noisy array: the weight is drawn once for each draw and shared by all rows and positions, and
// the noise of the single products and steps is one eps of the right deviation for each output. For ops.cpp alone.
//
// The noisy weight exists in panels of some output features only, each made right before the product that takes it.
#pragma once

#include <cmath>
#include <utility>

#include "cpu/common.h"
#include "run.h"

namespace noisykernels {
namespace {

// The library's single-precision product, found at run time; null if torch was built without one.
using Sgemm = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                       const int*, const float*, const int*, const float*, float*, const int*);
Sgemm find_sgemm() {
  static const Sgemm sgemm = cpu::find_in_torch<Sgemm>("sgemm_");
  return sgemm;
}

// The weight as an array holds it, panel by panel.
class ArrayWeight {
 public:
  // args: of the weight's noise, its draws shared; mode -1: there is none.
  ArrayWeight(const char* op, const Tensor& weight, const NoiseArgs& args)
      : weight_(dense(weight)),
        type_(dtype_of(op, "weight", weight)),
        n_(weight.size(0) == 0 ? 0 : weight.numel() / weight.size(0)),
        channels_last_(!weight_.is_contiguous()) {
    if (args.mode < 0) return;
    const Mode mode = static_cast<Mode>(args.mode);
    NK_CHECK(mode == Mode::kAdd || mode == Mode::kMul || mode == Mode::kFold, op,
             ": a weight's noise is of one term: additive, multiplicative or folded");
    noise_.emplace(op, args, shape_of(weight), true, weight_, channels_last_);
    noise_->params.operand = Operand::kWeight;
  }

  const Tensor& tensor() const { return weight_; }
  bool noisy() const { return noise_.has_value(); }
  int64_t draws() const { return noise_ ? noise_->params.D : 1; }

  // What makes output features [begin, begin + count) of draw d at y.
  Epilogue panel(int64_t d, int64_t begin, int64_t count, void* y) const {
    const int64_t size = type_ == DType::kFloat64 ? 8 : (type_ == DType::kFloat32 ? 4 : 2);
    Epilogue e;
    e.noise = noise_->params;
    e.noise.D = 1;
    e.noise.B = count;
    e.noise.first_row = begin;
    if (e.noise.draws != nullptr) e.noise.draws += d;
    for (Level* level : {&e.noise.add, &e.noise.mul}) {
      const int64_t width = type_ == DType::kFloat64 ? 8 : 4;
      if (level->data == nullptr) continue;
      level->data =
          static_cast<const char*>(level->data) + width * (d * level->draw_stride + begin * level->row_stride);
    }
    e.x = static_cast<const char*>(weight_.data_ptr()) + size * begin * n_;
    e.y = y;
    e.dtype = type_;
    e.n = n_;
    e.channels = channels_last_ && n_ > weight_.size(1) ? weight_.size(1) : 1;
    return e;
  }

  Tensor empty_panel(int64_t count) const {
    Ints shape = shape_of(weight_);
    shape[0] = count;
    return empty_as(weight_, shape, channels_last_);
  }

  // Output features of a panel of so many bytes.
  int64_t together(int64_t bytes) const {
    const int64_t one = std::max<int64_t>(1, n_ * (type_ == DType::kFloat64 ? 8 : 4));
    return std::min(weight_.size(0), std::max<int64_t>(16, bytes / one / 16 * 16));
  }

 private:
  Tensor weight_;
  DType type_;
  int64_t n_;
  bool channels_last_;
  std::optional<BoundNoise> noise_;
};

// ------------------------------------------------------------------------------------------- linear, on the CPU in
// float

// Squares of the rows of x [M, K], with their scales and, where wanted, their lengths.
struct SquaredRows {
  cpu::Scratch values;
  std::vector<float> scale, length;

  SquaredRows(const cpu::Kernels& kernels, const float* x, int64_t M, int64_t K, bool lengths, int threads)
      : values(static_cast<int64_t>(sizeof(float)) * M * K),
        scale(static_cast<size_t>(M)),
        length(static_cast<size_t>(M)),
        kernels_(kernels),
        x_(x),
        K_(K),
        lengths_(lengths) {
    cpu::parallel(M, 1 + (1 << 14) / K, threads, &SquaredRows::rows, this);
  }

 private:
  static void rows(void* context, int64_t begin, int64_t end) {
    auto& self = *static_cast<SquaredRows*>(context);
    for (int64_t i = begin; i < end; ++i) {
      float* row = self.values.as<float>() + i * self.K_;
      self.scale[i] = self.kernels_.square_row(self.x_ + i * self.K_, self.K_, row);
      if (!self.lengths_) continue;
      constexpr int kSums = 16;  // side by side, so that the compiler may use lanes
      float sums[kSums] = {};
      for (int64_t k = 0; k + kSums <= self.K_; k += kSums) {
        for (int s = 0; s < kSums; ++s) sums[s] += row[k + s];
      }
      for (int64_t k = self.K_ / kSums * kSums; k < self.K_; ++k) sums[0] += row[k];
      double sum = 0;
      for (float s : sums) sum += s;
      self.length[i] = static_cast<float>(std::sqrt(sum) * self.scale[i]);
    }
  }

  const cpu::Kernels& kernels_;
  const float* x_;
  int64_t K_;
  bool lengths_;
};

// y = x w^T and v = x^2 (w^2)^T of one draw, panel by panel of w's output features, then what becomes of them.
struct ArrayParts {
  Sgemm sgemm;
  const cpu::Kernels* kernels;
  const ArrayWeight* weight;
  const SquaredRows* squares;    // of all rows; null where none are wanted
  const Epilogue* epilogue;      // of all outputs; null: none here
  Deviations of_row;             // per_product: [N] levels, multiplied with the scales of the weights' squares
  const float* x;                // [M, K]
  float *y, *v, *w_scale;        // [M, N], [M, N], of_row.per_product
  int64_t draw, first, M, K, N;  // first: row of the squares
  int64_t at = 0;                // place of y in the whole output

  static constexpr int64_t kPanelBytes = int64_t{1} << 19;  // beside the rows of x and y in a second-level cache

  void product(const float* rows, const float* panel, int64_t columns, float* out) const {
    const int m = static_cast<int>(columns), n = static_cast<int>(M), k = static_cast<int>(K),
              ldy = static_cast<int>(N);
    const float one = 1, zero = 0;
    sgemm("T", "N", &m, &n, &k, &one, panel, &k, rows, &k, &zero, out, &ldy);
  }
  static void by_columns(void* context, int64_t begin, int64_t end) {
    const auto& self = *static_cast<const ArrayParts*>(context);
    const bool squared_too = self.of_row.per_product != nullptr, in_panels = self.weight->noisy() || squared_too;
    const int64_t most = in_panels ? self.weight->together(kPanelBytes) : end - begin, K = self.K;
    const cpu::Scratch scratch(in_panels ? static_cast<int64_t>(sizeof(float)) * 2 * most * K : 0);
    float *noisy = scratch.as<float>(), *squared = noisy + most * K;
    for (int64_t c = begin; c < end; c += most) {
      const int64_t columns = std::min(most, end - c);
      const float* panel = static_cast<const float*>(self.weight->tensor().data_ptr()) + c * K;
      if (self.weight->noisy()) {
        self.kernels->epilogue(self.weight->panel(self.draw, c, columns, noisy), 0, columns * K);
        panel = noisy;
      }
      self.product(self.x, panel, columns, self.y + c);
      if (!squared_too) continue;
      for (int64_t j = 0; j < columns; ++j) {
        self.w_scale[c + j] *= self.kernels->square_row(panel + j * K, K, squared + j * K);
      }
      self.product(self.squares->values.as<float>() + self.first * K, squared, columns, self.v + c);
    }
    if (begin < end) self.finish(begin, end);
  }
  // Products of squares become deviations, and those the noise.
  void finish(int64_t begin, int64_t end) const {
    Deviations d = of_row;
    d.n = end - begin;
    if (d.per_product != nullptr) d.per_product += begin;
    if (d.read != nullptr) d.read += begin;
    for (int64_t i = 0; i < M; ++i) {
      if (squares != nullptr) {
        d.row_scale = squares->scale[first + i];
        d.row_length = squares->length[first + i];
        kernels->deviations(d, v + i * N + begin);
      }
      if (epilogue != nullptr) kernels->epilogue(*epilogue, at + i * N + begin, at + i * N + end);
    }
  }
};

// Adds the bias to every row.
inline void add_rows(float* y, const float* bias, int64_t rows, int64_t N) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < N; ++j) y[i * N + j] += bias[j];
  }
}

}  // namespace
}  // namespace noisykernels
