// Every operator, as register.cpp gives it to torch.
#pragma once

#include <tuple>

#include "checks.h"

namespace noisykernels {

using Numbers = std::vector<double>;

// The trailing arguments of every operator that puts noise on its value, in schema order.
#define NK_NOISE_PARAMETERS                                                                                    \
  OptTensor add, OptTensor mul, Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site, \
      int64_t mode, int64_t kind, bool shared
#define NK_NOISE_ARGS \
  NoiseArgs { add, mul, seed, draws, rows, first_row, site, mode, kind, shared }

// perturb.cpp
Tensor eps(Ints shape, int64_t kind, Tensor seed, int64_t site, int64_t operand, int64_t draw, OptTensor rows,
           int64_t first_row);
Tensor perturb(Tensor x, int64_t operand, NK_NOISE_PARAMETERS);
Tensor perturb_relu_max_pool2d(Tensor x, Ints kernel, Ints stride, Ints padding, NK_NOISE_PARAMETERS);
Tensor row_scale(Tensor x, int64_t statistic);
Tensor expand_levels(Tensor x, OptTensor direction, Tensor levels, bool relu);
Tensor expand_levels_max_pool2d(Tensor x, OptTensor direction, Tensor levels, bool relu, Ints kernel, Ints stride,
                                Ints padding);

// linear.cpp
Tensor linear(Tensor x, Tensor weight, OptTensor bias, bool relu, NK_NOISE_PARAMETERS);
Tensor convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation, bool transposed,
                   Ints output_padding, int64_t groups, bool relu, NK_NOISE_PARAMETERS);
Tensor matmul(Tensor a, Tensor b, NK_NOISE_PARAMETERS);

// analog.cpp
Tensor analog_linear(Tensor x, Tensor weight, OptTensor bias, OptTensor add, OptTensor mul, int64_t mode, int64_t kind,
                     OptTensor per_product, OptTensor per_step, OptTensor read, Tensor seed, OptTensor draws,
                     OptTensor rows, int64_t first_row, int64_t site, bool shared);
Tensor analog_convolution(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation,
                          bool transposed, Ints output_padding, int64_t groups, OptTensor add, OptTensor mul,
                          int64_t mode, int64_t kind, Tensor seed, OptTensor draws, int64_t site, bool shared);

// serial.cpp
Tensor quantize(Tensor x, Numbers format, Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site,
                int64_t operand);
Tensor serial(Tensor a, Tensor b, OptTensor order, Numbers product, Numbers sum, double low, double high, double leak,
              double synapse_limit, double synapse_decay, bool synapse, OptTensor step_noise, int64_t outputs,
              Tensor seed, OptTensor draws, OptTensor rows, int64_t first_row, int64_t site, bool masked, bool track);
std::tuple<Tensor, Tensor> serial_gradient(Tensor grad, Tensor last, Tensor a, Tensor b, Tensor position);

}  // namespace noisykernels
