// The emulated device itself: it runs right kernels right in every order of its threads, and it notices planted bugs.
#include <cuda_runtime.h>
#include <sys/wait.h>

#include <utility>

#include "../../native/check.h"
#include "planted.h"

using namespace noisykernels::test;

namespace {

// What the kernels do with a bug: null if all is right.
const char* outcome(Bug bug) {
  constexpr int kN = 150;
  float *x = nullptr, *mirrored = nullptr, *of_warps = nullptr, *copied = nullptr, *of_blocks = nullptr,
        *staged = nullptr;
  for (const auto& [p, size] :
       {std::pair{&x, kN}, {&mirrored, kN}, {&of_warps, 132}, {&copied, kN}, {&of_blocks, 3}, {&staged, 128}}) {
    cudaMalloc(reinterpret_cast<void**>(p), static_cast<size_t>(size) * sizeof(float));
  }
  for (int i = 0; i < kN; ++i) x[i] = static_cast<float>(i % 7 - 2);
  std::fill_n(of_blocks, 3, 0.0f);
  run_planted(bug, x, kN, mirrored, of_warps, copied, of_blocks, staged);
  if (cudaDeviceSynchronize() != cudaSuccess) return cudaGetErrorString(cudaGetLastError());
  for (int i = 0; i < kN; ++i) {
    const int from = i / 64 * 64 + 63 - i % 64;
    if (mirrored[i] != (from < kN ? x[from] : 0)) return "wrong result of mirror";
    if (copied[i] != x[i]) return "wrong result of copy";
  }
  for (int warp = 0; warp < 2; ++warp) {
    float sum = 0, positive = 0;
    for (int t = 32 * warp; t < 32 * warp + 32; ++t) {
      const float next = x[32 * warp + (t + 1) % 32];
      sum += x[t], positive += x[t] > 0;
      if (of_warps[4 + t] != next || of_warps[68 + t] != 2 * next) return "wrong result of warps";
    }
    if (of_warps[warp] != sum || of_warps[2 + warp] != positive) return "wrong result of warps";
  }
  if (of_blocks[0] != x[0] || of_blocks[1] != x[1] || of_blocks[2] != x[0] + x[1]) return "wrong result of blocks";
  for (int i = 0; i < 128; ++i) {
    if (staged[i] != x[i / 32 * 32 + 31 - i % 32]) return "wrong result of stages";
  }
  for (float* p : {x, mirrored, of_warps, copied, of_blocks, staged}) {
    if (cudaFree(p) != cudaSuccess) return cudaGetErrorString(cudaGetLastError());
  }
  return nullptr;
}

// The same in a process of its own, since some bugs end it. Prints the bug, the order and what was noticed; returns the
// process's exit status: 0 if nothing was.
int noticed(Bug bug, const char* order) {
  std::printf("%s\t%s\t", kBugNames[static_cast<int>(bug)], order);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    const char* what = outcome(bug);
    std::printf("%s\n", what == nullptr ? "" : what);
    std::fflush(stdout);
    _exit(what == nullptr ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) std::printf("%s\n", strsignal(WTERMSIG(status)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Two threads without what should order them: the thread sanitizer has to notice it in every order.
bool is_race(Bug bug) {
  return bug == Bug::kNoFirstBarrier || bug == Bug::kNoSecondBarrier || bug == Bug::kNoWarpBarrier ||
         bug == Bug::kRefill || bug == Bug::kSumOfBlocks;
}
constexpr int kRaceReported = 66;  // the sanitizer's exit status

}  // namespace

TEST(cuda_planted_bugs) {
  for (int i = 0; i < static_cast<int>(Bug::kCount); ++i) {
    const auto bug = static_cast<Bug>(i);
    bool any = false;
    for (const auto& [name, order] : simt::kOrders) {
      for (const bool late : {false, true}) {
        simt::options = {order, 1, 1, late};
        const int status = noticed(bug, (std::string(name) + (late ? ", late copies" : "")).c_str());
        any = any || status != 0;
        CHECK(!simt::tsan::kOn || !is_race(bug) || status == kRaceReported, "%s, %s", kBugNames[i], name);
      }
    }
    CHECK(any == (bug != Bug::kNone && (bug != Bug::kSumOfBlocks || simt::tsan::kOn)), "%s", kBugNames[i]);
  }
}
