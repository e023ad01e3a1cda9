// The CUDA entry points, for the glue to torch; also from a file that no CUDA compiler sees. No torch here.
#pragma once

#include "../kernels.h"

using cudaStream_t = struct CUstream_st*;  // as in the CUDA headers

namespace noisykernels::cuda {

// The whole of an epilogue on a stream of the current device, with the bits of the CPU kernels. Every pointer is to
// memory of that device, seed, draws, rows and levels included: nothing is read here, so a CUDA graph can capture the
// call and replay it with other values in the same places. Returns null, or what went wrong.
const char* run(const Epilogue&, cudaStream_t stream);
const char* run(const PoolEpilogue&, cudaStream_t stream);

}  // namespace noisykernels::cuda
