// Noise straight on plain tensors of Python, see plain.cpp and leaf.cpp. No torch here.
#pragma once

#include <pybind11/pybind11.h>

#include "../params.h"

namespace noisykernels {

// Of a call: its rows, one int64 seed, and vectors of ids or None.
struct PlainKey {
  int64_t count;
  pybind11::handle seed, draws, rows;
};

// Of a site: 0-d levels of float64 or None, and numbers that are known to be good.
struct PlainNoise {
  pybind11::handle add, mul;
  int mode, kind;
  int64_t site;
};

// Whether nothing is on that would have torch's dispatcher do more than run a kernel, or see that it runs.
bool undisturbed();
bool is_plain(pybind11::handle);

// noise(x), whose dimension 0 counts the rows, in its own memory or in a new tensor; None where it could not.
pybind11::object perturb_plain(pybind11::handle x, bool in_place, const PlainKey&, const PlainNoise&);
// noise(x W^T + bias), a new tensor; None where it could not.
pybind11::object linear_plain(pybind11::handle x, pybind11::handle weight, pybind11::handle bias, const PlainKey&,
                              const PlainNoise&);
// The call of a leaf, see injection/leaves.py; NotImplemented where it must go another way, and nothing has happened.
pybind11::object call_leaf(pybind11::handle module, pybind11::handle forward, pybind11::handle special,
                           pybind11::handle x);

}  // namespace noisykernels
