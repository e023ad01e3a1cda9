// torch's stable ABI, all of it that the operators use, for the oldest torch that they run with. Every file that wants
// torch includes this, so that they are all of one version.
#pragma once

// 2.10. Not from the command line: module.cpp would get it, too, and torch then refuses pybind11.
#define TORCH_TARGET_VERSION 0x020a000000000000

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
