// The call of one of torch's layers in an injected model: from Python to the kernel in one step, where nothing about it
// depends on the call. `injection/leaves.py` says what a leaf is, and does the same in all other cases.
#include "plain.h"

namespace py = pybind11;

namespace noisykernels {
namespace {

py::object checked(PyObject* made) {
  if (made == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

// A value of a dict, borrowed; null if there is none.
PyObject* found(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// Functions of torch, and names of attributes.
struct Words {
  py::object depth, pop, push;
  py::str plain{"plain"}, muted{"muted"}, calls{"calls"}, spots{"spots"}, noise{"noise"}, at{"at"};
  py::str door{"_noise_door"}, owner{"owner"}, state{"state"}, leaf{"leaf"}, forward{"forward"};
  py::str parameters{"_parameters"}, weight{"weight"}, bias{"bias"}, linear{"linear"};

  static const Words& get() {
    static const Words* words = new Words();  // never destroyed: Python may be gone by then
    return *words;
  }

 private:
  Words() {
    const auto torch = py::module_::import("torch._C");
    depth = torch.attr("_len_torch_function_stack");
    pop = torch.attr("_pop_torch_function_stack"), push = torch.attr("_push_on_torch_function_stack");
    for (py::str* word : {&plain, &muted, &calls, &spots, &noise, &at, &door, &owner, &state, &leaf, &forward,
                          &parameters, &weight, &bias, &linear}) {
      PyUnicode_InternInPlace(&word->ptr());
    }
  }
};

py::object attribute(py::handle object, const py::str& name) {
  return checked(PyObject_GetAttr(object.ptr(), name.ptr()));
}

// The running mode, out of the way while this lives.
class Lifted {
 public:
  Lifted() : mode(checked(PyObject_CallNoArgs(Words::get().pop.ptr()))) {}
  ~Lifted() {
    py::error_scope kept;
    Py_XDECREF(PyObject_CallOneArg(Words::get().push.ptr(), mode.ptr()));
  }
  Lifted(const Lifted&) = delete;
  Lifted& operator=(const Lifted&) = delete;

  const py::object mode;
};

PlainKey key_of(py::handle plain) {
  PyObject* t = plain.ptr();
  return {PyLong_AsLongLong(PyTuple_GET_ITEM(t, 0)), PyTuple_GET_ITEM(t, 1), PyTuple_GET_ITEM(t, 2),
          PyTuple_GET_ITEM(t, 3)};
}

PlainNoise noise_of(py::handle plain) {
  PyObject* t = plain.ptr();
  return {PyTuple_GET_ITEM(t, 0), PyTuple_GET_ITEM(t, 1), static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(t, 2))),
          static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(t, 3))), PyLong_AsLongLong(PyTuple_GET_ITEM(t, 4))};
}

}  // namespace

py::object call_leaf(py::handle module, py::handle forward, py::handle special, py::handle x) {
  const Words& words = Words::get();
  const auto otherwise = [] { return py::reinterpret_borrow<py::object>(Py_NotImplemented); };
  if (PyLong_AsLong(checked(PyObject_CallNoArgs(words.depth.ptr())).ptr()) != 1) return otherwise();
  const Lifted lifted;
  const py::object& mode = lifted.mode;
  const py::object key = py::reinterpret_steal<py::object>(PyObject_GetAttr(mode.ptr(), words.plain.ptr()));
  if (!key) {  // somebody else's
    PyErr_Clear();
    return otherwise();
  }
  const py::object told = checked(PyObject_GenericGetDict(module.ptr(), nullptr));
  PyObject* door = found(told.ptr(), words.door.ptr());
  if (key.is_none() || door == nullptr || !attribute(door, words.state).is(attribute(mode, words.owner)) ||
      !attribute(py::type::handle_of(module), words.forward).is(forward)) {
    return otherwise();
  }
  const py::object known = attribute(door, words.leaf);  // path, kind, stem of its sites' names, the first of them
  PyObject *kind = PyTuple_GET_ITEM(known.ptr(), 1), *stem = PyTuple_GET_ITEM(known.ptr(), 2);
  const auto result = [&] {
    return checked(PyObject_CallFunctionObjArgs(forward.ptr(), module.ptr(), x.ptr(), nullptr));
  };
  if (kind == Py_None || PyObject_IsTrue(attribute(mode, words.muted).ptr())) return result();
  PyObject* is_special = found(special.ptr(), kind);
  if (is_special != nullptr &&
      PyObject_IsTrue(checked(PyObject_CallFunctionObjArgs(is_special, mode.ptr(), told.ptr(), nullptr)).ptr())) {
    return otherwise();
  }
  const py::object calls = attribute(mode, words.calls);
  const PyObject* before = found(calls.ptr(), stem);
  const long number = before == nullptr ? 0 : PyLong_AsLong(const_cast<PyObject*>(before));
  const py::object name = number == 0 ? py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(known.ptr(), 3))
                                      : checked(PyUnicode_FromFormat("%U#%ld", stem, number));
  PyObject* spot = found(attribute(mode, words.spots).ptr(), name.ptr());
  if (spot == nullptr) return otherwise();
  const auto count = [&] {
    const py::object next = checked(PyLong_FromLong(number + 1));
    if (PyDict_SetItem(calls.ptr(), stem, next.ptr()) != 0) throw py::error_already_set();
  };
  const py::object site_noise = attribute(spot, words.noise);
  if (site_noise.is_none()) {
    count();
    return result();
  }
  const py::object noise = attribute(spot, words.plain);
  if (noise.is_none() || !is_plain(x) || !undisturbed()) return otherwise();
  if (PyObject_RichCompareBool(kind, words.linear.ptr(), Py_EQ) == 1) {
    PyObject* parameters = found(told.ptr(), words.parameters.ptr());
    PyObject* weight = parameters == nullptr ? nullptr : found(parameters, words.weight.ptr());
    PyObject* bias = parameters == nullptr ? nullptr : found(parameters, words.bias.ptr());
    if (weight == nullptr || bias == nullptr) return otherwise();  // made of others
    py::object y = linear_plain(x, weight, bias, key_of(key), noise_of(noise));
    if (y.is_none()) return otherwise();
    count();
    return y;
  }
  count();
  const py::object clean = result();
  // Nobody else has seen the result, unless it is the input.
  py::object y = perturb_plain(clean, !clean.is(x), key_of(key), noise_of(noise));
  if (!y.is_none()) return y;
  return checked(
      PyObject_CallMethodObjArgs(mode.ptr(), words.at.ptr(), name.ptr(), site_noise.ptr(), clean.ptr(), nullptr));
}

}  // namespace noisykernels
