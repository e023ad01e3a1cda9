// The operators that contract inside a noisy array (`array.h`): float32 linear layers on the CPU by threads' panels,
// all else by the library's contraction for each panel. For ops.cpp alone.
#pragma once

#include "array.h"

namespace noisykernels {
namespace {

constexpr int64_t kWorthAThread = int64_t{1} << 17;  // multiply-adds: some 3 us

Tensor narrowed(Tensor t, int64_t dimension, int64_t begin, int64_t count) {
  return torch::stable::narrow(t, dimension, begin, count);
}

// One contraction for each draw and panel of output features, with the panel's noisy weight.
// contract(x, weight, bias); the output features are the output's dimension `features`, the weight's dimension 0 if
// `cut`, without which all of them make one panel.
template <class Contract>
Tensor by_panels(const char* op, const Tensor& x, const ArrayWeight& weight, const OptTensor& bias, int64_t features,
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
    return empty_as(nothing, shape, false);
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
        out = empty_as(part, shape, is_channels_last(part) && !part.is_contiguous());
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

Tensor array_convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation,
                         bool transposed, Ints output_padding, int64_t groups, OptTensor add, OptTensor mul,
                         int64_t mode, int64_t kind, Tensor seed, OptTensor draws, int64_t site, bool shared) {
  const char* op = check_convolution(x, weight, bias, transposed);
  const ArrayWeight noisy(op, weight, {add, mul, seed, draws, {}, 0, site, mode, kind, true});
  return with_rows(op, x, x.dim() == weight.dim(), draws, [&](const Tensor& rows_of_x) {
    check_draws(op, rows_of_x, draws, shared);
    return by_panels(op, rows_of_x, noisy, bias, 1, !transposed && groups == 1, shared,
                     [&](const Tensor& part, const Tensor& panel, const OptTensor& part_of_bias) {
                       return call(op, "aten::convolution", part, panel, part_of_bias, stride, padding, dilation,
                                   transposed, output_padding, groups);
                     });
  });
}

// A level of the noise within the products: one number, or one for each output feature.
std::vector<float> feature_levels(const char* op, const char* name, const OptTensor& t, int64_t N) {
  if (!t) return {};
  NK_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Double, op, ": `", name, "` must be float64 on the CPU here");
  NK_CHECK(t->dim() == 0 || (t->dim() == 1 && t->size(0) == N), op, ": `", name, "` must be 0-d or [", N,
           "], got shape ", shape_text(*t));
  const Tensor dense_levels = as_contiguous(*t);
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
struct ArrayProducts {
  Tensor clean, deviation;
  float constant = 0;  // the deviation where it is the same everywhere

  ArrayProducts(const char* op, const Tensor& x, const ArrayWeight& weight, const MacLevels& levels, bool shared)
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
    clean = empty_as(x, shape, false);
    deviation = varies_ ? empty_as(x, shape, false) : clean;
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
      ArrayParts parts{};
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
                    &ArrayParts::by_columns, &parts);
    }
  }

 private:
  const char* op_;
  const Tensor& x_;
  const ArrayWeight& weight_;
  const MacLevels& levels_;
  bool varies_, same_rows_;
  int64_t N_, K_, D_;
};

Tensor array_linear(Tensor x, Tensor weight, OptTensor bias, OptTensor add, OptTensor mul, int64_t mode, int64_t kind,
                    OptTensor per_product, OptTensor per_step, OptTensor read, Tensor seed, OptTensor draws,
                    OptTensor rows, int64_t first_row, int64_t site, bool shared) {
  const char* op = "linear";
  const DType type = check_linear(op, x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  const ArrayWeight noisy(op, weight, {add, mul, seed, draws, {}, 0, site, mode, kind, true});
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
    if (bias) bias = as_contiguous(*bias);
    const auto* added = bias ? static_cast<const float*>(bias->data_ptr()) : nullptr;
    const Tensor rows_of_x = as_contiguous(part);
    ArrayProducts products(op, rows_of_x, noisy, levels, shared);
    Tensor clean = products.clean;
    if (!levels.any()) {
      products.run(nullptr);
      if (bias) add_rows(static_cast<float*>(clean.mutable_data_ptr()), added, clean.numel() / N, N);
      return clean;
    }
    // One eps for each output; where the draws share the weights, they share the deviations too.
    const bool shared_values = shared && !noisy.noisy();
    Tensor level = empty({}, ScalarType::Double, x.device(), false);  // the deviations stand in for it
    torch::stable::zero_(level);
    const NoiseArgs args{level, {},           seed, draws, rows, first_row, site, static_cast<int64_t>(Mode::kAdd),
                         0,     shared_values};
    Ints shape = shape_of(clean);
    const BoundNoise noise(op, args, shape, true, clean, false);
    shape[0] = noise.rows_out;
    Tensor out = shared_values ? empty_as(clean, shape, false) : clean;
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

}  // namespace
}  // namespace noisykernels
