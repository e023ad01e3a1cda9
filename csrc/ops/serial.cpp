// The operators with a defined arithmetic (`serial.h`): rounding to a format, serial sums and their gradients.

#include "../serial.h"

#include <algorithm>
#include <cmath>

#include "launch.h"
#include "operators.h"

namespace noisykernels {
namespace {

// A format from the numbers that formats.py makes of it.
Format format_of(const char* op, const char* argument, const Numbers& numbers) {
  Format f;
  if (numbers.empty()) return f;
  NK_CHECK(numbers.size() == 7, op, ": ", argument, " must have 7 numbers or none, got ", numbers.size());
  const auto whole = [&](int i, int low, int high) {
    const double v = numbers[i];
    NK_CHECK(v >= low && v <= high && v == std::floor(v), op, ": number ", i, " of ", argument,
             " must be a whole number from ", low, " to ", high, ", got ", v);
    return static_cast<int>(v);
  };
  f.given = true;
  f.fixed = whole(0, 0, 1) != 0;
  f.rounding = static_cast<Format::Rounding>(whole(1, 0, 2));
  f.bits = f.fixed ? whole(2, 0, 53) : whole(2, 1, 23);
  f.least_exponent = whole(3, -126, 104);
  f.largest = numbers[4];
  NK_CHECK(f.largest > 0 && std::isfinite(f.largest), op, ": the largest value of ", argument,
           " must be positive, got ", f.largest);
  f.subnormals = whole(5, 0, 1) != 0;
  f.infinite = whole(6, 0, 1) != 0;
  return f;
}

// What random numbers are drawn by: one draw, its rows along dimension 0.
NoiseParams noise_of(const char* op, const Tensor& seed, const OptTensor& draws, const OptTensor& rows,
                     int64_t first_row, int64_t site, int64_t count, torch::stable::Device device) {
  NoiseParams noise;
  set_seed(noise, op, seed, device);
  NK_CHECK(site >= 0 && site < (1 << 24), op, ": site must lie in [0, 2^24), got ", site);
  noise.site = static_cast<uint32_t>(site);
  noise.draws = ids(op, "draws", draws, "1", device);
  NK_CHECK(!draws || draws->numel() == 1, op, ": draws must hold one id, got ", draws->numel());
  noise.rows = ids(op, "rows", rows, "B", device);
  NK_CHECK(!rows || rows->numel() == count, op, ": rows must hold one id for each of ", count, " rows, got ",
           rows->numel());
  if (!rows) check_first_row(op, first_row, count);
  noise.first_row = first_row;
  noise.B = count;
  return noise;
}

// The type of operands of serial sums.
DType serial_type(const char* op, const Tensor& a, const Tensor& b) {
  const DType type = dtype_of(op, "a", a);
  NK_CHECK(type == DType::kFloat32 || type == DType::kFloat64, op, ": a must be float32 or float64, got ",
           torch::headeronly::toString(a.scalar_type()));
  NK_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(), op,
           ": a and b must have one dtype and be on one device");
  NK_CHECK(a.dim() == 3 && b.dim() == 3 && a.size(2) == b.size(1), op,
           ": a must be [Ta, I, K] and b [Tb, K, J], got shapes ", shape_text(a), " and ", shape_text(b));
  return type;
}

}  // namespace

Tensor quantize(Tensor x, Numbers format, Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site,
                int64_t operand) {
  const char* op = "quantize";
  Quantize q;
  q.dtype = dtype_of(op, "x", x);
  q.format = format_of(op, "format", format);
  check_operand(op, operand);
  const int64_t count = x.dim() == 0 ? 1 : x.size(0);
  q.noise = noise_of(op, seed, draws, rows, first_row, site, count, x.device());
  q.noise.operand = static_cast<Operand>(operand);
  q.n = count == 0 ? 0 : x.numel() / count;
  NK_CHECK((q.n + 3) / 4 <= (int64_t{1} << 32), op, ": a row of ", q.n, " elements exceeds the counter's 2^34");
  x = as_contiguous(op, x);
  Tensor out = empty_as(op, x, shape_of(x), false);
  q.x = x.data_ptr(), q.y = out.mutable_data_ptr();
  if (out.numel() > 0) run(op, out, q);
  return out;
}

