// A CUDA device on the host, for tests on machines without a GPU: stands in for the toolkit's header of this name when
// a .cu file, after host.sed, is compiled as C++.
//
// Every CUDA thread is a fiber. A fiber runs until it ends or waits (for its block's barrier, for lanes of its warp);
// then the next one runs, in an order that the test chooses. A wait ends when exactly those threads that CUDA demands
// have come to the same line; a wait that cannot end, or for a thread that has returned, is reported. Shared memory is
// poisoned for every block and has canaries around it; device memory is poisoned, has canaries and ends at a page that
// must not be touched. Blocks run one after another. Not shown: weak memory ordering, races between blocks, speed.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tsan.h"

#define NK_SIMT  // tells a test that its device is this one

// ------------------------------------------------------------------------------------------------- language and types

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
  unsigned count() const { return x * y * z; }
};
using cudaStream_t = struct CUstream_st*;

namespace simt {

// ------------------------------------------------------------------------------------------------------------ fibers

enum class Order { kForward, kReverse, kRandom };
inline constexpr std::pair<const char*, Order> kOrders[] = {
    {"forward", Order::kForward}, {"reverse", Order::kReverse}, {"random", Order::kRandom}};

struct Options {
  Order order = Order::kForward;  // of threads and of blocks
  uint64_t seed = 0;              // of the random order
  int processors = 1;             // multiprocessors of the device
  bool late_copies = false;       // asynchronous copies are made when they are waited for, not at once
};
inline Options options;

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Thread {
  uint3 index;
  unsigned number;
  State state = State::kReady;
  int line = 0;                              // where it waits
  uint32_t mask = 0;                         // lanes that it waits for
  uint64_t value = 0, lanes[32];             // what it gives to its warp, and what all of them gave
  unsigned barriers = 0, warp_barriers = 0;  // that it has come to
  std::vector<Copy> copies;                  // asynchronous ones that it has not yet made
  std::vector<size_t> groups;                // how many belong to each group that has been ended
  ucontext_t context;
  void* tsan;
};

struct Shared {
  size_t offset, size;
};

// The sanitizers' reports are written on the stack of the thread that they are about.
inline constexpr size_t kStack = tsan::kOn ? 256 << 10 : 64 << 10, kCanary = 64, kMostShared = 48 << 10;
inline constexpr unsigned char kCanaryByte = 0xa5, kPoison = 0xff;  // as numbers, poison is NaN and -1

// The kernel that is running.
struct Launch {
  uint3 block_index;
  dim3 grid, block;
  size_t dynamic_size;
  std::vector<Thread> threads;
  Thread* current = nullptr;
  void (*body)(void*);
  void* kernel;
  ucontext_t scheduler;
  void* tsan;                            // of the scheduler
  std::map<const void*, Shared> shared;  // by declaration; null: the dynamic one
  std::vector<unsigned char> arena;
  std::vector<char> places;  // of barriers, for the thread sanitizer
};
inline Launch* launch = nullptr;
inline std::string error;  // of the last launches; empty: none

template <class... Args>
std::string text(const char* format, Args... args) {
  char buffer[256];
  std::snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

// What happened, in which thread; the first report stands.
inline void report(const Thread* t, const std::string& what) {
  const tsan::Ignored own;
  if (!error.empty()) return;
  const uint3 b = launch->block_index;
  error = text("block (%u,%u,%u)", b.x, b.y, b.z);
  if (t != nullptr) error += text(", thread (%u,%u,%u)", t->index.x, t->index.y, t->index.z);
  error.append(": ").append(what);
}

inline void wait(State state, int line) {
  Thread& t = *launch->current;
  void* scheduler = nullptr;
  {
    const tsan::Ignored own;
    t.state = state, t.line = line;
    scheduler = launch->tsan;
  }
  if (state == State::kDone) tsan::release(launch);
  tsan::switch_to(scheduler);
  swapcontext(&t.context, &launch->scheduler);
}

// Waits, and what the threads of `group` did before is then before what they do after. A thread may come to the next
// barrier before another leaves this one, so neighbours in time have places of their own.
template <class Wait>
void ordered_by(unsigned group, unsigned& number, Wait&& wait_for_them) {
  const char* place = nullptr;
  {
    const tsan::Ignored own;
    place = &launch->places[2 * group + number++ % 2];
  }
  tsan::release(place);
  wait_for_them();
  tsan::acquire(place);
}

inline void barrier(int line) {
  ordered_by(0, launch->current->barriers, [&] { wait(State::kBarrier, line); });
}

[[noreturn]] inline void fail(const std::string& what) {
  report(launch->current, what);
  for (;;) wait(State::kBarrier, 0);  // never resumed
}

inline void fiber() {
  launch->body(launch->kernel);
  if (!launch->current->copies.empty()) fail("asynchronous copies that nothing has waited for");
  wait(State::kDone, 0);
}

// Lets go the lanes of warps all of whose partners have come. Returns whether there were any.
inline bool open_warps() {
  bool any = false;
  std::vector<Thread>& threads = launch->threads;
  for (Thread& t : threads) {
    if (t.state != State::kWarp) continue;
    const unsigned warp = t.number / 32 * 32;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(t.mask >> lane & 1) || warp + lane >= threads.size()) continue;
      const Thread& other = threads[warp + lane];
      if (other.state == State::kDone) report(&t, text("line %d: a lane of the mask has ended", t.line));
      all = all && other.state == State::kWarp && other.mask == t.mask && other.line == t.line;
    }
    if (!all) continue;
    any = true;
    const Thread waiting = t;
    for (unsigned lane = 0; lane < 32 && warp + lane < threads.size(); ++lane) {
      if (!(waiting.mask >> lane & 1)) continue;
      Thread& other = threads[warp + lane];
      for (unsigned k = 0; k < 32 && warp + k < threads.size(); ++k) other.lanes[k] = threads[warp + k].value;
      other.state = State::kReady;
    }
  }
  return any;
}

