// The operators that contract inside a noisy array: linear layers of float32 on the CPU by threads' panels, all else by
// the library's contraction for each panel. The noise of the single products and steps is one eps of the right
// deviation for each output.
#include <algorithm>
#include <climits>
#include <cmath>

#include "../cpu/scratch.h"
#include "analog_weight.h"
#include "launch.h"
#include "operators.h"
#include "sgemm.h"

namespace noisykernels {
namespace {

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
struct AnalogParts {
  Sgemm sgemm;
  const cpu::Kernels* kernels;
  const AnalogWeight* weight;
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
    const auto& self = *static_cast<const AnalogParts*>(context);
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
void add_rows(float* y, const float* bias, int64_t rows, int64_t N) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < N; ++j) y[i * N + j] += bias[j];
  }
}

// A level of the noise within the products: one number, or one for each output feature.
std::vector<float> feature_levels(const char* op, const char* name, const OptTensor& t, int64_t N) {
  if (!t) return {};
  NK_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Double, op, ": `", name, "` must be float64 on the CPU here");
  NK_CHECK(t->dim() == 0 || (t->dim() == 1 && t->size(0) == N), op, ": `", name, "` must be 0-d or [", N,
           "], got shape ", shape_text(*t));
  const Tensor dense_levels = as_contiguous(op, *t);
  const auto* data = static_cast<const double*>(dense_levels.data_ptr());
  std::vector<float> levels(static_cast<size_t>(N));
  for (int64_t j = 0; j < N; ++j) levels[j] = checked_level(static_cast<float>(data[t->dim() == 0 ? 0 : j]));
  return levels;
}

// Levels of the noise of products, steps and readings; without any there is none.
struct MacLevels {
  OptTensor per_product, per_step, read;
  bool any() const { return per_product || per_step || read; }
};

// Products of float32 rows x [.., K] with the array's weights on the CPU, draw by draw, and the deviations of their
// noise in a tensor of the same shape, where it differs from output to output.
struct AnalogProducts {
  Tensor clean, deviation;
  float constant = 0;  // the deviation where it is the same everywhere

  AnalogProducts(const char* op, const Tensor& x, const AnalogWeight& weight, const MacLevels& levels, bool shared)
      : clean(x),
        deviation(x),
        op_(op),
        x_(x),
        weight_(weight),
        levels_(levels),
        varies_(levels.per_product || levels.read),
        same_rows_(weight.noisy() && shared),
        N_(weight.tensor().size(0)),
        K_(weight.tensor().size(1)),
        D_(weight.noisy() ? weight.draws() : 1) {
    Ints shape = shape_of(x);
    shape.back() = N_;
    if (same_rows_) shape[0] *= D_;
    clean = empty_as(op, x, shape, false);
    deviation = varies_ ? empty_as(op, x, shape, false) : clean;
    if (levels.per_step) {
      constant = feature_levels(op, "per_step", levels.per_step, 1)[0] *
                 static_cast<float>(std::sqrt(static_cast<double>(K_)));
    }
  }

  // epilogue: of the whole output, to be applied where the products are still in the cache; or null.
  void run(const Epilogue* epilogue) {
    const int64_t M_all = x_.numel() / K_, M = same_rows_ ? M_all : M_all / D_;
    NK_CHECK(M <= INT_MAX, op_, ": ", M, " rows of a draw are too many for the library");
    const std::vector<float> read = feature_levels(op_, "read", levels_.read, N_);
    const auto* from = static_cast<const float*>(x_.data_ptr());
    std::optional<SquaredRows> squares;
    if (varies_) squares.emplace(kernels(), from, M_all, K_, levels_.read.has_value(), threads());
    for (int64_t d = 0; d < D_; ++d) {
      std::vector<float> w_scale = feature_levels(op_, "per_product", levels_.per_product, N_);
      AnalogParts parts{};
      parts.sgemm = find_sgemm();
      parts.kernels = &kernels();
      parts.weight = &weight_;
      parts.squares = squares ? &*squares : nullptr;
      parts.epilogue = epilogue;
      parts.of_row.per_product = levels_.per_product ? w_scale.data() : nullptr;
      parts.of_row.read = levels_.read ? read.data() : nullptr;
      parts.of_row.per_step = constant;
      parts.first = same_rows_ ? 0 : d * M;
      parts.at = d * M * N_;
      parts.x = from + parts.first * K_;
      parts.y = static_cast<float*>(clean.mutable_data_ptr()) + parts.at;
      parts.v = static_cast<float*>(deviation.mutable_data_ptr()) + parts.at;
      parts.w_scale = w_scale.data();
      parts.draw = d;
      parts.M = M, parts.K = K_, parts.N = N_;
      const int64_t work = N_ * K_ * (M + 8 * weight_.noisy());  // a normal costs as much as several multiply-adds
      cpu::parallel(N_, 16, static_cast<int>(std::min<int64_t>(threads(), 1 + work / kWorthAThread)),
                    &AnalogParts::by_columns, &parts);
    }
  }