Tensor serial(Tensor a, Tensor b, OptTensor order, Numbers product, Numbers sum, double low, double high, double leak,
              double synapse_limit, double synapse_decay, bool synapse, OptTensor step_noise, int64_t outputs,
              Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site, bool, bool track) {
  const char* op = "serial";
  Serial s;
  s.dtype = serial_type(op, a, b);
  s.Ta = a.size(0), s.Tb = b.size(0), s.T = std::max(s.Ta, s.Tb);
  s.I = a.size(1), s.K = a.size(2), s.J = b.size(2);
  if (s.Ta == 0 || s.Tb == 0) s.T = 0;
  const bool any = s.T > 0 && s.I > 0 && s.J > 0;
  NK_CHECK(!any || (s.T % s.Ta == 0 && s.T % s.Tb == 0), op, ": the first dimension of one operand must be a multiple ",
           "of that of the other, got shapes ", shape_text(a), " and ", shape_text(b));
  NK_CHECK(s.K < (1 << 24), op, ": a sum has fewer than 2^24 steps, got ", s.K);
  NK_CHECK(low <= 0 && high >= 0, op, ": low and high must be at most and at least 0, got ", low, " and ", high);
  Tensor out = empty_as(op, a, {s.T, s.I, s.J}, false);
  if (!any) return out;
  NK_CHECK(outputs > 0 && s.T * s.I * s.J % outputs == 0 && outputs % s.J == 0, op,
           ": outputs of a row must be a multiple of ", s.J, " that divides ", s.T * s.I * s.J, ", got ", outputs);
  s.n = outputs;
  if (order) {
    NK_CHECK(order->device() == a.device() && order->scalar_type() == ScalarType::Int && order->is_contiguous(), op,
             ": order must be contiguous int32 on the device of the operands");
    s.order_of_each = order->dim() != 1;
    const Ints each = {s.T, s.I, s.J, s.K};
    NK_CHECK((!s.order_of_each && order->size(0) == s.K) || (s.order_of_each && shape_of(*order) == each), op,
             ": order must be [", s.K, "], or that of every output, got shape ", shape_text(*order));
    s.order = static_cast<const int32_t*>(order->data_ptr());
    // On a device it is not looked at: an order that is none reads beyond the operands there.
    const auto outside = [&](int32_t k) { return k < 0 || k >= s.K; };
    NK_CHECK(!order->is_cpu() || std::none_of(s.order, s.order + order->numel(), outside), op,
             ": order must hold numbers from 0 to ", s.K - 1);
  }
  s.noise = noise_of(op, seed, draws, rows, first_row, site, s.T * s.I * s.J / outputs, a.device());
  if (step_noise) {
    NK_CHECK(step_noise->dim() == 0 && step_noise->scalar_type() == ScalarType::Double, op,
             ": step_noise must be a 0-d float64 tensor");
    NK_CHECK(step_noise->is_cpu() || step_noise->device() == a.device(), op,
             ": step_noise must be on the CPU or on the device of the operands");
    const auto* value = static_cast<const double*>(step_noise->data_ptr());
    s.noisy = true;
    if (step_noise->is_cpu()) {
      s.noise.add.value = *value;
    } else {
      s.noise.add.one = value;
    }
  }
  s.product = format_of(op, "product", product), s.sum = format_of(op, "sum", sum);
  const auto draws_words = [](const Format& f) { return f.given && f.rounding == Format::kStochastic; };
  const bool draws_any = s.noisy || draws_words(s.product) || draws_words(s.sum);
  NK_CHECK(!draws_any || s.K == 0 || s.n <= (int64_t{1} << 34) / s.K, op, ": ", s.n, " outputs of ", s.K,
           " steps exceed the counter's 2^34");
  s.low = low, s.high = high, s.leak = leak;
  s.synapse = synapse, s.synapse_limit = synapse_limit, s.synapse_decay = synapse_decay;
  s.track = track;
  s.a = a.data_ptr(), s.b = b.data_ptr(), s.y = out.mutable_data_ptr();
  s.a_t = a.stride(0), s.a_i = a.stride(1), s.a_k = a.stride(2);
  s.b_t = b.stride(0), s.b_k = b.stride(1), s.b_j = b.stride(2);
  run(op, out, s);
  return out;
}

std::tuple<Tensor, Tensor> serial_gradient(Tensor grad, Tensor last, Tensor a, Tensor b, Tensor position) {
  const char* op = "serial_gradient";
  SerialGradient g;
  g.dtype = serial_type(op, a, b);
  g.T = a.size(0), g.I = a.size(1), g.K = a.size(2), g.J = b.size(2);
  const Ints shape = {g.T, g.I, g.J};
  NK_CHECK(b.size(0) == g.T && shape_of(grad) == shape && shape_of(last) == shape, op, ": expected ", g.T,
           " matrices of each kind, got shapes ", shape_text(grad), ", ", shape_text(last), ", ", shape_text(a),
           " and ", shape_text(b));
  NK_CHECK(position.dim() == 1 && position.size(0) == g.K && position.scalar_type() == ScalarType::Int, op,
           ": position must be int32 [", g.K, "], got shape ", shape_text(position));
  for (const Tensor* t : {&grad, &last}) {
    NK_CHECK(t->scalar_type() == a.scalar_type() && t->device() == a.device(), op,
             ": all must have one dtype and be on one device");
  }
  NK_CHECK(position.device() == a.device(), op, ": position must be on the device of the operands");
  grad = as_contiguous(op, grad), last = as_contiguous(op, last), a = as_contiguous(op, a), b = as_contiguous(op, b);
  position = as_contiguous(op, position);
  Tensor a_grad = empty_as(op, a, shape_of(a), false), b_grad = empty_as(op, b, shape_of(b), false);
  torch::stable::zero_(a_grad);
  torch::stable::zero_(b_grad);
  g.grad = grad.data_ptr(), g.last = last.data_ptr(), g.a = a.data_ptr(), g.b = b.data_ptr();
  g.position = static_cast<const int32_t*>(position.data_ptr());
  g.a_grad = a_grad.mutable_data_ptr(), g.b_grad = b_grad.mutable_data_ptr();
  if (g.T > 0 && g.I > 0 && g.J > 0 && g.K > 0) run(op, a_grad, g);
  return {a_grad, b_grad};
}

}  // namespace noisykernels
