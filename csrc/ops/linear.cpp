// The operators that contract and then put noise on the result: the contraction is the library's. Linear layers of
// float32 on the CPU go by threads' parts, whose noise follows while they are in the cache.
#include <algorithm>
#include <climits>

#include "launch.h"
#include "linear_parts.h"
#include "operators.h"

namespace noisykernels {
namespace {

#if defined(NOISYKERNELS_CUDA)
// linear in one CUDA kernel; nothing where the library is to multiply.
std::optional<Tensor> fused_linear(const Tensor& x, const Tensor& weight, OptTensor bias, bool relu,
                                   const NoiseArgs& args) {
  const char* op = "linear";
  if (cuda::multiplier == cuda::Multiplier::kLibrary) return std::nullopt;
  const DType type = dtype_of(op, "input", x);
  const int64_t N = weight.size(0), K = weight.size(1);
  const Tensor a = as_contiguous(op, x), w = as_contiguous(op, weight);
  cuda::Gemm g;
  g.epilogue.dtype = type, g.epilogue.shared = args.shared;
  g.a = a.data_ptr(), g.w = w.data_ptr();
  if (bias) {
    bias = as_contiguous(op, *bias);
    g.bias = bias->data_ptr();
  }
  g.M = K == 0 ? 0 : x.numel() / K, g.N = N, g.K = K;
  g.tf32 = cuda::multiplier == cuda::Multiplier::kFusedTf32;
  const torch::stable::accelerator::DeviceGuard guard(x.device().index());
  if (g.M == 0 || !cuda::fits(g) || !cuda::is_built_for_device()) return std::nullopt;
  Ints shape = shape_of(x);
  shape.back() = N;
  const BoundNoise noise(op, args, shape, x.dim() > 1, x, false);
  Tensor out = empty_as(op, x, shape, false);
  g.epilogue = make_epilogue(noise, out, out, type, relu);
  run(op, out, g);
  return out;
}
#endif

}  // namespace

Tensor linear(Tensor x, Tensor weight, OptTensor bias, bool relu, NK_NOISE_PARAMETERS) {
  const char* op = "linear";
  const DType type = check_linear(op, x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  const NoiseArgs args = NK_NOISE_ARGS;
  const bool batched = x.dim() > 1;
  Counts(op, args, batched ? x.size(0) : 1, batched, shared);
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
  x = as_contiguous(op, x);
  const auto leading = [&](int d, int64_t least) {  // whether the library can step along dimension d
    return weight.stride(1 - d) == 1 && weight.size(d) > 1 && weight.stride(d) >= least && weight.stride(d) <= INT_MAX;
  };
  const bool by_rows = leading(0, K), by_columns = !by_rows && leading(1, N);
  if (!by_rows && !by_columns) weight = as_contiguous(op, weight);
  if (bias) bias = as_contiguous(op, *bias);

  Ints shape = shape_of(x);
  shape.back() = N;
  const BoundNoise noise(op, args, shape, batched, x, false);
  Tensor clean = empty_as(op, x, shape, false);
  if (batched) shape[0] = noise.rows_out;
  Tensor out = noise.shared ? empty_as(op, x, shape, false) : clean;
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
  parts.run(e.n, threads());
  if (noise.shared) cpu::run(kernels(), e, threads());
  return out;
}

Tensor convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation, bool transposed,
                   Ints output_padding, int64_t groups, bool relu, NK_NOISE_PARAMETERS) {
  const char* op = check_convolution(x, weight, bias, transposed);
  return with_rows(op, x, x.dim() == weight.dim(), draws, [&](const Tensor& rows_of_x) {
    Counts(op, NK_NOISE_ARGS, rows_of_x.size(0), true, shared);
    const Tensor clean = call(op, "aten::convolution", rows_of_x, weight, bias, stride, padding, dilation, transposed,
                              output_padding, groups);
    return finish(op, clean, true, true, relu, NK_NOISE_ARGS);
  });
}

Tensor matmul(Tensor a, Tensor b, NK_NOISE_PARAMETERS) {
  const char* op = "matmul";
  dtype_of(op, "a", a);
  NK_CHECK(a.device() == b.device(), op, ": a and b must be on the same device");
  NK_CHECK(a.scalar_type() == b.scalar_type(), op, ": a and b must have the same dtype, got ",
           torch::headeronly::toString(a.scalar_type()), " and ", torch::headeronly::toString(b.scalar_type()));
  // Rows are dimension 0 of the broadcast product, of which a vector has no dimension.
  const int64_t dims = std::max(a.dim(), b.dim());
  const bool batched = a.dim() > 1 || b.dim() > 1;
  int64_t count = !batched ? 1 : (a.dim() < 2 ? b.size(1) : a.size(0));
  if (dims > 2) {
    count = a.dim() == dims ? a.size(0) : 1;
    if (count == 1 && b.dim() == dims) count = b.size(0);
  }
  Counts(op, NK_NOISE_ARGS, count, batched, shared);
  return finish(op, call(op, "aten::matmul", a, b), true, batched, false, NK_NOISE_ARGS);
}

}  // namespace noisykernels