// Lets go the block if all of it waits at one barrier; otherwise nothing can go on, which is reported.
inline void open_barrier() {
  std::map<std::string, unsigned> places;
  for (const Thread& t : launch->threads) {
    ++places[t.state == State::kDone ? "the end"
                                     : text(t.state == State::kWarp ? "warp, line %d" : "barrier, line %d", t.line)];
  }
  if (places.size() == 1 && launch->threads[0].state == State::kBarrier) {
    for (Thread& t : launch->threads) t.state = State::kReady;
    return;
  }
  std::string list = "threads wait for each other:";
  for (const auto& [place, count] : places) list += text(" %u at %s;", count, place.c_str());
  report(nullptr, list);
}

// Memory of a __shared__ declaration, laid out when the block first reaches it.
inline void* shared_memory(const void* declaration, size_t size) {
  const tsan::Ignored own;
  const auto [it, fresh] = launch->shared.try_emplace(declaration, Shared{});
  if (fresh) {
    size_t used = 0;
    for (const auto& [key, s] : launch->shared) used = std::max(used, s.offset + s.size + kCanary);
    it->second = {(used + kCanary + 63) / 64 * 64, size};
    if (it->second.offset + size + kCanary > launch->arena.size()) fail("more shared memory than a block has");
    std::memset(launch->arena.data() + it->second.offset, kPoison, size);
  }
  return launch->arena.data() + it->second.offset;
}
template <class T, int Line>
T& shared() {
  static const char declaration = 0;
  return *static_cast<T*>(shared_memory(&declaration, sizeof(T)));
}
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(shared_memory(nullptr, launch->dynamic_size));
}

inline void check_canaries() {
  std::vector<unsigned char>& arena = launch->arena;
  for (const auto& [key, s] : launch->shared) std::memset(arena.data() + s.offset, kCanaryByte, s.size);
  for (const unsigned char byte : arena) {
    if (byte != kCanaryByte) return report(nullptr, "a write beside a shared array");
  }
}

