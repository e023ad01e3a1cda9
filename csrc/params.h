// What the kernels of every device get: plain structs with raw pointers. No torch here.
#pragma once

#include <cstdint>

#include "noise.h"

namespace noisykernels {

enum class DType : int { kFloat32 = 0, kFloat64, kBFloat16, kFloat16 };

// A level for every (draw, row, element): float, or double where the data are double. Strides count values; 0 repeats.
struct Level {
  const void* data = nullptr;  // null: the same everywhere, `*one` or `value`
  int64_t draw_stride = 0, row_stride = 0;
  int64_t item_stride = 0;  // 0: one value per row; 1: one per element, in the order of the row's memory
  const double* one = nullptr;
  double value = 0;
};

// Which noise. Output row i of D * B belongs to draw draws[i / B] and to data-set row rows[i % B].
struct NoiseParams {
  const int64_t* seed = nullptr;  // [1], 64 bits; null: seed_value
  int64_t seed_value = 0;
  const int64_t* draws = nullptr;  // [D]; null: one draw, id first_draw
  int64_t first_draw = 0;
  const int64_t* rows = nullptr;  // [B]; null: first_row, first_row + 1, ...
  int64_t first_row = 0;
  int64_t D = 1, B = 0;
  uint32_t site = 0;
  // Of the eps: kAdd stands for the two of a value, kAdd and kMul; another is the one stream of every mode.
  Operand operand = Operand::kAdd;
  int kind = 0;
  Mode mode = Mode::kAdd;
  Level add, mul;
  // Not null: the eps of operand add are not drawn but read, row i of the output from row i % given_rows of n values.
  const float* given = nullptr;
  int64_t given_rows = 1;
};

// y = relu?(noise(x + bias)), over D * B rows of n elements. A draw or row id outside 32 bits, or a level that is NaN,
// negative or infinite, makes NaN.
struct Epilogue {
  const void* x = nullptr;  // [D * B, n], or [B, n] if shared; may be y; unused for Mode::kEps
  void* y = nullptr;        // [D * B, n]
  DType dtype = DType::kFloat32;
  int64_t n = 0;
  bool shared = false;
  // Memory order of a row: channels == 1: elements in order; else [n / channels, channels] while element indices count
  // positions fastest (channels_last).
  int64_t channels = 1;
  const void* bias = nullptr;  // [bias_size] in the data's type, repeated along the row
  int64_t bias_size = 0;
  bool relu = false;
  NoiseParams noise;
};

// y = max_pool2d(relu(noise(x))) over rows of planes height x width.
struct PoolEpilogue {
  Epilogue noise;  // y: [D * B, planes * out_height * out_width]
  int64_t planes = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t kernel_h = 2, kernel_w = 2, stride_h = 2, stride_w = 2, pad_h = 0, pad_w = 0;
};

// What the deviation of the noise of an output's products, steps and readings is made of, for a row of outputs.
struct Deviations {
  int64_t n = 0;
  const float* per_product = nullptr;  // [n] level times the weights' scale; null: none
  float row_scale = 1;                 // of the squares of the input
  const float* read = nullptr;         // [n] level; null: none
  float row_length = 0;                // of the input, as a vector
  float per_step = 0;                  // level times the root of the number of steps
};

enum class Statistic : int { kRms = 0, kMax, kStd, kSize };

// y[i] = the size of row i of x, a value of `rows` rows of n elements in any order.
struct RowScale {
  const void* x = nullptr;
  double* y = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, n = 0;
  Statistic statistic = Statistic::kRms;
};

}  // namespace noisykernels
