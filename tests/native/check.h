// The frame of the native tests: CHECK, TEST(name) { ... }, and what several of them need.
#pragma once

#include <atomic>
#include <span>

#include "cases.h"

namespace noisykernels::test {

inline std::atomic<int> g_failures{0};
inline bool g_full = false;  // all cases, not only the quick ones

// GCC's OpenMP runtime is not instrumented: under its thread sanitizer each barrier would look like a race. There the
// kernels run on plain threads only.
#if defined(__SANITIZE_THREAD__)
inline constexpr int kMostOpenMpThreads = 1;
#else
inline constexpr int kMostOpenMpThreads = 8;
#endif

#define CHECK(condition, ...)                                    \
  do {                                                           \
    if (!(condition) && ++g_failures <= 20) {                    \
      std::printf("%s:%d: %s:", __FILE__, __LINE__, #condition); \
      std::printf(" " __VA_ARGS__);                              \
      std::printf("\n");                                         \
    }                                                            \
  } while (false)

struct Test {
  const char* name;
  void (*run)();
  Test* next;
  static inline Test* first = nullptr;
  Test(const char* n, void (*f)()) : name(n), run(f), next(first) { first = this; }
};
#define TEST(name)                          \
  static void name();                       \
  static const Test g_##name(#name, &name); \
  static void name()

inline std::span<const cpu::Kernels* const> levels() {
  const cpu::Kernels* const* list;
  const int count = cpu::available_levels(&list);
  return {list, static_cast<size_t>(count)};
}

template <class T>
std::vector<T> blank(int64_t n) {  // "never written" cannot look like a right answer
  std::vector<T> v(static_cast<size_t>(n));
  std::memset(v.data(), 0xca, v.size() * sizeof(T));
  return v;
}

}  // namespace noisykernels::test