inline uint64_t random(uint64_t& state) {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

inline std::vector<unsigned> ordered(unsigned count, uint64_t& state) {
  std::vector<unsigned> v(count);
  std::iota(v.begin(), v.end(), 0u);
  if (options.order == Order::kReverse) std::reverse(v.begin(), v.end());
  if (options.order == Order::kRandom) {
    for (unsigned i = count; i > 1; --i) std::swap(v[i - 1], v[random(state) % i]);
  }
  return v;
}

// Not inlined: as far as the compiler knows, getcontext returns twice.
[[gnu::noinline]] inline void prepare(ucontext_t& context, char* stack) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = kStack;
  makecontext(&context, &fiber, 0);
}

inline void run_block(uint64_t& state) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  const dim3 size = launch->block;
  // All in new memory, which to the thread sanitizer has no past: this block is not ordered after the last.
  if (tsan::kOn) stacks.clear();
  launch->threads = std::vector<Thread>(size.count());
  launch->shared.clear();
  launch->arena = std::vector<unsigned char>(kMostShared + 4 * kCanary + launch->dynamic_size, kCanaryByte);
  launch->places = std::vector<char>(2 * (1 + size.count() / 32 + 1));
  for (unsigned i = 0; i < size.count(); ++i) {
    if (stacks.size() <= i) stacks.emplace_back(new char[kStack]);
    Thread& t = launch->threads[i];
    t.number = i, t.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    prepare(t.context, stacks[i].get());
    t.tsan = tsan::create();
  }
  for (bool done = false; !done && error.empty();) {
    for (const unsigned i : ordered(size.count(), state)) {
      Thread& t = launch->threads[i];
      if (t.state != State::kReady) continue;
      launch->current = &t;
      tsan::switch_to(t.tsan);
      swapcontext(&launch->scheduler, &t.context);
      if (!error.empty()) return;
    }
    done = std::all_of(launch->threads.begin(), launch->threads.end(),
                       [](const Thread& t) { return t.state == State::kDone; });
    if (!done && !open_warps()) open_barrier();
  }
  for (const Thread& t : launch->threads) tsan::destroy(t.tsan);
  check_canaries();
}

inline void run(Launch& running) {
  {
    const tsan::Ignored own;
    launch = &running;
    running.tsan = tsan::current();
    uint64_t state = options.seed;
    const unsigned blocks = running.grid.count(), threads = running.block.count();
    if (threads == 0 || threads > 1024 || blocks == 0) report(nullptr, "invalid grid or block");
    for (const unsigned i : ordered(error.empty() ? blocks : 0, state)) {
      const dim3 grid = running.grid;
      running.block_index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
      run_block(state);
      if (!error.empty()) break;
    }
    launch = nullptr;
  }
  tsan::acquire(&running);
}

// --------------------------------------------------------------------------------------------------------- recording

inline std::map<void*, std::pair<size_t, size_t>> allocated;  // device memory: bytes asked for, bytes mapped
extern "C" const char __executable_start;                     // of the linker

// A launch as tests/cuda/simt/ptx.py reads it: 64-bit numbers, and bytes after their count. Kept if the environment
// names a file in NOISYKERNELS_RECORD; of the orders, which give the same, the forward one.
struct Record {
  const char* file = options.order == Order::kForward ? std::getenv("NOISYKERNELS_RECORD") : nullptr;
  std::string data;

