// A weight as a noisy array holds it: drawn once for each draw and shared by all rows and positions. It exists in
// panels of some output features only, each made right before the product that takes it.
#pragma once

#include <algorithm>
#include <optional>

#include "checks.h"

namespace noisykernels {

// The weight as an array holds it, panel by panel.
class AnalogWeight {
 public:
  // args: of the weight's noise, its draws shared; mode -1: there is none.
  AnalogWeight(const char* op, const Tensor& weight, const NoiseArgs& args)
      : op_(op),
        weight_(dense(op, weight)),
        type_(dtype_of(op, "weight", weight)),
        n_(weight.size(0) == 0 ? 0 : weight.numel() / weight.size(0)),
        channels_last_(!weight_.is_contiguous()) {
    if (args.mode < 0) return;
    const Mode mode = static_cast<Mode>(args.mode);
    NK_CHECK(mode == Mode::kAdd || mode == Mode::kMul || mode == Mode::kFold, op,
             ": a weight's noise is of one term: additive, multiplicative or folded");
    noise_.emplace(op, args, shape_of(weight), true, weight_, channels_last_);
    noise_->params.operand = Operand::kWeight;
  }

  const Tensor& tensor() const { return weight_; }
  bool noisy() const { return noise_.has_value(); }
  int64_t draws() const { return noise_ ? noise_->params.D : 1; }

  // What makes output features [begin, begin + count) of draw d at y.
  Epilogue panel(int64_t d, int64_t begin, int64_t count, void* y) const {
    const int64_t size = type_ == DType::kFloat64 ? 8 : (type_ == DType::kFloat32 ? 4 : 2);
    Epilogue e;
    e.noise = noise_->params;
    e.noise.D = 1;
    e.noise.B = count;
    e.noise.first_row = begin;
    if (e.noise.draws != nullptr) e.noise.draws += d;
    for (Level* level : {&e.noise.add, &e.noise.mul}) {
      const int64_t width = type_ == DType::kFloat64 ? 8 : 4;
      if (level->data == nullptr) continue;
      level->data =
          static_cast<const char*>(level->data) + width * (d * level->draw_stride + begin * level->row_stride);
    }
    e.x = static_cast<const char*>(weight_.data_ptr()) + size * begin * n_;
    e.y = y;
    e.dtype = type_;
    e.n = n_;
    e.channels = channels_last_ && n_ > weight_.size(1) ? weight_.size(1) : 1;
    return e;
  }

  Tensor empty_panel(int64_t count) const {
    Ints shape = shape_of(weight_);
    shape[0] = count;
    return empty_as(op_, weight_, shape, channels_last_);
  }

  // Output features of a panel of so many bytes.
  int64_t together(int64_t bytes) const {
    const int64_t one = std::max<int64_t>(1, n_ * (type_ == DType::kFloat64 ? 8 : 4));
    return std::min(weight_.size(0), std::max<int64_t>(16, bytes / one / 16 * 16));
  }

 private:
  const char* op_;
  Tensor weight_;
  DType type_;
  int64_t n_;
  bool channels_last_;
  std::optional<BoundNoise> noise_;
};

}  // namespace noisykernels
