// Runs an epilogue where its output is: the CPU level in use, or torch's current CUDA stream.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../cuda/launch.h"
#include "checks.h"

namespace noisykernels {

inline const cpu::Kernels& kernels() {
  const cpu::Kernels* k = cpu::current_level();
  NK_CHECK(k != nullptr,
           "cpu: the environment variable NOISYKERNELS_CPU_LEVEL names a level that this build or machine lacks");
  return *k;
}

inline int threads() { return cpu::torch_threads(); }

#if defined(NOISYKERNELS_CUDA)
// torch's current stream of a device. The function is one of torch's CUDA builds, and so found at run time.
inline cudaStream_t current_stream(torch::stable::Device device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = cpu::find_in_torch<Get>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  NK_CHECK(get != nullptr && get(device.index(), &stream) == TORCH_SUCCESS, "cuda: torch gives no current stream");
  return static_cast<cudaStream_t>(stream);
}
#endif

// A kernel on the device of the tensor that it writes.
template <class E>
void run(const char* op, const Tensor& out, const E& e) {
  if constexpr (!std::is_same_v<E, cuda::Gemm>) {
    if (out.is_cpu()) return cpu::run(kernels(), e, threads());
  }
#if defined(NOISYKERNELS_CUDA)
  const torch::stable::accelerator::DeviceGuard guard(out.device().index());
  const char* error = cuda::run(e, current_stream(out.device()));
  NK_CHECK(error == nullptr, op, ": CUDA: ", error);
#else
  NK_CHECK(false, op, ": this build has no CUDA kernels: nvcc was not found when it was built");
#endif
}

inline Epilogue make_epilogue(const BoundNoise& noise, const Tensor& clean, Tensor& out, DType type, bool relu) {
  Epilogue e;
  e.x = clean.data_ptr();
  e.y = out.mutable_data_ptr();
  e.dtype = type;
  e.n = noise.rows_in == 0 ? 0 : clean.numel() / noise.rows_in;
  e.shared = noise.shared;
  const bool channels_last = !clean.is_contiguous();
  e.channels =
      channels_last && clean.numel() / std::max<int64_t>(1, clean.size(0) * clean.size(1)) > 1 ? clean.size(1) : 1;
  e.relu = relu;
  e.noise = noise.params;
  return e;
}

// noise(clean), in place where the value is ours and is not repeated for several draws.
inline Tensor finish(const char* op, Tensor clean, bool ours, bool batched, bool relu, const NoiseArgs& args,
                     Operand operand = Operand::kAdd) {
  const DType type = dtype_of(op, "the value", clean);
  const bool channels_last = is_channels_last(clean) && !clean.is_contiguous();
  Ints shape = shape_of(clean);
  const BoundNoise noise(op, args, shape, batched, clean, channels_last);  // refused before it is copied
  clean = dense(op, clean);
  if (batched) shape[0] = noise.rows_out;
  Tensor out = ours && !noise.shared ? clean : empty_as(op, clean, shape, channels_last);
  Epilogue e = make_epilogue(noise, clean, out, type, relu);
  e.noise.operand = operand;
  run(op, out, e);
  return out;
}

}  // namespace noisykernels
