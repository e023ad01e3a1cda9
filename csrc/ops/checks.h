// What an operator does with its arguments: small helpers over torch's stable ABI, every check that needs shapes, and
// the noise arguments bound to what a kernel takes.
//
// Seed and 0-d levels may be on the CPU whatever the device: they are then read here and passed by value. On a device,
// they are read by the kernel.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iomanip>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "../cpu/launch.h"
#include "torch.h"

namespace noisykernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

// A failed check is a RuntimeError in Python: "noisykernels::op: argument: expected, got".
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text << "noisykernels::";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}
#define NK_CHECK(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)

// ----------------------------------------------------------------------------------------------- small torch helpers

inline std::string shape_text(const Tensor& t) {
  std::string s = "[";
  for (int64_t i = 0; i < t.dim(); ++i) s += (i ? ", " : "") + std::to_string(t.size(i));
  return s + "]";
}

inline std::string bytes_text(double bytes) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << bytes / (1 << 30) << " GiB";
  return text.str();
}

// What torch says against a call becomes our `op`'s error (from torch 2.13 on; older ones do not tell). Of its words
// about memory the size is left.
inline void check_torch(const char* op, AOTITorchError error) {
  if (error == TORCH_SUCCESS) return;
  const auto message = cpu::find_in_torch<const char* (*)()>("torch_exception_get_what_without_backtrace");
  const std::string said = message == nullptr ? "torch refused the shapes or the memory" : message();
  constexpr std::string_view asked = "you tried to allocate ";
  const size_t at = said.find(asked);
  NK_CHECK(at == std::string::npos, op, ": not enough memory for a tensor of ",
           bytes_text(std::strtod(said.c_str() + at + asked.size(), nullptr)));
  NK_CHECK(false, op, ": ", said);
}

// One of torch's operators, on behalf of ours.
template <class... Args>
Tensor call(const char* op, const char* name, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  check_torch(op, torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Ints shape_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

inline int64_t product(const Ints& v, size_t from = 0) {
  int64_t p = 1;
  for (size_t i = from; i < v.size(); ++i) p *= v[i];
  return p;
}

// Dense with dimension 1 fastest, as torch's channels_last formats.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() < 4 || t.dim() > 5) return false;
  int64_t expected = t.size(1);
  if (t.stride(1) != 1) return false;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return t.size(0) == 1 || t.stride(0) == expected;
}

inline torch::headeronly::MemoryFormat channels_last_format(int64_t dim) {
  return dim == 4 ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::ChannelsLast3d;
}

// Without the dispatcher's detour where there is nothing to do.
inline Tensor as_contiguous(const char* op, const Tensor& t) {
  return t.is_contiguous() ? t : call(op, "aten::contiguous", t, torch::headeronly::MemoryFormat::Contiguous);
}
inline Tensor dense(const char* op, const Tensor& t) { return is_channels_last(t) ? t : as_contiguous(op, t); }

// Uninitialised, by the C call: the dispatcher's way to an allocation takes longer than a small layer.
inline Tensor empty(const char* op, const Ints& shape, ScalarType type, torch::stable::Device device,
                    bool channels_last) {
  Ints strides(shape.size());
  int64_t stride = 1;
  for (size_t k = 0; k < shape.size(); ++k) {  // from the fastest dimension to the slowest
    const size_t last = shape.size() - 1;
    const size_t d = !channels_last ? last - k : (k == 0 ? 1 : (k < last ? last + 1 - k : 0));
    strides[d] = stride;
    stride *= std::max<int64_t>(1, shape[d]);
  }
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())), device.index(), &handle);
  check_torch(op, error);
  return Tensor(handle);
}

inline Tensor empty_as(const char* op, const Tensor& like, const Ints& shape, bool channels_last) {
  return empty(op, shape, like.scalar_type(), like.device(), channels_last);
}

inline DType dtype_of(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      break;
  }
  NK_CHECK(false, op, ": ", argument, " must be float32, float64, bfloat16 or float16, got ",
           torch::headeronly::toString(t.scalar_type()));
  return DType::kFloat32;
}

inline void check_operand(const char* op, int64_t operand) {
  const bool listed = operand >= 0 && operand < static_cast<int64_t>(Operand::kCount);
  NK_CHECK(listed || (operand >= kFirstOwnOperand && operand < kOperands), op, ": unknown operand ", operand);
}

inline void check_same_place(const char* op, const Tensor& x, const Tensor& weight, const OptTensor& bias) {
  const ScalarType type = x.scalar_type();
  NK_CHECK(weight.device() == x.device() && (!bias || bias->device() == x.device()), op,
           ": input, weight and bias must be on the same device");
  NK_CHECK(weight.scalar_type() == type && (!bias || bias->scalar_type() == type), op,
           ": input, weight and bias must have the same dtype, got ", torch::headeronly::toString(type), ", ",
           torch::headeronly::toString(weight.scalar_type()), " and ",
           bias ? torch::headeronly::toString(bias->scalar_type()) : "no bias");
}