  void number(int64_t n) { data.append(reinterpret_cast<const char*>(&n), sizeof n); }
  void bytes(const void* p, size_t size) {
    number(static_cast<int64_t>(size));
    data.append(static_cast<const char*>(p), size);
  }
  void memory() {
    if (file == nullptr) return;
    number(static_cast<int64_t>(allocated.size()));
    for (const auto& [p, sizes] : allocated) {
      number(reinterpret_cast<intptr_t>(p));
      bytes(p, sizes.first);
    }
  }
  template <class... Params>
  void call(void (*kernel)(Params...), dim3 grid, dim3 block, size_t dynamic_size, const std::tuple<Params...>& args) {
    if (file == nullptr) return;
    number(reinterpret_cast<intptr_t>(kernel) - reinterpret_cast<intptr_t>(&__executable_start));
    for (const unsigned n : {grid.x, grid.y, grid.z, block.x, block.y, block.z}) number(n);
    number(static_cast<int64_t>(dynamic_size));
    number(sizeof...(Params));
    std::apply([&](const Params&... arg) { (bytes(&arg, sizeof arg), ...); }, args);
  }
  void save() const {
    if (file == nullptr || !error.empty()) return;
    std::FILE* out = std::fopen(file, "ab");
    if (out == nullptr || std::fwrite(data.data(), 1, data.size(), out) != data.size() || std::fclose(out) != 0) {
      error = text("%s could not be written", file);
    }
  }
};

// kernel<<<grid, block, dynamic shared memory, stream>>>(arguments...) after host.sed.
template <class... Params, class... Args>
void start(dim3 grid, dim3 block, size_t dynamic_size, cudaStream_t, void (*kernel)(Params...), const Args&... args) {
  if (!error.empty()) return;
  const std::tuple<Params...> params(args...);
  auto call = [&] { std::apply(kernel, params); };
  Record record;
  record.call(kernel, grid, block, dynamic_size, params);
  record.memory();
  Launch running{};
  running.grid = grid, running.block = block, running.dynamic_size = dynamic_size;
  running.body = [](void* c) { (*static_cast<decltype(call)*>(c))(); }, running.kernel = &call;
  run(running);
  record.memory();
  record.save();
}

// ------------------------------------------------------------------------------------------------- warp collectives

// Gives a value to the lanes of the mask and returns those of all.
template <class T>
const uint64_t* exchange(uint32_t mask, T value, int line) {
  static_assert(sizeof(T) <= 8);
  Thread& t = *launch->current;
  if (!(mask >> t.number % 32 & 1)) fail(text("line %d: the calling lane is not in the mask", line));
  {
    const tsan::Ignored own;
    t.mask = mask, t.value = 0;
    std::memcpy(&t.value, &value, sizeof value);
  }
  wait(State::kWarp, line);
  return t.lanes;
}

template <class T>
T shuffle(uint32_t mask, T value, unsigned from, bool inside, int line) {
  const uint64_t* lanes = exchange(mask, value, line);
  if (!inside) return value;
  if (!(mask >> from & 1)) fail(text("line %d: a shuffle reads a lane that is not in the mask", line));
  std::memcpy(&value, lanes + from, sizeof value);
  return value;
}

inline uint32_t ballot(uint32_t mask, bool predicate, int line) {
  const uint64_t* lanes = exchange(mask, predicate, line);
  uint32_t bits = 0;
  for (unsigned k = 0; k < 32; ++k) bits |= static_cast<uint32_t>((mask >> k & 1) != 0 && (lanes[k] & 1) != 0) << k;
  return bits;
}

inline void warp_barrier(int line) {
  Thread& t = *launch->current;
  ordered_by(1 + t.number / 32, t.warp_barriers, [&] { exchange(~0u, 0, line); });
}

inline unsigned lane() { return launch->current->number % 32; }

// ----------------------------------------------------------------------------------------------- asynchronous copies

inline void make_copies(size_t count) {
  std::vector<Copy>& copies = launch->current->copies;
  for (size_t k = 0; k < count; ++k) {
    copies[k].from == nullptr ? std::memset(copies[k].to, 0, copies[k].bytes)
                              : std::memcpy(copies[k].to, copies[k].from, copies[k].bytes);
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(count));
}

