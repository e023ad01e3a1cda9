// The operators that put noise on a value that is given: their own random numbers, noise with and without max-pooling
// behind it, and a study's levels beside each other.
#include <algorithm>

#include "launch.h"
#include "operators.h"

namespace noisykernels {
namespace {

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

// x + levels[l] * direction, for every level, then perhaps a rectifier and max-pooling: where a study's levels part.
struct LevelExpansion {
  Tensor x;
  Tensor direction;  // zeros if none is given
  Tensor levels;     // of every level and draw
  Epilogue epilogue;
  int64_t rows_out;

  LevelExpansion(const char* op, const Tensor& clean, const OptTensor& toward, const Tensor& level, bool relu)
      : x(as_contiguous(op, clean)), levels(level) {
    NK_CHECK(x.device() == level.device(), op, ": x and levels must be on one device");
    NK_CHECK(x.scalar_type() == ScalarType::Float && level.scalar_type() == ScalarType::Float, op,
             ": x and levels must be float32");
    NK_CHECK(x.dim() >= 1 && level.dim() == 1 && level.is_contiguous(), op,
             ": x must be [rows, ...] and levels a vector, got shapes ", shape_text(x), " and ", shape_text(level));
    const int64_t rows = x.size(0);
    int64_t draws = 1;
    epilogue.n = rows == 0 ? 0 : x.numel() / rows;
    if (toward) {
      direction = as_contiguous(op, *toward);
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
      direction = empty_as(op, x, {epilogue.n}, false);
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

}  // namespace

Tensor eps(Ints shape, int64_t kind, Tensor seed, int64_t site, int64_t operand, int64_t draw, OptTensor rows,
           int64_t first_row) {
  const char* op = "eps";
  NK_CHECK(kind >= 0 && kind < Kinds::kSize, op, ": unknown kind of noise ", kind);
  check_operand(op, operand);
  NK_CHECK(site >= 0 && site < (1 << 24), op, ": site must lie in [0, 2^24), got ", site);
  for (int64_t size : shape) NK_CHECK(size >= 0, op, ": shape must not be negative, got ", size);
  Epilogue e;
  set_seed(e.noise, op, seed, seed.device());
  e.noise.first_draw = draw;
  e.noise.rows = ids(op, "rows", rows, "B", seed.device());
  e.noise.first_row = first_row;
  e.noise.B = shape.empty() ? 1 : shape[0];
  NK_CHECK(!rows || rows->numel() == e.noise.B, op, ": rows must hold one id for each of ", e.noise.B, " rows, got ",
           rows->numel());
  if (!rows) check_first_row(op, first_row, e.noise.B);
  e.noise.site = static_cast<uint32_t>(site);
  e.noise.operand = static_cast<Operand>(operand);
  e.noise.kind = static_cast<int>(kind);
  e.noise.mode = Mode::kEps;
  e.n = shape.empty() ? 1 : product(shape, 1);
  NK_CHECK((e.n + 3) / 4 <= (int64_t{1} << 32), op, ": a row of ", e.n, " elements exceeds the counter's 2^34");
  Tensor out = empty(op, shape, ScalarType::Float, seed.device(), false);
  e.y = out.mutable_data_ptr();
  run(op, out, e);
  return out;
}

Tensor perturb(Tensor x, int64_t operand, NK_NOISE_PARAMETERS) {
  check_operand("perturb", operand);
  NK_CHECK(operand == static_cast<int64_t>(Operand::kAdd) || mode < static_cast<int64_t>(Mode::kMulAdd) ||
               mode == static_cast<int64_t>(Mode::kFold),
           "perturb: noise of two terms needs the two streams of operand 'add', got operand ", operand);
  return finish("perturb", x, false, x.dim() > 0, false, NK_NOISE_ARGS, static_cast<Operand>(operand));
}

Tensor perturb_relu_max_pool2d(Tensor x, Ints kernel, Ints stride, Ints padding, NK_NOISE_PARAMETERS) {
  const char* op = "perturb_relu_max_pool2d";
  const DType type = dtype_of(op, "input", x);
  PoolEpilogue pool = pooling(op, x, kernel, stride, padding);
  const BoundNoise noise(op, NK_NOISE_ARGS, shape_of(x), true, x, false);
  x = as_contiguous(op, x);
  Tensor out = empty_as(op, x, {noise.rows_out, pool.planes, pool.out_height, pool.out_width}, false);
  pool.noise = make_epilogue(noise, x, out, type, true);
  run(op, out, pool);
  return out;
}

Tensor row_scale(Tensor x, int64_t statistic) {
  const char* op = "row_scale";
  NK_CHECK(statistic >= 0 && statistic < static_cast<int64_t>(Statistic::kSize), op, ": unknown statistic ", statistic);
  RowScale r;
  r.dtype = dtype_of(op, "x", x);
  r.rows = x.dim() == 0 ? 1 : x.size(0);
  r.n = r.rows == 0 ? 0 : x.numel() / r.rows;
  r.statistic = static_cast<Statistic>(statistic);
  x = dense(op, x);
  Tensor out = empty(op, {r.rows}, ScalarType::Double, x.device(), false);
  r.x = x.data_ptr(), r.y = static_cast<double*>(out.mutable_data_ptr());
  cpu::run(kernels(), r, threads());
  return out;
}

Tensor expand_levels(Tensor x, OptTensor direction, Tensor levels, bool relu) {
  const char* op = "expand_levels";
  LevelExpansion s(op, x, direction, levels, relu);
  Ints shape = shape_of(s.x);
  shape[0] = s.rows_out;
  Tensor out = empty_as(op, s.x, shape, false);
  s.epilogue.y = out.mutable_data_ptr();
  run(op, out, s.epilogue);
  return out;
}

Tensor expand_levels_max_pool2d(Tensor x, OptTensor direction, Tensor levels, bool relu, Ints kernel, Ints stride,
                                Ints padding) {
  const char* op = "expand_levels_max_pool2d";
  PoolEpilogue pool = pooling(op, x, kernel, stride, padding);
  LevelExpansion s(op, x, direction, levels, relu);
  Tensor out = empty_as(op, s.x, {s.rows_out, pool.planes, pool.out_height, pool.out_width}, false);
  s.epilogue.y = out.mutable_data_ptr();
  pool.noise = s.epilogue;
  run(op, out, pool);
  return out;
}

}  // namespace noisykernels