// What the shapes of a linear layer tell; returns its type.
inline DType check_linear(const char* op, const Tensor& x, const Tensor& weight, const OptTensor& bias) {
  const DType type = dtype_of(op, "input", x);
  NK_CHECK(x.dim() >= 1, op, ": input must have at least one dimension");
  NK_CHECK(weight.dim() == 2, op, ": weight must be [out_features, in_features], got shape ", shape_text(weight));
  check_same_place(op, x, weight, bias);
  const int64_t N = weight.size(0), K = weight.size(1);
  NK_CHECK(x.size(x.dim() - 1) == K, op, ": input's last dimension must be ", K, " (weight ", shape_text(weight),
           "), got shape ", shape_text(x));
  NK_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == N), op, ": bias must be [", N, "], got shape ",
           bias ? shape_text(*bias) : "");
  return type;
}

// What the shapes of a convolution tell; returns its name.
inline const char* check_convolution(const Tensor& x, const Tensor& weight, const OptTensor& bias, bool transposed) {
  static const char* const names[2][4] = {
      {"conv", "conv1d", "conv2d", "conv3d"},
      {"conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}};
  const int64_t dims = weight.dim() - 2;
  const char* op = names[transposed][dims >= 1 && dims <= 3 ? dims : 0];
  dtype_of(op, "input", x);
  NK_CHECK(dims >= 1 && dims <= 3, op, ": weight must have 3 to 5 dimensions, got shape ", shape_text(weight));
  NK_CHECK(x.dim() == weight.dim() || x.dim() == weight.dim() - 1, op, ": input must have ", weight.dim(),
           " dimensions (or one fewer, unbatched), got shape ", shape_text(x));
  check_same_place(op, x, weight, bias);
  return op;
}

// f of x with a dimension for its one row, where it has none.
template <class F>
Tensor with_rows(const char* op, const Tensor& x, bool batched, const OptTensor& draws, F&& f) {
  if (batched) return f(x);
  NK_CHECK(!draws || draws->numel() == 1, op, ": an unbatched value is one row and takes one draw, got ",
           draws->numel());
  return torch::stable::squeeze(f(torch::stable::unsqueeze(x, 0)), 0);
}

// ------------------------------------------------------------------------------------------------- noise arguments

// The trailing arguments of every operator, in schema order.
struct NoiseArgs {
  OptTensor add, mul;
  Tensor seed;
  OptTensor draws, rows;
  int64_t first_row, site, mode, kind;
  bool shared;
};

inline const int64_t* ids(const char* op, const char* argument, const OptTensor& t, const char* length,
                          torch::stable::Device device) {
  if (!t) return nullptr;
  NK_CHECK(t->device() == device, op, ": ", argument, " must be on the device of the value");
  NK_CHECK(t->dim() == 1 && t->scalar_type() == ScalarType::Long && t->is_contiguous(), op, ": ", argument,
           " must be a contiguous int64 vector [", length, "], got shape ", shape_text(*t));
  return static_cast<const int64_t*>(t->data_ptr());
}

inline void set_seed(NoiseParams& params, const char* op, const Tensor& seed, torch::stable::Device device) {
  NK_CHECK(seed.numel() == 1 && seed.scalar_type() == ScalarType::Long, op, ": seed must be one int64, got ",
           torch::headeronly::toString(seed.scalar_type()), " of shape ", shape_text(seed));
  const auto* data = static_cast<const int64_t*>(seed.data_ptr());
  if (seed.is_cpu()) {
    params.seed_value = *data;
  } else {
    NK_CHECK(seed.device() == device, op, ": seed must be on the CPU or on the device of the value");
    params.seed = data;
  }
}

inline void check_first_row(const char* op, int64_t first_row, int64_t rows) {
  NK_CHECK(first_row >= 0 && first_row <= (int64_t{1} << 32) - rows, op, ": first_row and the ", rows,
           " rows from it on must lie in [0, 2^32), got ", first_row);
}

// How many draws and rows of each there are, and that they have ids: known before anything is computed or copied.
struct Counts {
  int64_t D, B;

  Counts(const char* op, const NoiseArgs& a, int64_t rows, bool batched, bool shared)
      : D(a.draws ? a.draws->numel() : 1), B(shared ? rows : (D == 0 ? 0 : rows / D)) {
    NK_CHECK(batched || D == 1, op, ": an unbatched value is one row and takes one draw, got ", D);
    NK_CHECK(shared || D == 0 || rows % D == 0, op, ": dimension 0 holds draws x rows and must be a multiple of ", D,
             " draws, got ", rows, " (shared=True gives every draw the same ", rows, " rows)");
    NK_CHECK(shared || D * B == rows, op, ": draws is empty but there are ", rows, " rows");
    NK_CHECK(!a.rows || a.rows->numel() == B, op, ": rows must hold one id for each of ", B, " rows, got ",
             a.rows->numel());
    if (!a.rows) check_first_row(op, a.first_row, B);
  }
};

// Noise parameters for an output whose rows are dimension 0 of `item`-shaped values, with the tensors that they point
// into.
struct BoundNoise {
  NoiseParams params;
  bool shared = false;
  int64_t rows_in = 0, rows_out = 0;

  // clean: shape of the noiseless value, which has the type and is on the device of `like`.
  BoundNoise(const char* op, const NoiseArgs& a, const Ints& clean, bool batched, const Tensor& like,
             bool channels_last)
      : type_(like.scalar_type()), device_(like.device()) {
    NK_CHECK(a.site >= 0 && a.site < (1 << 24), op, ": site must lie in [0, 2^24), got ", a.site);
    NK_CHECK(a.kind >= 0 && a.kind < Kinds::kSize, op, ": unknown kind of noise ", a.kind);
    NK_CHECK(a.mode >= 0 && a.mode < static_cast<int64_t>(Mode::kEps), op, ": unknown mode ", a.mode);
    set_seed(params, op, a.seed, device_);
    params.site = static_cast<uint32_t>(a.site);
    params.kind = static_cast<int>(a.kind);
    params.mode = static_cast<Mode>(a.mode);
    params.draws = ids(op, "draws", a.draws, "D", device_);
    params.rows = ids(op, "rows", a.rows, "B", device_);
    params.first_row = a.first_row;
    shared = a.shared;
    rows_in = batched ? clean[0] : 1;
    const Counts counts(op, a, rows_in, batched, shared);
    params.D = counts.D, params.B = counts.B;
    rows_out = counts.D * counts.B;
    const int64_t n = product(clean, batched ? 1 : 0);
    NK_CHECK((n + 3) / 4 <= (int64_t{1} << 32), op, ": a row of ", n, " elements exceeds the counter's 2^34");
    if (has_add_level(params.mode)) params.add = level(op, "add", a.add, clean, batched, channels_last);
    if (has_mul_level(params.mode)) params.mul = level(op, "mul", a.mul, clean, batched, channels_last);
  }

 private:
  ScalarType type_;
  torch::stable::Device device_;
  std::vector<Tensor> held_;

  Level level(const char* op, const char* name, const OptTensor& t, const Ints& clean, bool batched,
              bool channels_last) {
    NK_CHECK(t, op, ": this mode needs the level `", name, "`");
    NK_CHECK(t->scalar_type() == ScalarType::Double, op, ": level `", name, "` must be float64 here");
    Level out;
    if (t->dim() == 0 && t->is_cpu()) {
      out.value = *static_cast<const double*>(t->data_ptr());
      return out;
    }
    NK_CHECK(t->device() == device_, op, ": level `", name, "` must be on the device of the value, or 0-d on the CPU");
    if (t->dim() == 0) {
      out.one = static_cast<const double*>(t->data_ptr());
      return out;
    }
    const int64_t item_dims = static_cast<int64_t>(clean.size()) - (batched ? 1 : 0);
    NK_CHECK(t->dim() == item_dims + 2, op, ": level `", name, "` must be 0-d or of rank ", item_dims + 2,
             " (draws, rows, then the value's other dimensions: see per_draw, per_row, per_channel), got shape ",
             shape_text(*t));
    NK_CHECK(t->size(0) == 1 || t->size(0) == params.D, op, ": level `", name, "` has ", t->size(0),
             " draws, expected 1 or ", params.D);
    NK_CHECK(t->size(1) == 1 || t->size(1) == params.B, op, ": level `", name, "` has ", t->size(1),
             " rows, expected 1 or ", params.B);
    Ints full = {t->size(0) * t->size(1)};
    bool varies = false;
    for (int64_t d = 0; d < item_dims; ++d) {
      const int64_t size = clean[d + (batched ? 1 : 0)];
      NK_CHECK(t->size(d + 2) == 1 || t->size(d + 2) == size, op, ": level `", name, "` of shape ", shape_text(*t),
               " does not broadcast to the value's dimension ", d, " of size ", size);
      varies = varies || t->size(d + 2) != 1;
      full.push_back(size);
    }
    Ints own = {full[0]};
    for (int64_t d = 0; d < item_dims; ++d) own.push_back(t->size(d + 2));
    Tensor v = torch::stable::reshape(*t, torch::headeronly::IntHeaderOnlyArrayRef(own.data(), own.size()));
    if (varies)
      v = call(op, "aten::expand", v, torch::headeronly::IntHeaderOnlyArrayRef(full.data(), full.size()), false);
    if (type_ != ScalarType::Double) v = torch::stable::to(v, ScalarType::Float);
    v = torch::stable::contiguous(v, varies && channels_last ? channels_last_format(static_cast<int64_t>(full.size()))
                                                             : torch::headeronly::MemoryFormat::Contiguous);
    held_.push_back(v);
    const int64_t per_row = varies ? product(full, 1) : 1;
    out.data = v.data_ptr();
    out.item_stride = varies ? 1 : 0;
    out.row_stride = t->size(1) == 1 ? 0 : per_row;
    out.draw_stride = t->size(0) == 1 ? 0 : per_row * t->size(1);
    return out;
  }
};

}  // namespace noisykernels
