// What the thread sanitizer is told about the fibers of cuda_runtime.h: each CUDA thread is a thread to it, and only
// the barriers order what they do. A missing barrier is then a race, whatever the order that the fibers ran in. Without
// that sanitizer all of this is empty.
#pragma once

#if defined(__SANITIZE_THREAD__)

#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
// A report ends the process: the planted bugs have one each.
[[gnu::used]] inline const char* __tsan_default_options() { return "halt_on_error=1"; }
}

namespace simt::tsan {

inline constexpr bool kOn = true;

// The emulator's own memory: its accesses while this lives are not looked at, in this fiber.
struct Ignored {
  Ignored() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__), AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
  ~Ignored() { AnnotateIgnoreWritesEnd(__FILE__, __LINE__), AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

inline void* current() { return __tsan_get_current_fiber(); }
inline void* create() { return __tsan_create_fiber(0); }
inline void destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync); }
// What a thread did before it released an address is before what another does after it acquired it.
inline void release(const void* at) { __tsan_release(const_cast<void*>(at)); }
inline void acquire(const void* at) { __tsan_acquire(const_cast<void*>(at)); }

}  // namespace simt::tsan

#else

namespace simt::tsan {

inline constexpr bool kOn = false;

struct Ignored {
  Ignored() {}
};
inline void* current() { return nullptr; }
inline void* create() { return nullptr; }
inline void destroy(void*) {}
inline void switch_to(void*) {}
inline void release(const void*) {}
inline void acquire(const void*) {}

}  // namespace simt::tsan

#endif