// cp.async: a copy of so many bytes, or as many zeros.
inline void copy_async(void* to, const void* from, size_t bytes, bool wanted) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) fail("a misaligned copy");
  Thread& t = *launch->current;
  t.copies.push_back({to, wanted ? from : nullptr, bytes});
  if (!options.late_copies) make_copies(t.copies.size());
}
inline void commit_copies() {
  Thread& t = *launch->current;
  t.groups.push_back(t.copies.size() - std::accumulate(t.groups.begin(), t.groups.end(), size_t{0}));
}
// All groups but the last `open` ones.
inline void wait_for_copies(size_t open) {
  Thread& t = *launch->current;
  for (; t.groups.size() > open; t.groups.erase(t.groups.begin())) {
    if (options.late_copies) make_copies(t.groups.front());
  }
}

}  // namespace simt

#define threadIdx (::simt::launch->current->index)
#define blockIdx (::simt::launch->block_index)
#define blockDim (::simt::launch->block)
#define gridDim (::simt::launch->grid)
#define __syncthreads() ::simt::barrier(__LINE__)
#define __syncwarp() ::simt::warp_barrier(__LINE__)
#define __ballot_sync(mask, predicate) ::simt::ballot(mask, predicate, __LINE__)
#define __any_sync(mask, predicate) (::simt::ballot(mask, predicate, __LINE__) != 0)
#define __all_sync(mask, predicate) (::simt::ballot(mask, !(predicate), __LINE__) == 0)
#define __shfl_sync(mask, value, from) ::simt::shuffle(mask, value, (from) % 32, true, __LINE__)
#define __shfl_xor_sync(mask, value, bits) ::simt::shuffle(mask, value, ::simt::lane() ^ (bits), true, __LINE__)
#define __shfl_up_sync(mask, value, by) \
  ::simt::shuffle(mask, value, ::simt::lane() - (by), ::simt::lane() >= (by), __LINE__)
#define __shfl_down_sync(mask, value, by) \
  ::simt::shuffle(mask, value, ::simt::lane() + (by), ::simt::lane() + (by) < 32, __LINE__)

// --------------------------------------------------------------------------------------------------------- run time

enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : ::simt::error.c_str();
}
inline cudaError_t cudaPeekAtLastError() { return ::simt::error.empty() ? cudaSuccess : cudaErrorLaunchFailure; }
// Unlike CUDA's, it leaves the text in place for cudaGetErrorString, and the device as broken as it is.
inline cudaError_t cudaGetLastError() { return cudaPeekAtLastError(); }
inline cudaError_t cudaDeviceSynchronize() { return cudaPeekAtLastError(); }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
struct cudaFuncAttributes {
  int ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* of_kernel, Kernel*) {
  return of_kernel->ptxVersion = 80, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = simt::options.processors, cudaSuccess;
}

// The memory ends, up to its alignment of 16, where a page begins that must not be touched.
namespace simt {
inline unsigned char* mapping(void* p, size_t bytes, size_t mapped) {
  return static_cast<unsigned char*>(p) + (bytes + 15) / 16 * 16 - (mapped - static_cast<size_t>(getpagesize()));
}
}  // namespace simt

inline cudaError_t cudaMalloc(void** p, size_t bytes) {
  const auto page = static_cast<size_t>(getpagesize());
  const size_t usable = (bytes + simt::kCanary + 15 + page) / page * page, mapped = usable + page;
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(static_cast<char*>(base) + usable, page, PROT_NONE) != 0) {
    return cudaErrorLaunchFailure;
  }
  std::memset(base, simt::kCanaryByte, usable);
  *p = static_cast<char*>(base) + usable - (bytes + 15) / 16 * 16;
  std::memset(*p, simt::kPoison, bytes);
  simt::allocated[*p] = {bytes, mapped};
  return cudaSuccess;
}

inline cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  const auto [bytes, mapped] = simt::allocated.at(p);
  unsigned char* base = simt::mapping(p, bytes, mapped);
  std::memset(p, simt::kCanaryByte, bytes);
  for (size_t i = 0; i < mapped - static_cast<size_t>(getpagesize()); ++i) {
    if (base[i] != simt::kCanaryByte && simt::error.empty()) simt::error = "a write beside device memory";
  }
  munmap(base, mapped);
  simt::allocated.erase(p);
  return cudaPeekAtLastError();
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes != 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
