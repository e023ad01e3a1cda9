// The bugs of planted.cu and what runs them.
#pragma once

#include <utility>

namespace noisykernels::test {

enum class Bug {
  kNone,
  kNoFirstBarrier,
  kNoSecondBarrier,
  kDivergentBarrier,
  kEarlyReturn,
  kUninitialised,
  kBesideShared,
  kTailRead,
  kTailWritten,
  kMisaligned,
  kLaneEnded,
  kLinesOfWarp,
  kNotInMask,
  kNoWarpBarrier,
  kCount
};
inline constexpr const char* kBugNames[] = {"none",
                                            "no first barrier",
                                            "no second barrier",
                                            "divergent barrier",
                                            "early return",
                                            "uninitialised shared memory",
                                            "write beside a shared array",
                                            "tail read",
                                            "tail written",
                                            "misaligned",
                                            "lane ended",
                                            "two lines of a warp",
                                            "lane not in the mask",
                                            "no barrier of a warp"};
static_assert(sizeof(kBugNames) / sizeof(kBugNames[0]) == static_cast<int>(Bug::kCount));

// x: n >= 64 values; mirrored: n; of_warps: 68; copied: n.
void run_planted(Bug bug, const float* x, int n, float* mirrored, float* of_warps, float* copied);

}  // namespace noisykernels::test
