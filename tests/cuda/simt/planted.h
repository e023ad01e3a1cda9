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
  kRefill,
  kWeakWait,
  kRefillByCopy,
  kSumOfBlocks,  // right as long as blocks run one after another
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
                                            "no barrier of a warp",
                                            "no barrier before a refill",
                                            "too weak a wait for a copy",
                                            "no barrier before a refill by a copy",
                                            "sum of several blocks"};
static_assert(sizeof(kBugNames) / sizeof(kBugNames[0]) == static_cast<int>(Bug::kCount));

// x: n >= 64 values; mirrored: n; of_warps: 132; copied: n; of_blocks: 3, zero; staged: 128.
void run_planted(Bug bug, const float* x, int n, float* mirrored, float* of_warps, float* copied, float* of_blocks,
                 float* staged);

}  // namespace noisykernels::test
