// The operators as torch sees them: schemas, allocation, and the call of a kernel: one code for the CPU and CUDA.
// Stable ABI only. Autograd, fake, vmap and autocast rules are registered in noisykernels/rules.py.
#define TORCH_TARGET_VERSION 0x020a000000000000  // 2.10. Not for module.cpp, too: torch then refuses pybind11
#include <torch/csrc/stable/library.h>

#include <climits>

#include "array_ops.h"
#include "serial_ops.h"

namespace noisykernels {
namespace {

// noise(clean), in place where the value is ours and is not repeated for several draws.
Tensor finish(const char* op, Tensor clean, bool ours, bool batched, bool relu, const NoiseArgs& args,
              Operand operand = Operand::kAdd) {
  const DType type = dtype_of(op, "the value", clean);
  clean = dense(clean);
  const bool channels_last = !clean.is_contiguous();
  Ints shape = shape_of(clean);
  const BoundNoise noise(op, args, shape, batched, clean, channels_last);
  if (batched) shape[0] = noise.rows_out;
  Tensor out = ours && !noise.shared ? clean : empty_as(clean, shape, channels_last);
  Epilogue e = make_epilogue(noise, clean, out, type, relu);
  e.noise.operand = operand;
  run(op, out, e);
  return out;
}

// ------------------------------------------------------------------------------------------------------- operators

Tensor eps(Ints shape, int64_t kind, Tensor seed, int64_t site, int64_t operand, int64_t draw, OptTensor rows,
           int64_t first_row) {
  NK_CHECK(kind >= 0 && kind < Kinds::kSize, "eps: unknown kind of noise ", kind);
  NK_CHECK(operand >= 0 && operand < static_cast<int64_t>(Operand::kCount), "eps: unknown operand ", operand);
  NK_CHECK(site >= 0 && site < (1 << 24), "eps: site must lie in [0, 2^24), got ", site);
  for (int64_t size : shape) NK_CHECK(size >= 0, "eps: shape must not be negative, got ", size);
  Tensor out = empty(shape, ScalarType::Float, seed.device(), false);
  Epilogue e;
  set_seed(e.noise, "eps", seed, out.device());
  e.noise.first_draw = draw;
  e.noise.rows = ids("eps", "rows", rows, "B", out.device());
  e.noise.first_row = first_row;
  e.noise.B = shape.empty() ? 1 : shape[0];
  NK_CHECK(!rows || rows->numel() == e.noise.B, "eps: rows must hold one id for each of ", e.noise.B, " rows, got ",
           rows->numel());
  if (!rows) check_first_row("eps", first_row, e.noise.B);
  e.noise.site = static_cast<uint32_t>(site);
  e.noise.operand = static_cast<Operand>(operand);
  e.noise.kind = static_cast<int>(kind);
  e.noise.mode = Mode::kEps;
  e.y = out.mutable_data_ptr();
  e.n = product(shape, 1);
  if (shape.empty()) e.n = 1;
  NK_CHECK((e.n + 3) / 4 <= (int64_t{1} << 32), "eps: a row of ", e.n, " elements exceeds the counter's 2^34");
  run("eps", out, e);
  return out;
}

#define NK_NOISE_PARAMETERS                                                                                    \
  OptTensor add, OptTensor mul, Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site, \
      int64_t mode, int64_t kind, bool shared
#define NK_NOISE_ARGS \
  NoiseArgs { add, mul, seed, draws, rows, first_row, site, mode, kind, shared }

Tensor perturb(Tensor x, int64_t operand, NK_NOISE_PARAMETERS) {
  NK_CHECK(operand >= 0 && operand < static_cast<int64_t>(Operand::kCount), "perturb: unknown operand ", operand);
  NK_CHECK(operand == static_cast<int64_t>(Operand::kAdd) || mode < static_cast<int64_t>(Mode::kMulAdd) ||
               mode == static_cast<int64_t>(Mode::kFold),
           "perturb: noise of two terms needs the two streams of operand 'add', got operand ", operand);
  return finish("perturb", x, false, x.dim() > 0, false, NK_NOISE_ARGS, static_cast<Operand>(operand));
}

constexpr int64_t kFewRows = 24, kLargeWeight = int64_t{1} << 17, kColumnsTogether = 64;

// y = noise(x W^T + b) by parts: one product for each thread's part, then its noise while it is in the cache.
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
};

#if defined(NOISYKERNELS_CUDA)
// linear in one CUDA kernel; nothing where the library is to multiply.
std::optional<Tensor> fused_linear(const Tensor& x, const Tensor& weight, OptTensor bias, bool relu,
                                   const NoiseArgs& args) {
  if (cuda::multiplier == cuda::Multiplier::kLibrary) return std::nullopt;
  const DType type = dtype_of("linear", "input", x);
  const int64_t N = weight.size(0), K = weight.size(1);
  const Tensor a = as_contiguous(x), w = as_contiguous(weight);
  cuda::Gemm g;
  g.epilogue.dtype = type, g.epilogue.shared = args.shared;
  g.a = a.data_ptr(), g.w = w.data_ptr();
  if (bias) {
    bias = as_contiguous(*bias);
    g.bias = bias->data_ptr();
  }
  g.M = K == 0 ? 0 : x.numel() / K, g.N = N, g.K = K;
  g.tf32 = cuda::multiplier == cuda::Multiplier::kFusedTf32;
  const torch::stable::accelerator::DeviceGuard guard(x.device().index());
  if (g.M == 0 || !cuda::fits(g) || !cuda::is_built_for_device()) return std::nullopt;
  Ints shape = shape_of(x);
  shape.back() = N;
  const BoundNoise noise("linear", args, shape, x.dim() > 1, x, false);
  Tensor out = empty_as(x, shape, false);
  g.epilogue = make_epilogue(noise, out, out, type, relu);
  run("linear", out, g);
  return out;
}
#endif

Tensor linear(Tensor x, Tensor weight, OptTensor bias, bool relu, NK_NOISE_PARAMETERS) {
  const char* op = "linear";
  const DType type = check_linear(op, x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  const NoiseArgs args = NK_NOISE_ARGS;
  const bool batched = x.dim() > 1;
#if defined(NOISYKERNELS_CUDA)
  if (x.is_cuda()) {
    if (auto out = fused_linear(x, weight, bias, relu, args)) return *out;
  }
#endif
  const Sgemm sgemm = find_sgemm();
  const int64_t M = x.numel() / std::max<int64_t>(1, K);
  if (!x.is_cpu() || type != DType::kFloat32 || sgemm == nullptr || std::max({M, N, K}) > INT_MAX || M == 0 || N == 0 ||
      K == 0) {
    return finish(op, call(op, "aten::linear", x, weight, bias), true, batched, relu, args);
  }
  x = as_contiguous(x);
  const auto leading = [&](int d, int64_t least) {  // whether the library can step along dimension d
    return weight.stride(1 - d) == 1 && weight.size(d) > 1 && weight.stride(d) >= least && weight.stride(d) <= INT_MAX;
  };
  const bool by_rows = leading(0, K), by_columns = !by_rows && leading(1, N);
  if (!by_rows && !by_columns) weight = as_contiguous(weight);
  if (bias) bias = as_contiguous(*bias);

  Ints shape = shape_of(x);
  shape.back() = N;
  const BoundNoise noise(op, args, shape, batched, x, false);
  Tensor clean = empty_as(x, shape, false);
  if (batched) shape[0] = noise.rows_out;
  Tensor out = noise.shared ? empty_as(x, shape, false) : clean;
  Epilogue e = make_epilogue(noise, clean, out, type, relu);
  if (bias) {
    e.bias = bias->data_ptr();
    e.bias_size = N;
  }
  LinearParts parts{sgemm,
                    &kernels(),
                    noise.shared ? nullptr : &e,
                    static_cast<const float*>(x.data_ptr()),
                    static_cast<const float*>(weight.data_ptr()),
                    static_cast<float*>(clean.mutable_data_ptr()),
                    M,
                    K,
                    N,
                    by_columns ? weight.stride(1) : (by_rows ? weight.stride(0) : K),
                    by_columns ? 'N' : 'T'};
  const int64_t rows_together = e.n / N;  // of the flattened input: a short row of noise is drawn whole
  const int64_t useful = std::min<int64_t>(threads(), 1 + M * N * K / kWorthAThread);
  if (M >= useful * kFewRows || N * K < kLargeWeight) {
    cpu::parallel(M, rows_together > 1 ? rows_together : 8, static_cast<int>(useful), &LinearParts::by_rows, &parts);
  } else {
    const bool apart = parts.epilogue != nullptr && cpu::short_rows(e.n);
    if (apart) parts.epilogue = nullptr;
    cpu::parallel(N, kColumnsTogether, static_cast<int>(useful), &LinearParts::by_columns, &parts);
    if (apart) cpu::run(kernels(), e, threads());
  }
  if (noise.shared) cpu::run(kernels(), e, threads());
  return out;
}

Tensor convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation, bool transposed,
                   Ints output_padding, int64_t groups, bool relu, NK_NOISE_PARAMETERS) {
  const char* op = check_convolution(x, weight, bias, transposed);
  return with_rows(op, x, x.dim() == weight.dim(), draws, [&](const Tensor& rows_of_x) {
    const Tensor clean = call(op, "aten::convolution", rows_of_x, weight, bias, stride, padding, dilation, transposed,
                              output_padding, groups);
    return finish(op, clean, true, true, relu, NK_NOISE_ARGS);
  });
}

Tensor matmul(Tensor a, Tensor b, NK_NOISE_PARAMETERS) {
  dtype_of("matmul", "a", a);
  NK_CHECK(a.scalar_type() == b.scalar_type(), "matmul: a and b must have the same dtype, got ",
           torch::headeronly::toString(a.scalar_type()), " and ", torch::headeronly::toString(b.scalar_type()));
  Tensor clean = call("matmul", "aten::matmul", a, b);
  return finish("matmul", clean, true, clean.dim() > 0, false, NK_NOISE_ARGS);
}

// Fills in the geometry of max-pooling and checks it.
PoolEpilogue pooling(const char* op, const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding) {
  NK_CHECK(x.dim() == 4, op, ": input must be [rows, channels, height, width], got shape ", shape_text(x));
  NK_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2, op,
           ": kernel_size, stride and padding must have two numbers, got ", kernel.size(), ", ", stride.size(), " and ",
           padding.size());
  PoolEpilogue pool;
  pool.kernel_h = kernel[0], pool.kernel_w = kernel[1];
  pool.stride_h = stride[0], pool.stride_w = stride[1];
  pool.pad_h = padding[0], pool.pad_w = padding[1];
  for (int i = 0; i < 2; ++i) {
    NK_CHECK(kernel[i] > 0 && stride[i] > 0, op, ": kernel_size and stride must be positive, got ", kernel[i], " and ",
             stride[i]);
    NK_CHECK(padding[i] >= 0 && 2 * padding[i] <= kernel[i], op,
             ": padding must lie between 0 and half the kernel_size ", kernel[i], ", got ", padding[i]);
    NK_CHECK(x.size(2 + i) > 0, op, ": input must have a height and a width above zero, got shape ", shape_text(x));
    NK_CHECK(x.size(2 + i) + 2 * padding[i] >= kernel[i], op, ": the kernel of ", kernel[i],
             " is larger than the padded input of shape ", shape_text(x));
  }
  pool.planes = x.size(1), pool.height = x.size(2), pool.width = x.size(3);
  pool.out_height = (pool.height + 2 * pool.pad_h - pool.kernel_h) / pool.stride_h + 1;
  pool.out_width = (pool.width + 2 * pool.pad_w - pool.kernel_w) / pool.stride_w + 1;
  return pool;
}

