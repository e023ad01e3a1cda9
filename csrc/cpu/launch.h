// The CPU entry points, for the glue to torch: levels of instruction sets, and whole kernels on threads. No torch here.
#pragma once

#include "../serial.h"

namespace noisykernels::cpu {

// Whether rows of n values are drawn several at a time. Alone, a row is drawn in steps of 16 blocks of four: wasteful
// where it has few blocks and not a multiple of 16.
NK_HD bool short_rows(int64_t n) {
  const int64_t blocks = (n + 3) / 4;
  return blocks < 64 && blocks % 16 != 0;
}

// Kernels of one instruction-set level. Ranges count elements of the output in memory order (whole rows where rows are
// short or channels_last); the result does not depend on how the whole is cut into ranges.
struct Kernels {
  const char* name;
  void (*epilogue)(const Epilogue&, int64_t begin, int64_t end);
  void (*pool)(const PoolEpilogue&, int64_t begin_plane, int64_t end_plane);
  void (*expand_levels)(const Epilogue&, int64_t begin, int64_t end);  // the eps given, not drawn: float32 only
  void (*expand_levels_pool)(const PoolEpilogue&, int64_t begin_plane, int64_t end_plane);
  float (*square_row)(const float* x, int64_t n, float* y);
  void (*deviations)(const Deviations&, float* v);
  void (*serial)(const Serial&, int64_t begin, int64_t end);                   // blocks of outputs
  void (*serial_gradient)(const SerialGradient&, int64_t begin, int64_t end);  // groups of kStepsTogether steps
  void (*quantize)(const Quantize&, int64_t begin, int64_t end);               // values
  void (*row_scale)(const RowScale&, int64_t begin, int64_t end);              // rows
};
extern const Kernels kPortable;
extern const Kernels kAvx2;
extern const Kernels kAvx512;

// Levels of this build that this machine can run, best first; the one in use; and forcing one by name ("auto": the
// best, or the one that the environment variable NOISYKERNELS_CPU_LEVEL names). Returns false for a level that is not
// there.
int available_levels(const Kernels* const** list);
const Kernels* current_level();  // null if the environment names a level that is not there
bool set_level(const char* name);

// The whole of an epilogue on at most `threads` threads; serial inside another parallel region or in a forked child.
void run(const Kernels&, const Epilogue&, int threads);
void run(const Kernels&, const PoolEpilogue&, int threads);
void run(const Kernels&, const Serial&, int threads);
void run(const Kernels&, const SerialGradient&, int threads);
void run(const Kernels&, const Quantize&, int threads);
void run(const Kernels&, const RowScale&, int threads);

// f(begin, end) over [0, total) cut at multiples of grain, one contiguous part for each thread.
void parallel(int64_t total, int64_t grain, int threads, void (*f)(void*, int64_t, int64_t), void* context);
bool in_forked_child();
int torch_threads();  // that torch's own operators would use

// A function of the torch in this process, found at run time; null if there is none of the name.
void* symbol_of_torch(const char* name);
template <class Function>
Function find_in_torch(const char* name) {
  return reinterpret_cast<Function>(symbol_of_torch(name));
}

}  // namespace noisykernels::cpu
