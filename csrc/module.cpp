// The Python module _C: what is not an operator. Importing it also registers the operators of ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels.h"

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

std::string cpu_level() {
  const nk::cpu::Kernels* level = nk::cpu::current_level();
  if (level == nullptr) throw py::value_error("NOISYKERNELS_CPU_LEVEL names a level that this build or machine lacks");
  return level->name;
}

void set_cpu_level(const std::string& name) {
  if (nk::cpu::set_level(name.c_str())) return;
  std::string known = "auto";
  for (const auto& n : cpu_levels()) known += ", " + n;
  throw py::value_error("set_cpu_level: expected one of " + known + " on this machine, got '" + name + "'");
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
  m.def("operands", [] { return list_of(nk::kOperandNames); });
  m.def("cpu_levels", &cpu_levels);
  m.def("cpu_level", &cpu_level);
  m.def("set_cpu_level", &set_cpu_level);
  m.def("build_info", [] {
    py::dict d;
    d["compiler"] = __VERSION__;
    d["cpu_levels"] = cpu_levels();
    d["cuda_archs"] = std::vector<std::string>{};
    return d;
  });
}
