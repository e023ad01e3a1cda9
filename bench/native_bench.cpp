// Time of the noise epilogue per value, one thread, cache-resident, without torch or Python around it.
//   native_bench [FILTER ...]         rows whose name holds every FILTER, for instance "avx2 gaussian mul_add"
//   native_bench --once [FILTER ...]  one call each and no clock, for valgrind --tool=callgrind
// A machine's clock and its other tenants move: each figure is the 10th percentile of many windows of some 50 us.
// Cycles are counted in additions that wait for each other (one cycle each on every processor of the last decades),
// timed around each window, and so do not depend on the frequency. "per normal" divides by the eps drawn: two for each
// value in the modes that draw both operands.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../csrc/cpu/launch.h"

using namespace noisykernels;

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// Duration of a cycle: a chain of dependent additions.
double cycle() {
  constexpr int kSteps = 20000, kUnroll = 10;
  uint64_t a = 1, b = 3;
  const auto from = Clock::now();
  for (int i = 0; i < kSteps / kUnroll; ++i) {
#define NK_ADD                         \
  asm volatile("" : "+r"(a), "+r"(b)); \
  a += b;
    NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD NK_ADD
#undef NK_ADD
  }
  asm volatile("" : : "r"(a));
  return seconds(from, Clock::now()) / kSteps;
}

double tenth_percentile(std::vector<double>& v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 10), v.end());
  return v[v.size() / 10];
}

struct Setting {
  Mode mode;
  int kind;
  DType dtype;
  int64_t n, channels;
  bool relu_and_bias;
};

constexpr const char* kModes[] = {"add", "mul", "mul_add", "add_mul", "fold", "eps"};
constexpr const char* kDTypes[] = {"float32", "float64", "bfloat16", "float16"};

// The full table would be a product of everything; each list varies one thing against the first row.
std::vector<Setting> settings() {
  std::vector<Setting> all;
  const Setting first{Mode::kAdd, 0, DType::kFloat32, 3072, 1, false};
  const auto with = [&](auto change) { change(all.emplace_back(first)); };
  for (Mode m : {Mode::kAdd, Mode::kMul, Mode::kMulAdd, Mode::kAddMul, Mode::kFold, Mode::kEps})
    with([&](Setting& s) { s.mode = m; });
  for (int kind = 1; kind < Kinds::kSize; ++kind) with([&](Setting& s) { s.kind = kind; });
  for (DType t : {DType::kFloat64, DType::kBFloat16, DType::kFloat16}) with([&](Setting& s) { s.dtype = t; });
  for (int64_t n : {1, 10, 64, 84, 100, 120, 128, 256, 400, 1000, 4096}) with([&](Setting& s) { s.n = n; });
  for (int64_t c : {3, 16, 64, 512}) with([&](Setting& s) { s.channels = c, s.n = c * 16 * 16; });
  for (Mode m : {Mode::kAdd, Mode::kMulAdd}) with([&](Setting& s) { s.mode = m, s.relu_and_bias = true; });
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const bool once = argc > 1 && std::strcmp(argv[1], "--once") == 0;
  const cpu::Kernels* const* list;
  const int levels = cpu::available_levels(&list);
  std::printf("%-58s %10s %12s %12s\n", "level mode kind dtype row", "ns/value", "cycles/value", "cycles/normal");
  for (int l = 0; l < levels; ++l) {
    for (const Setting& s : settings()) {
      std::string name = std::string(list[l]->name) + " " + kModes[static_cast<int>(s.mode)] + " " +
                         Kinds::kNames[s.kind] + " " + kDTypes[static_cast<int>(s.dtype)] + " " + std::to_string(s.n);
      if (s.channels > 1) name += " channels_last " + std::to_string(s.channels);
      if (s.relu_and_bias) name += " bias relu";
      bool wanted = true;
      for (int i = once ? 2 : 1; i < argc; ++i) wanted &= name.find(argv[i]) != std::string::npos;
      if (!wanted) continue;

      // About 8192 values: 32 to 64 KB read and written in place.
      const int64_t rows = std::max<int64_t>(1, 8192 / s.n), total = rows * s.n, seed = 1;
      std::vector<double> data(static_cast<size_t>(total)),
          bias(static_cast<size_t>(s.n));  // room for every type; zeros
      const float level = 0.1f;
      const double level64 = 0.1;
      Epilogue e;
      e.x = e.y = data.data(), e.dtype = s.dtype, e.n = s.n, e.channels = s.channels;
      if (s.relu_and_bias) e.bias = bias.data(), e.bias_size = s.n, e.relu = true;
      e.noise.seed = &seed, e.noise.B = rows, e.noise.kind = s.kind, e.noise.mode = s.mode;
      e.noise.add.data = e.noise.mul.data = s.dtype == DType::kFloat64 ? static_cast<const void*>(&level64) : &level;

      if (once) {
        list[l]->epilogue(e, 0, total);
        std::printf("%s: %lld values\n", name.c_str(), static_cast<long long>(total));
        continue;
      }
      const auto from = Clock::now();
      list[l]->epilogue(e, 0, total);
      const int calls = std::max(1, static_cast<int>(50e-6 / seconds(from, Clock::now())));
      std::vector<double> times, cycles;
      for (int window = 0; window < 300; ++window) {
        const double before = cycle();
        const auto begin = Clock::now();
        for (int i = 0; i < calls; ++i) list[l]->epilogue(e, 0, total);
        const double time = seconds(begin, Clock::now()) / (static_cast<double>(calls) * static_cast<double>(total));
        times.push_back(time);
        cycles.push_back(time / std::min(before, cycle()));
      }
      const double per_value = tenth_percentile(cycles);
      std::printf("%-58s %10.3f %12.2f %12.2f\n", name.c_str(), tenth_percentile(times) * 1e9, per_value,
                  per_value / (draws_add(s.mode) + draws_mul(s.mode)));
    }
  }
}