 private:
  const char* op_;
  const Tensor& x_;
  const AnalogWeight& weight_;
  const MacLevels& levels_;
  bool varies_, same_rows_;
  int64_t N_, K_, D_;
};

Tensor narrowed(Tensor t, int64_t dimension, int64_t begin, int64_t count) {
  return torch::stable::narrow(t, dimension, begin, count);
}

// One contraction for each draw and panel of output features, with the panel's noisy weight.
// contract(x, weight, bias); the output features are the output's dimension `features`, the weight's dimension 0 if
// `cut`, without which all of them make one panel.
template <class Contract>
Tensor by_panels(const char* op, const Tensor& x, const AnalogWeight& weight, const OptTensor& bias, int64_t features,
                 bool cut, bool shared, Contract&& contract) {
  // Parts of a last-level cache: a call of the library costs more than smaller panels gain.
  constexpr int64_t kPanelBytes = int64_t{1} << 23;
  if (!weight.noisy()) return contract(x, weight.tensor(), bias);
  const int64_t D = weight.draws(), N = weight.tensor().size(0),
                B = shared ? x.size(0) : x.size(0) / std::max<int64_t>(D, 1);
  const int64_t most = cut ? weight.together(kPanelBytes) : N;
  if (D == 0) return contract(narrowed(x, 0, 0, 0), weight.tensor(), bias);
  if (N == 0) {
    const Tensor nothing = contract(x, weight.tensor(), bias);
    Ints shape = shape_of(nothing);
    shape[0] = D * B;
    return empty_as(op, nothing, shape, false);
  }
  std::optional<Tensor> out;
  for (int64_t d = 0; d < D; ++d) {
    const Tensor rows = shared || D == 1 ? x : narrowed(x, 0, d * B, B);
    for (int64_t c = 0; c < N; c += most) {
      const int64_t count = std::min(most, N - c);
      Tensor panel = weight.empty_panel(count);
      run(op, panel, weight.panel(d, c, count, panel.mutable_data_ptr()));
      const bool all = count == N;
      const Tensor part = contract(rows, panel, bias && !all ? OptTensor(narrowed(*bias, 0, c, count)) : bias);
      if (all && D == 1) return part;
      if (!out) {
        Ints shape = shape_of(part);
        shape[0] = D * B;
        if (!all) shape[features < 0 ? shape.size() + features : features] = N;
        out = empty_as(op, part, shape, is_channels_last(part) && !part.is_contiguous());
      }
      Tensor at = narrowed(*out, 0, d * B, B);
      if (!all) at = narrowed(at, features < 0 ? at.dim() + features : features, c, count);
      torch::stable::copy_(at, part);
    }
  }
  return *out;
}

// How rows and draws go together, for a contraction whose noise is not on its output.
void check_draws(const char* op, const Tensor& x, const OptTensor& draws, bool shared) {
  ids(op, "draws", draws, "D", x.device());
  const int64_t D = draws ? draws->numel() : 1;
  NK_CHECK(shared || (D == 0 ? x.size(0) == 0 : x.size(0) % D == 0), op,
           ": dimension 0 holds draws x rows and must be a multiple of ", D, " draws, got ", x.size(0),
           " (shared=True gives every draw the same ", x.size(0), " rows)");
}

}  // namespace