Tensor perturb_relu_max_pool2d(Tensor x, Ints kernel, Ints stride, Ints padding, NK_NOISE_PARAMETERS) {
  const char* op = "perturb_relu_max_pool2d";
  const DType type = dtype_of(op, "input", x);
  PoolEpilogue pool = pooling(op, x, kernel, stride, padding);
  x = as_contiguous(x);
  const BoundNoise noise(op, NK_NOISE_ARGS, shape_of(x), true, x, false);
  Tensor out = empty_as(x, {noise.rows_out, pool.planes, pool.out_height, pool.out_width}, false);
  pool.noise = make_epilogue(noise, x, out, type, true);
  run(op, out, pool);
  return out;
}

// x + levels[l] * direction, for every level, then perhaps a rectifier and max-pooling: where a study's levels part.
struct Separation {
  Tensor x;
  Tensor direction;  // zeros if none is given
  Tensor levels;     // of every level and draw
  Epilogue epilogue;
  int64_t rows_out;

  Separation(const char* op, const Tensor& clean, const OptTensor& toward, const Tensor& level, bool relu)
      : x(as_contiguous(clean)), levels(level) {
    NK_CHECK(x.device() == level.device(), op, ": x and levels must be on one device");
    NK_CHECK(x.scalar_type() == ScalarType::Float && level.scalar_type() == ScalarType::Float, op,
             ": x and levels must be float32");
    NK_CHECK(x.dim() >= 1 && level.dim() == 1 && level.is_contiguous(), op,
             ": x must be [rows, ...] and levels a vector, got shapes ", shape_text(x), " and ", shape_text(level));
    const int64_t rows = x.size(0);
    int64_t draws = 1;
    epilogue.n = rows == 0 ? 0 : x.numel() / rows;
    if (toward) {
      direction = as_contiguous(*toward);
      NK_CHECK(direction.scalar_type() == ScalarType::Float && direction.dim() == x.dim(), op,
               ": direction must be float32 [draws * rows, ...] as x, got shape ", shape_text(direction));
      NK_CHECK(direction.device() == x.device(), op, ": x and direction must be on one device");
      for (int64_t d = 1; d < x.dim(); ++d) {
        NK_CHECK(x.size(d) == direction.size(d), op, ": x and direction must differ in their rows only, got shapes ",
                 shape_text(x), " and ", shape_text(direction));
      }
      draws = rows == 0 ? 0 : direction.size(0) / rows;
      NK_CHECK(draws * rows == direction.size(0), op, ": direction must hold a multiple of ", rows, " rows, got ",
               direction.size(0));
      epilogue.noise.given_rows = std::max<int64_t>(1, direction.size(0));
    } else {
      direction = empty_as(x, {epilogue.n}, false);
      torch::stable::zero_(direction);
    }
    if (draws != 1) {
      const int64_t shape[] = {level.numel(), draws};
      levels = torch::stable::reshape(level, {level.numel(), 1});
      levels = call(op, "aten::expand", levels, torch::headeronly::IntHeaderOnlyArrayRef(shape, 2), false);
      levels = torch::stable::contiguous(levels);
    }
    rows_out = levels.numel() * rows;
    epilogue.x = x.data_ptr();
    epilogue.shared = true;
    epilogue.relu = relu;
    epilogue.noise.given = static_cast<const float*>(direction.data_ptr());
    epilogue.noise.D = levels.numel();
    epilogue.noise.B = rows;
    epilogue.noise.add.data = levels.data_ptr();
    epilogue.noise.add.draw_stride = 1;
  }
};

