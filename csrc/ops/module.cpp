// The Python module _C: what is not an operator. Importing it also registers the operators (register.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <sstream>

#include "../cpu/launch.h"
#include "../cuda/launch.h"
#include "plain.h"

namespace py = pybind11;
namespace nk = noisykernels;

namespace {

std::vector<std::string> cpu_levels() {
  const nk::cpu::Kernels* const* list;
  const int count = nk::cpu::available_levels(&list);
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) names.emplace_back(list[i]->name);
  return names;
}

[[noreturn]] void refuse(const char* op, const std::string& name) {
  std::string known = "auto", got = "'" + name + "'";
  for (const auto& n : cpu_levels()) known += ", " + n;
  const char* wanted = std::getenv("NOISYKERNELS_CPU_LEVEL");
  if (name == "auto" && wanted != nullptr) got = "'" + std::string(wanted) + "' in NOISYKERNELS_CPU_LEVEL";
  throw py::value_error(std::string(op) + ": expected one of " + known + " on this machine, got " + got);
}

// The architectures that the CUDA kernels were built for; none: without them.
std::vector<std::string> cuda_archs() {
#if defined(NOISYKERNELS_CUDA)
  std::istringstream names(NOISYKERNELS_CUDA);
  return {std::istream_iterator<std::string>(names), {}};
#else
  return {};
#endif
}

std::string cuda_multiplier() { return nk::cuda::kMultiplierNames[static_cast<int>(nk::cuda::multiplier)]; }

void set_cuda_multiplier(const std::string& name) {
  const auto& names = nk::cuda::kMultiplierNames;
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names)) {
    throw py::value_error("set_cuda_multiplier: expected library, fused or fused_tf32, got '" + name + "'");
  }
  nk::cuda::multiplier = static_cast<nk::cuda::Multiplier>(found - std::begin(names));
}

std::string cpu_level() {
  const nk::cpu::Kernels* level = nk::cpu::current_level();
  if (level == nullptr) refuse("cpu_level", "auto");
  return level->name;
}

void set_cpu_level(const std::string& name) {
  if (nk::cpu::set_level(name.c_str())) return;
  refuse("set_cpu_level", name);
}

py::object perturb_plain(py::handle x, int64_t count, py::handle seed, py::handle draws, py::handle rows,
                         py::handle add, py::handle mul, int mode, int kind, int64_t site) {
  if (!nk::undisturbed()) return py::none();
  return nk::perturb_plain(x, false, {count, seed, draws, rows}, {add, mul, mode, kind, site});
}

template <class Names>
std::vector<std::string> list_of(const Names& names) {
  return {std::begin(names), std::end(names)};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts, kinds of noise and the CPU level in use.";
  m.attr("STREAM_VERSION") = nk::kStreamVersion;
  m.def("noise_kinds", [] { return list_of(nk::Kinds::kNames); });
  m.def("noise_bounds",
        [] { return std::vector<double>(std::begin(nk::Kinds::kBounds), std::end(nk::Kinds::kBounds)); });
  m.def("operands", [] { return list_of(nk::kOperandNames); });
  m.def("cpu_levels", &cpu_levels);
  m.def("cpu_level", &cpu_level);
  m.def("set_cpu_level", &set_cpu_level);
  m.def("cuda_multiplier", &cuda_multiplier);
  m.def("set_cuda_multiplier", &set_cuda_multiplier);
  m.def("perturb_plain", &perturb_plain);
  m.def("call_leaf", &nk::call_leaf);
  m.def("build_info", [] {
    py::dict d;
    d["compiler"] = __VERSION__;
    d["cpu_levels"] = cpu_levels();
    d["cuda_archs"] = cuda_archs();
    return d;
  });
}
