// The CUDA entry points, for the glue to torch; also from a file that no CUDA compiler sees. No torch here.
#pragma once

#include "../serial.h"

using cudaStream_t = struct CUstream_st*;  // as in the CUDA headers

namespace noisykernels::cuda {

// The whole of an epilogue on a stream of the current device, with the bits of the CPU kernels. Every pointer is to
// memory of that device, seed, draws, rows and levels included: nothing is read here, so a CUDA graph can capture the
// call and replay it with other values in the same places. Returns null, or what went wrong.
const char* run(const Epilogue&, cudaStream_t stream);
const char* run(const PoolEpilogue&, cudaStream_t stream);
const char* run(const Serial&, cudaStream_t stream);
const char* run(const SerialGradient&, cudaStream_t stream);
const char* run(const Quantize&, cudaStream_t stream);

// y = relu?(noise(a w^T + bias)) in one kernel. The sums are rounded to the data's type before the noise, as a
// library's are.
struct Gemm {
  Epilogue epilogue;           // y, n (a multiple of N), type, relu and noise; x and its bias are not used
  const void* a = nullptr;     // [M, K]
  const void* w = nullptr;     // [N, K]
  const void* bias = nullptr;  // [N], or null
  int64_t M = 0, N = 0, K = 0;
  bool tf32 = false;  // float32 data on the tensor cores; otherwise exactly
};
const char* run(const Gemm&, cudaStream_t stream);

// Who multiplies in `linear`: torch's library, and an epilogue after it, or that kernel. docs/guides/cuda.md has
// measurements.
enum class Multiplier { kLibrary, kFused, kFusedTf32 };
inline constexpr const char* kMultiplierNames[] = {"library", "fused", "fused_tf32"};
inline Multiplier multiplier = Multiplier::kLibrary;

// Whether that kernel takes these shapes, types and addresses, and whether what was built of it runs on the current
// device.
bool fits(const Gemm&);
bool is_built_for_device();

}  // namespace noisykernels::cuda