Tensor separate(Tensor x, OptTensor direction, Tensor levels, bool relu) {
  Separation s("separate", x, direction, levels, relu);
  Ints shape = shape_of(s.x);
  shape[0] = s.rows_out;
  Tensor out = empty_as(s.x, shape, false);
  s.epilogue.y = out.mutable_data_ptr();
  run("separate", out, s.epilogue);
  return out;
}

Tensor separate_max_pool2d(Tensor x, OptTensor direction, Tensor levels, bool relu, Ints kernel, Ints stride,
                           Ints padding) {
  const char* op = "separate_max_pool2d";
  PoolEpilogue pool = pooling(op, x, kernel, stride, padding);
  Separation s(op, x, direction, levels, relu);
  Tensor out = empty_as(s.x, {s.rows_out, pool.planes, pool.out_height, pool.out_width}, false);
  s.epilogue.y = out.mutable_data_ptr();
  pool.noise = s.epilogue;
  run(op, out, pool);
  return out;
}

}  // namespace
}  // namespace noisykernels

// ---------------------------------------------------------------------------------------------------- registration

#define NK_NOISE_SCHEMA                                                                                        \
  "Tensor? add, Tensor? mul, Tensor seed, Tensor? draws, Tensor? rows, SymInt first_row, int site, int mode, " \
  "int kind, bool shared) -> Tensor"

