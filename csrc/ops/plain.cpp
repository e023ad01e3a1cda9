// Noise straight on plain tensors of Python, without torch's dispatcher, which takes longer than a small layer.
//
// Tensors are seen through the table that DLPack has every library publish for such uses. Plain are dense float32
// tensors on the CPU of torch's own class; whatever is not is left to the operators, and nothing has happened then. A
// tensor that a transform has wrapped has no memory to see, and so is none of them.
#include "plain.h"

#include <climits>
#include <optional>

#include "dlpack.h"
#include "linear_parts.h"

namespace py = pybind11;

namespace noisykernels {
namespace {

// What is read once from torch.
struct Torch {
  const dlpack::ExchangeTable* table = nullptr;  // null: this torch lacks something
  py::object tensor, parameter, is_neg, is_autocast_enabled, operator_modes, function_modes;
  py::str cpu{"cpu"}, current_level{"_current_level"};
  py::dict forward_ad;
  bool (*const grad_enabled)() = cpu::find_in_torch<bool (*)()>("aoti_torch_grad_mode_is_enabled");

  static const Torch& get() {
    static const Torch* torch = new Torch();  // never destroyed: Python may be gone by then
    return *torch;
  }

 private:
  Torch() {
    const auto torch = py::module_::import("torch"), inner = py::module_::import("torch._C");
    tensor = torch.attr("Tensor"), parameter = torch.attr("nn").attr("Parameter"), is_neg = tensor.attr("is_neg");
    is_autocast_enabled = torch.attr("is_autocast_enabled");
    function_modes = inner.attr("_len_torch_function_stack"), operator_modes = inner.attr("_len_torch_dispatch_stack");
    forward_ad = py::module_::import("torch.autograd.forward_ad").attr("__dict__");
    const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsuleName) || grad_enabled == nullptr) return;
    const auto* found =
        static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
    if (found->major == dlpack::kMajor && found->view != nullptr) table = found;
  }
};

py::object checked(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

bool is_zero(const py::object& function) {
  return PyLong_AsLong(checked(PyObject_CallNoArgs(function.ptr())).ptr()) == 0;
}

// A contiguous tensor as it lies in memory; `seen` is false where it is no such tensor.
struct View {
  dlpack::Tensor t{};
  bool seen = false;

  View(py::handle object, uint8_t code, uint8_t bits) {
    const Torch& torch = Torch::get();
    if (torch.table == nullptr) return;
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != torch.tensor.ptr() && type != torch.parameter.ptr()) return;
    if (torch.table->view(object.ptr(), &t) != 0) {  // sparse, wrapped by a transform, ...
      PyErr_Clear();
      return;
    }
    seen = t.device_type == dlpack::kCpu && t.code == code && t.bits == bits && t.lanes == 1 && is_contiguous() &&
           (t.data != nullptr || numel() == 0);
  }
  // Of float32; not a view that shows its memory with the other sign.
  static View floats(py::handle object) {
    View view(object, dlpack::kFloat, 32);
    if (view.seen)
      view.seen = checked(PyObject_CallOneArg(Torch::get().is_neg.ptr(), object.ptr())).is(py::bool_(false));
    return view;
  }

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < t.ndim; ++d) n *= t.shape[d];
    return n;
  }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t.data) + t.byte_offset);
  }

 private:
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int d = t.ndim; d-- > 0;) {
      if (t.shape[d] != 1 && t.strides[d] != expected) return false;
      expected *= t.shape[d];
    }
    return true;
  }
};

