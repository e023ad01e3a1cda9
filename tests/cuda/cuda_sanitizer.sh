#!/usr/bin/env bash
# The CUDA kernels' tests on a GPU under NVIDIA's compute-sanitizer: out-of-bounds and misaligned accesses, races in shared
# memory, reads of memory never written, barriers.
#   cuda_sanitizer.sh [TOOL ...]       all four, or those named
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v compute-sanitizer > /dev/null || { echo "cuda_sanitizer.sh: compute-sanitizer is not installed" >&2; exit 1; }
program=${PROGRAM:-build/gpu/test_gpu}
if [[ ! -x $program ]]; then
  cmake -S . -B build/gpu > /dev/null
  cmake --build build/gpu --target test_gpu --parallel
fi
tests=(cuda_epilogues cuda_max_pool cuda_max_pool_geometry cuda_expand_levels cuda_product_noise cuda_product_sums
  cuda_serial_plain cuda_serial_sums cuda_quantize)
tools=("$@")
((${#tools[@]})) || tools=(memcheck racecheck synccheck initcheck)
for tool in "${tools[@]}"; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$program" "${tests[@]}"
done
