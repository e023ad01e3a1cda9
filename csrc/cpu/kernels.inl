// The kernels of a CPU level, made of its lanes A. A level's file includes this in its region compiled for its
// instruction set, and defines A after it. What is included from here must be ours, or have been included before the
// region: nothing of a standard header may be compiled for a wider set.
#pragma once

#include "deviation.inl"
#include "epilogue.inl"
#include "expand_levels.inl"
#include "pool.inl"
#include "row_scale.inl"
#include "serial.inl"

namespace noisykernels::cpu {
namespace {

template <class A>
consteval Kernels kernels_of(const char* name) {
  return {.name = name,
          .epilogue = &epilogue_range<A>,
          .pool = &pool_range<A>,
          .expand_levels = &expand_levels_range<A>,
          .expand_levels_pool = &expand_levels_pool_range<A>,
          .square_row = &square_row<A>,
          .deviations = &deviations<A>,
          .serial = &serial_range<A>,
          .serial_gradient = &serial_gradient_range<A>,
          .quantize = &quantize_range<A>,
          .row_scale = &row_scales<A>};
}

}  // namespace
}  // namespace noisykernels::cpu