STABLE_TORCH_LIBRARY(noisykernels, m) {
  m.def(
      "eps(SymInt[] shape, int kind, Tensor seed, int site, int operand, SymInt draw, Tensor? rows, SymInt first_row) "
      "-> Tensor");
  m.def("perturb(Tensor x, int operand, " NK_NOISE_SCHEMA);
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool relu, " NK_NOISE_SCHEMA);
  m.def(
      "convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool "
      "transposed, "
      "int[] output_padding, int groups, bool relu, " NK_NOISE_SCHEMA);
  m.def(
      "array_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? mul, int mode, int kind, "
      "Tensor? per_product, Tensor? per_step, Tensor? read, Tensor seed, Tensor? draws, Tensor? rows, "
      "SymInt first_row, int site, bool shared) -> Tensor");
  m.def(
      "array_convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool "
      "transposed, int[] output_padding, int groups, Tensor? add, Tensor? mul, int mode, int kind, Tensor seed, "
      "Tensor? draws, int site, bool shared) -> Tensor");
  m.def("matmul(Tensor a, Tensor b, " NK_NOISE_SCHEMA);
  m.def("perturb_relu_max_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, " NK_NOISE_SCHEMA);
  m.def("separate(Tensor x, Tensor? direction, Tensor levels, bool relu) -> Tensor");
  m.def(
      "separate_max_pool2d(Tensor x, Tensor? direction, Tensor levels, bool relu, int[] kernel_size, int[] stride, "
      "int[] padding) -> Tensor");
  m.def(
      "quantize(Tensor x, float[] format, Tensor seed, Tensor? draws, Tensor? rows, SymInt first_row, int site, "
      "int operand) -> Tensor");
  m.def(
      "serial(Tensor a, Tensor b, Tensor? order, float[] product, float[] sum, float low, float high, float leak, "
      "float synapse_limit, float synapse_decay, bool synapse, Tensor? step_noise, SymInt outputs, Tensor seed, "
      "Tensor? draws, Tensor? rows, SymInt first_row, int site, bool masked, bool track) -> Tensor");
  m.def("serial_gradient(Tensor grad, Tensor last, Tensor a, Tensor b, Tensor position) -> (Tensor, Tensor)");
}

template <class Library>
void implement(Library& m) {
  m.impl("eps", TORCH_BOX(&noisykernels::eps));
  m.impl("perturb", TORCH_BOX(&noisykernels::perturb));
  m.impl("linear", TORCH_BOX(&noisykernels::linear));
  m.impl("convolution", TORCH_BOX(&noisykernels::convolution));
  m.impl("array_linear", TORCH_BOX(&noisykernels::array_linear));
  m.impl("array_convolution", TORCH_BOX(&noisykernels::array_convolution));
  m.impl("matmul", TORCH_BOX(&noisykernels::matmul));
  m.impl("perturb_relu_max_pool2d", TORCH_BOX(&noisykernels::perturb_relu_max_pool2d));
  m.impl("separate", TORCH_BOX(&noisykernels::separate));
  m.impl("separate_max_pool2d", TORCH_BOX(&noisykernels::separate_max_pool2d));
  m.impl("quantize", TORCH_BOX(&noisykernels::quantize));
  m.impl("serial", TORCH_BOX(&noisykernels::serial));
  m.impl("serial_gradient", TORCH_BOX(&noisykernels::serial_gradient));
}

STABLE_TORCH_LIBRARY_IMPL(noisykernels, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(noisykernels, CUDA, m) { implement(m); }