// A new contiguous tensor of float32, of a view's shape but for its last dimension.
py::object new_like(const View& x, int64_t last) {
  constexpr int kMost = 64;
  const int ndim = x.t.ndim;
  if (ndim > kMost) return py::none();
  int64_t shape[kMost];
  std::copy_n(x.t.shape, ndim, shape);
  shape[ndim - 1] = last;
  dlpack::Tensor prototype{};
  prototype.device_type = dlpack::kCpu, prototype.ndim = ndim, prototype.shape = shape;
  prototype.code = dlpack::kFloat, prototype.bits = 32, prototype.lanes = 1;
  dlpack::Managed* made = nullptr;
  const dlpack::ExchangeTable& table = *Torch::get().table;
  if (table.allocate(&prototype, &made, nullptr, [](void*, const char*, const char*) {}) != 0) return py::none();
  void* object = nullptr;
  if (table.to_python(made, &object) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

bool read_level(Level& level, py::handle object, bool wanted) {
  if (!wanted) return true;
  const View view(object, dlpack::kFloat, 64);
  if (!view.seen || view.t.ndim != 0) return false;
  level.value = *view.data<double>();
  return true;
}

bool read_ids(const int64_t*& ids, int64_t* count, py::handle object) {
  if (object.is_none()) return true;
  const View view(object, dlpack::kInt, 64);
  if (!view.seen || view.t.ndim != 1) return false;
  ids = view.data<int64_t>();
  *count = view.t.shape[0];
  return true;
}

// The epilogue of rows of n values; false where something is not plain, or an operator would refuse it.
bool bind(Epilogue& e, const PlainKey& key, const PlainNoise& noise, int64_t n) {
  NoiseParams& p = e.noise;
  p.mode = static_cast<Mode>(noise.mode), p.kind = noise.kind, p.site = static_cast<uint32_t>(noise.site);
  const View seed(key.seed, dlpack::kInt, 64);
  if (!seed.seen || seed.numel() != 1) return false;
  p.seed_value = *seed.data<int64_t>();
  int64_t draws = 1;
  if (!read_ids(p.draws, &draws, key.draws) || draws == 0 || key.count % draws != 0) return false;
  p.D = draws, p.B = key.count / draws;
  int64_t given = p.B;
  if (!read_ids(p.rows, &given, key.rows) || given != p.B) return false;
  e.n = n;
  constexpr int64_t kMost = int64_t{1} << 32;  // ids, and blocks of a row
  return p.B <= kMost && (n + 3) / 4 <= kMost && cpu::current_level() != nullptr &&
         read_level(p.add, noise.add, has_add_level(p.mode)) && read_level(p.mul, noise.mul, has_mul_level(p.mode));
}

// The work, without the lock of the interpreter where it is longer than giving that away.
template <class Work>
void unlocked(int64_t size, Work&& work) {
  std::optional<py::gil_scoped_release> released;
  if (size > (1 << 14)) released.emplace();
  work();
}

}  // namespace

bool undisturbed() {
  const Torch& torch = Torch::get();
  if (torch.table == nullptr || torch.grad_enabled()) return false;
  const PyObject* level = PyDict_GetItemWithError(torch.forward_ad.ptr(), torch.current_level.ptr());
  return level != nullptr && PyLong_AsLong(const_cast<PyObject*>(level)) < 0 && is_zero(torch.operator_modes) &&
         is_zero(torch.function_modes);
}

bool is_plain(py::handle x) { return View(x, dlpack::kFloat, 32).seen; }

py::object perturb_plain(py::handle x, bool in_place, const PlainKey& key, const PlainNoise& noise) {
  const View from = View::floats(x);
  if (!from.seen || from.t.ndim == 0 || from.t.shape[0] != key.count) return py::none();
  const int64_t total = from.numel();
  Epilogue e;
  if (total == 0 || !bind(e, key, noise, total / key.count)) return py::none();
  py::object y = in_place ? py::reinterpret_borrow<py::object>(x) : new_like(from, from.t.shape[from.t.ndim - 1]);
  if (y.is_none()) return y;
  e.x = from.data<void>();
  e.y = in_place ? from.data<void>() : View(y, dlpack::kFloat, 32).data<void>();
  unlocked(total, [&] { cpu::run(*cpu::current_level(), e, cpu::torch_threads()); });
  return y;
}

py::object linear_plain(py::handle x, py::handle weight, py::handle bias, const PlainKey& key,
                        const PlainNoise& noise) {
  const Sgemm sgemm = find_sgemm();
  const View from = View::floats(x), w = View::floats(weight);
  if (sgemm == nullptr || !from.seen || !w.seen || from.t.ndim < 2 || w.t.ndim != 2 || from.t.shape[0] != key.count) {
    return py::none();
  }
  const int64_t N = w.t.shape[0], K = w.t.shape[1], total = from.numel();
  if (N == 0 || K == 0 || total == 0 || from.t.shape[from.t.ndim - 1] != K) return py::none();
  const int64_t M = total / K;
  const Torch& torch = Torch::get();
  if (std::max({M, N, K}) > INT_MAX ||
      !checked(PyObject_CallOneArg(torch.is_autocast_enabled.ptr(), torch.cpu.ptr())).is(py::bool_(false))) {
    return py::none();
  }
  Epilogue e;
  if (!bias.is_none()) {
    const View b = View::floats(bias);
    if (!b.seen || b.t.ndim != 1 || b.t.shape[0] != N) return py::none();
    e.bias = b.data<void>(), e.bias_size = N;
  }
  if (!bind(e, key, noise, M / key.count * N)) return py::none();
  py::object y = new_like(from, N);
  if (y.is_none()) return y;
  const View to(y, dlpack::kFloat, 32);
  e.x = e.y = to.data<void>();
  const cpu::Kernels* kernels = cpu::current_level();
  LinearParts parts{sgemm, kernels, &e, from.data<float>(), w.data<float>(), to.data<float>(), M, K, N, K, 'T'};
  unlocked(M * N * K, [&] { parts.run(e.n, cpu::torch_threads()); });
  return y;
}

}  // namespace noisykernels
