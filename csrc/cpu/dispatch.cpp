// Chooses the CPU level and cuts the work between threads.
#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "launch.h"

namespace noisykernels::cpu {
namespace {

std::atomic<const Kernels*> g_level{nullptr};
bool g_forked_child = false;  // written in the child before any of its threads exist

const auto g_torch_get_num_threads = find_in_torch<int (*)(uint32_t*)>("torch_get_num_threads");
const auto g_mkl_set_num_threads = find_in_torch<int (*)(int)>("MKL_Set_Num_Threads_Local");

void become_serial() {
  g_forked_child = true;
  omp_set_num_threads(1);
  if (g_mkl_set_num_threads != nullptr) g_mkl_set_num_threads(1);
}

// The pool of worker threads does not survive a fork: a parallel region in the child would wait for it forever. One
// thread for the child's OpenMP makes the libraries (and torch) that share the runtime serial there as well. MKL is
// told by itself, since torch.set_num_threads fixes its number apart. Torch applies that call to a thread only when it
// is first asked for the number: it is asked before the fork, so that the child does not set the parent's number again.
[[maybe_unused]] const int g_runtime = omp_get_max_threads();  // the runtime registers its own handlers first
[[maybe_unused]] const int g_registered = pthread_atfork([] { torch_threads(); }, nullptr, &become_serial);

}  // namespace

#if defined(__x86_64__)
static bool has_f16c() {  // not every compiler's __builtin_cpu_supports knows it
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

int available_levels(const Kernels* const** list) {
  static const Kernels* levels[3];
  static const int count = [] {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      levels[n++] = &kAvx512;
    }
    if (avx2) levels[n++] = &kAvx2;
#endif
    levels[n++] = &kPortable;
    return n;
  }();
  *list = levels;
  return count;
}

bool set_level(const char* name) {
  const Kernels* const* list;
  const int count = available_levels(&list);
  if (std::strcmp(name, "auto") == 0) {
    const char* wanted = std::getenv("NOISYKERNELS_CPU_LEVEL");
    if (wanted == nullptr || *wanted == 0 || std::strcmp(wanted, "auto") == 0) {
      g_level = list[0];
      return true;
    }
    name = wanted;
  }
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(list[i]->name, name) == 0) {
      g_level = list[i];
      return true;
    }
  }
  return false;
}

const Kernels* current_level() {
  if (g_level == nullptr) set_level("auto");
  return g_level;
}

bool in_forked_child() { return g_forked_child; }

void* symbol_of_torch(const char* name) {
  for (const char* library : {"libtorch_cpu.so", "libtorch_cuda.so"}) {
    void* handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    void* symbol = handle == nullptr ? nullptr : dlsym(handle, name);
    if (symbol != nullptr) return symbol;
  }
  return nullptr;
}

int torch_threads() {
  uint32_t number = 1;
  if (g_torch_get_num_threads != nullptr) g_torch_get_num_threads(&number);
  return static_cast<int>(number);
}

void parallel(int64_t total, int64_t grain, int threads, void (*f)(void*, int64_t, int64_t), void* context) {
  const int64_t grains = (total + grain - 1) / grain;
  const int parts = static_cast<int>(std::min<int64_t>(threads, grains));
  if (parts <= 1 || g_forked_child || omp_in_parallel()) return f(context, 0, total);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int p = 0; p < parts; ++p) {
    f(context, std::min(total, grains * p / parts * grain), std::min(total, grains * (p + 1) / parts * grain));
  }
}

void run(const Kernels& kernels, const Epilogue& e, int threads) {
  constexpr int64_t kWorthAThread = 8192;  // values: some 10 us of noise, against a few us for waking a thread
  const int64_t total = e.noise.D * e.noise.B * e.n;
  if (total == 0) return;
  const bool whole_rows = e.channels > 1 || short_rows(e.n);
  struct Context {
    const Kernels* kernels;
    const Epilogue* e;
  } context{&kernels, &e};
  parallel(
      total, whole_rows ? e.n : std::min<int64_t>(e.n, 4096),
      static_cast<int>(std::min<int64_t>(threads, total / kWorthAThread + 1)),
      [](void* c, int64_t begin, int64_t end) {
        const auto* k = static_cast<Context*>(c);
        if (begin >= end) return;
        (k->e->noise.given != nullptr ? k->kernels->expand_levels : k->kernels->epilogue)(*k->e, begin, end);
      },
      &context);
}

void run(const Kernels& kernels, const PoolEpilogue& e, int threads) {
  const int64_t total = e.noise.noise.D * e.noise.noise.B * e.planes;
  if (total == 0 || e.out_height * e.out_width == 0) return;
  struct Context {
    const Kernels* kernels;
    const PoolEpilogue* e;
  } context{&kernels, &e};
  parallel(
      total, short_rows(e.noise.n) ? e.planes : 1, threads,
      [](void* c, int64_t begin, int64_t end) {
        const auto* k = static_cast<Context*>(c);
        if (begin >= end) return;
        (k->e->noise.noise.given != nullptr ? k->kernels->expand_levels_pool : k->kernels->pool)(*k->e, begin, end);
      },
      &context);
}

namespace {

// kernel(what, begin, end) over [0, total) on the threads that so many multiply-adds are worth.
template <class What>
void on_threads(const What& what, void (*kernel)(const What&, int64_t, int64_t), int64_t total, int64_t grain,
                int64_t work, int threads) {
  constexpr int64_t kWorthAThread = int64_t{1} << 15;
  struct Context {
    const What* what;
    void (*kernel)(const What&, int64_t, int64_t);
  } context{&what, kernel};
  parallel(
      total, grain, static_cast<int>(std::min<int64_t>(threads, work / kWorthAThread + 1)),
      [](void* c, int64_t begin, int64_t end) {
        const auto* k = static_cast<Context*>(c);
        if (begin < end) k->kernel(*k->what, begin, end);
      },
      &context);
}

}  // namespace

void run(const Kernels& kernels, const Serial& given, int threads) {
  if (given.T * given.I * given.J == 0) return;
  Serial s = given;
  const auto blocks = [&] { return s.T * ((s.I + s.block_i - 1) / s.block_i) * ((s.J + s.block_j - 1) / s.block_j); };
  constexpr int64_t kOperands = int64_t{1} << 18;  // of a block's rows: a megabyte
  s.block_i = std::min<int64_t>({s.block_i, s.I, std::max<int64_t>(4, kOperands / std::max<int64_t>(1, s.K))});
  while (blocks() < 2 * threads && (s.block_i > 16 || s.block_j > 32)) {
    (s.block_i > 16 ? s.block_i : s.block_j) /= 2;
  }
  on_threads(s, kernels.serial, blocks(), 1, s.T * s.I * s.J * s.K, threads);
}

void run(const Kernels& kernels, const SerialGradient& g, int threads) {
  on_threads(g, kernels.serial_gradient, g.T * ((g.K + kStepsTogether - 1) / kStepsTogether), 1, g.T * g.I * g.J * g.K,
             threads);
}

void run(const Kernels& kernels, const Quantize& q, int threads) {
  const int64_t total = q.noise.D * q.noise.B * q.n;
  on_threads(q, kernels.quantize, total, 4096, 4 * total, threads);
}

void run(const Kernels& kernels, const RowScale& r, int threads) {
  on_threads(r, kernels.row_scale, r.rows, 1, r.rows * r.n, threads);
}

}  // namespace noisykernels::cpu