Tensor analog_linear(Tensor x, Tensor weight, OptTensor bias, OptTensor add, OptTensor mul, int64_t mode, int64_t kind,
                     OptTensor per_product, OptTensor per_step, OptTensor read, Tensor seed, OptTensor draws,
                     OptTensor rows, int64_t first_row, int64_t site, bool shared) {
  const char* op = "linear";
  const DType type = check_linear(op, x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  const AnalogWeight noisy(op, weight, {add, mul, seed, draws, {}, 0, site, mode, kind, true});
  const MacLevels levels{per_product, per_step, read};
  const bool here = x.is_cpu() && type == DType::kFloat32 && find_sgemm() != nullptr && std::max({N, K}) <= INT_MAX;
  NK_CHECK(!levels.any() || here, op, ": noise of products, steps and readings is for float32 on the CPU here");
  return with_rows(op, x, x.dim() > 1, draws, [&](const Tensor& part) {
    check_draws(op, part, draws, shared);
    if (!here || part.numel() == 0 || N == 0 || (noisy.noisy() && noisy.draws() == 0)) {
      return by_panels(op, part, noisy, bias, -1, true, shared,
                       [&](const Tensor& some, const Tensor& panel, const OptTensor& part_of_bias) {
                         return call(op, "aten::linear", some, panel, part_of_bias);
                       });
    }
    if (bias) bias = as_contiguous(op, *bias);
    const auto* added = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
    const Tensor rows_of_x = as_contiguous(op, part);
    AnalogProducts products(op, rows_of_x, noisy, levels, shared);
    Tensor clean = products.clean;
    if (!levels.any()) {
      products.run(nullptr);
      if (bias) add_rows(static_cast<float*>(clean.mutable_data_ptr()), added, clean.numel() / N, N);
      return clean;
    }
    // One eps for each output; where the draws share the weights, they share the deviations too.
    const bool shared_values = shared && !noisy.noisy();
    Tensor level = empty(op, {}, ScalarType::Double, x.device(), false);  // the deviations stand in for it
    torch::stable::zero_(level);
    const NoiseArgs args{level, {},           seed, draws, rows, first_row, site, static_cast<int64_t>(Mode::kAdd),
                         0,     shared_values};
    Ints shape = shape_of(clean);
    const BoundNoise noise(op, args, shape, true, clean, false);
    shape[0] = noise.rows_out;
    Tensor out = shared_values ? empty_as(op, clean, shape, false) : clean;
    Epilogue e = make_epilogue(noise, clean, out, type, false);
    e.noise.operand = Operand::kPerProduct;
    e.noise.add = Level{};
    e.noise.add.value = products.constant;
    if (per_product || read) {
      e.noise.add.data = products.deviation.data_ptr();
      e.noise.add.item_stride = 1;
      e.noise.add.row_stride = e.n;
      e.noise.add.draw_stride = shared_values ? 0 : e.n * noise.params.B;
    }
    if (bias) {
      e.bias = added;
      e.bias_size = N;
    }
    const bool together = !shared_values && !cpu::short_rows(e.n);
    products.run(together ? &e : nullptr);
    if (!together) run(op, out, e);
    return out;
  });
}

Tensor analog_convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation,
                          bool transposed, Ints output_padding, int64_t groups, OptTensor add, OptTensor mul,
                          int64_t mode, int64_t kind, Tensor seed, OptTensor draws, int64_t site, bool shared) {
  const char* op = check_convolution(x, weight, bias, transposed);
  const AnalogWeight noisy(op, weight, {add, mul, seed, draws, {}, 0, site, mode, kind, true});
  return with_rows(op, x, x.dim() == weight.dim(), draws, [&](const Tensor& rows_of_x) {
    check_draws(op, rows_of_x, draws, shared);
    return by_panels(op, rows_of_x, noisy, bias, 1, !transposed && groups == 1, shared,
                     [&](const Tensor& part, const Tensor& panel, const OptTensor& part_of_bias) {
                       return call(op, "aten::convolution", part, panel, part_of_bias, stride, padding, dilation,
                                   transposed, output_padding, groups);
                     });
  });
}

}  // namespace noisykernels
