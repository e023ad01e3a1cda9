// The operators' schemas, and their registration: one code for the CPU and CUDA. Autograd, fake, vmap and autocast
// rules are registered from Python.
#include "operators.h"

#define NK_NOISE_SCHEMA                                                                                        \
  "Tensor? add, Tensor? mul, Tensor seed, Tensor? draws, Tensor? rows, SymInt first_row, int site, int mode, " \
  "int kind, bool shared) -> Tensor"

STABLE_TORCH_LIBRARY(noisykernels, m) {
  m.def(
      "eps(SymInt[] shape, int kind, Tensor seed, int site, int operand, SymInt draw, Tensor? rows, SymInt first_row) "
      "-> Tensor");
  m.def("perturb(Tensor x, int operand, " NK_NOISE_SCHEMA);
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool relu, " NK_NOISE_SCHEMA);
  m.def(
      "convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool "
      "transposed, "
      "int[] output_padding, int groups, bool relu, " NK_NOISE_SCHEMA);
  m.def(
      "analog_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? add, Tensor? mul, int mode, int kind, "
      "Tensor? per_product, Tensor? per_step, Tensor? read, Tensor seed, Tensor? draws, Tensor? rows, "
      "SymInt first_row, int site, bool shared) -> Tensor");
  m.def(
      "analog_convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, bool "
      "transposed, int[] output_padding, int groups, Tensor? add, Tensor? mul, int mode, int kind, Tensor seed, "
      "Tensor? draws, int site, bool shared) -> Tensor");
  m.def("matmul(Tensor a, Tensor b, " NK_NOISE_SCHEMA);
  m.def("perturb_relu_max_pool2d(Tensor x, int[] kernel_size, int[] stride, int[] padding, " NK_NOISE_SCHEMA);
  m.def("row_scale(Tensor x, int statistic) -> Tensor");  // on CUDA, of torch's operators
  m.def("expand_levels(Tensor x, Tensor? direction, Tensor levels, bool relu) -> Tensor");
  m.def(
      "expand_levels_max_pool2d(Tensor x, Tensor? direction, Tensor levels, bool relu, int[] kernel_size, int[] "
      "stride, "
      "int[] padding) -> Tensor");
  m.def(
      "quantize(Tensor x, float[] format, Tensor seed, Tensor? draws, Tensor? rows, SymInt first_row, int site, "
      "int operand) -> Tensor");
  m.def(
      "serial(Tensor a, Tensor b, Tensor? order, float[] product, float[] sum, float low, float high, float leak, "
      "float synapse_limit, float synapse_decay, bool synapse, Tensor? step_noise, SymInt outputs, Tensor seed, "
      "Tensor? draws, Tensor? rows, SymInt first_row, int site, bool masked, bool track) -> Tensor");
  m.def("serial_gradient(Tensor grad, Tensor last, Tensor a, Tensor b, Tensor position) -> (Tensor, Tensor)");
}

template <class Library>
void implement(Library& m) {
  m.impl("eps", TORCH_BOX(&noisykernels::eps));
  m.impl("perturb", TORCH_BOX(&noisykernels::perturb));
  m.impl("linear", TORCH_BOX(&noisykernels::linear));
  m.impl("convolution", TORCH_BOX(&noisykernels::convolution));
  m.impl("analog_linear", TORCH_BOX(&noisykernels::analog_linear));
  m.impl("analog_convolution", TORCH_BOX(&noisykernels::analog_convolution));
  m.impl("matmul", TORCH_BOX(&noisykernels::matmul));
  m.impl("perturb_relu_max_pool2d", TORCH_BOX(&noisykernels::perturb_relu_max_pool2d));
  m.impl("expand_levels", TORCH_BOX(&noisykernels::expand_levels));
  m.impl("expand_levels_max_pool2d", TORCH_BOX(&noisykernels::expand_levels_max_pool2d));
  m.impl("quantize", TORCH_BOX(&noisykernels::quantize));
  m.impl("serial", TORCH_BOX(&noisykernels::serial));
  m.impl("serial_gradient", TORCH_BOX(&noisykernels::serial_gradient));
}

STABLE_TORCH_LIBRARY_IMPL(noisykernels, CPU, m) {
  implement(m);
  m.impl("row_scale", TORCH_BOX(&noisykernels::row_scale));
}
STABLE_TORCH_LIBRARY_IMPL(noisykernels, CUDA, m) { implement(m); }
