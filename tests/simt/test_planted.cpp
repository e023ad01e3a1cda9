// The emulated device itself: it runs right kernels right in every order of its threads, and it notices planted bugs.
#include <cuda_runtime.h>
#include <sys/wait.h>

#include "../native/check.h"
#include "planted.h"

using namespace noisykernels::test;

namespace {

// What the kernels do with a bug: null if all is right.
const char* outcome(Bug bug) {
  constexpr int kN = 150;
  float *x = nullptr, *mirrored = nullptr, *of_warps = nullptr, *copied = nullptr;
  for (float** p : {&x, &mirrored, &of_warps, &copied}) {
    cudaMalloc(reinterpret_cast<void**>(p), (p == &of_warps ? 68 : kN) * sizeof(float));
  }
  for (int i = 0; i < kN; ++i) x[i] = static_cast<float>(i % 7 - 2);
  run_planted(bug, x, kN, mirrored, of_warps, copied);
  if (cudaDeviceSynchronize() != cudaSuccess) return cudaGetErrorString(cudaGetLastError());
  for (int i = 0; i < kN; ++i) {
    const int from = i / 64 * 64 + 63 - i % 64;
    if (mirrored[i] != (from < kN ? x[from] : 0)) return "wrong result of mirror";
    if (copied[i] != x[i]) return "wrong result of copy";
  }
  for (int warp = 0; warp < 2; ++warp) {
    float sum = 0, positive = 0;
    for (int t = 32 * warp; t < 32 * warp + 32; ++t) {
      sum += x[t], positive += x[t] > 0;
      if (of_warps[4 + t] != x[32 * warp + (t + 1) % 32]) return "wrong result of warps";
    }
    if (of_warps[warp] != sum || of_warps[2 + warp] != positive) return "wrong result of warps";
  }
  for (float* p : {x, mirrored, of_warps, copied}) {
    if (cudaFree(p) != cudaSuccess) return cudaGetErrorString(cudaGetLastError());
  }
  return nullptr;
}

// The same in a process of its own, since some bugs end it.
bool noticed(Bug bug) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const char* what = outcome(bug);
    if (what != nullptr) std::printf("    %s\n", what);
    std::fflush(stdout);
    _exit(what == nullptr ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) std::printf("    %s\n", strsignal(WTERMSIG(status)));
  return status != 0;
}

}  // namespace

TEST(cuda_planted_bugs) {
  for (int bug = 0; bug < static_cast<int>(Bug::kCount); ++bug) {
    std::printf("%s\n", kBugNames[bug]);
    bool any = false;
    for (const simt::Order order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kRandom}) {
      simt::options = {order, 1, 1};
      any = noticed(static_cast<Bug>(bug)) || any;
    }
    CHECK(any == (bug != 0), "%s", kBugNames[bug]);
  }
}
