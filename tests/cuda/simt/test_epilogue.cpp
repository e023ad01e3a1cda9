// The CUDA kernels against the CPU ones, bit for bit: on the host's emulated device in three orders of its threads, or,
// compiled with the CUDA toolkit, on a GPU.
#include "../../../csrc/cuda/divisor.h"
#include "../../../csrc/cuda/launch.h"
#include "../../native/pairwise.h"
#include "on_device.h"

using namespace noisykernels;
using namespace noisykernels::test;

namespace {

// Runs an epilogue or a pooling one, whose output is `size` values, and compares. `output` is its pointer to the
// output.
template <class Work, class T>
void compare(const Work& work, const OnDevice<T>& y, const std::vector<T>& want, const Epilogue& e, const char* how) {
  run_to_the_end(work, how);
  const std::vector<T> got = y.copy();
  for (size_t k = 0; k < want.size(); ++k) {
    // Which of two equal zeros wins a maximum is not part of the contract.
    if (same(got[k], want[k]) || (std::is_same_v<Work, PoolEpilogue> && widen(got[k]) == 0 && widen(want[k]) == 0)) {
      continue;
    }
    CHECK(false,
          "%s: mode %d kind %d dtype %d n %lld channels %lld D %lld B %lld shared %d relu %d bias %lld levels by item "
          "%d %d: value %zu is %.9g, not %.9g",
          how, static_cast<int>(e.noise.mode), e.noise.kind, static_cast<int>(e.dtype), static_cast<long long>(e.n),
          static_cast<long long>(e.channels), static_cast<long long>(e.noise.D), static_cast<long long>(e.noise.B),
          e.shared, e.relu, static_cast<long long>(e.bias_size), static_cast<int>(e.noise.add.item_stride),
          static_cast<int>(e.noise.mul.item_stride), k, static_cast<double>(widen(got[k])),
          static_cast<double>(widen(want[k])));
    return;
  }
}

// -------------------------------------------------------------------------------------------------------------- cases

struct Shape {
  int64_t n, channels;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 1},  {4, 1},  {10, 1},   {64, 1},  {257, 1}, {1024, 1},  {4100, 1},
                             {2, 2}, {12, 3}, {35, 5}, {128, 16}, {99, 33}, {909, 3}, {1300, 325}};
struct Rows {
  int64_t D, B;
  bool shared, listed, bad;
};
constexpr Rows kRows[] = {{1, 1, false, false, false},
                          {1, 7, false, true, false},
                          {3, 2, true, true, false},
                          {2, 5, false, true, true},
                          {2, 40, false, true, false}};
enum class Levels { kOne, kPerDraw, kPerRow, kPerItem, kBad, kCount };
constexpr int64_t kBiasParts[] = {0, -1, 1, 3};  // its size; -1: that of the row
struct Layout {
  size_t shift_x, shift_y;
  bool in_place;
};
constexpr Layout kLayouts[] = {{0, 0, false}, {1, 0, false}, {0, 3, false}, {0, 0, true}, {1, 1, true}};

enum Factor { kMode, kKind, kType, kShape, kLevels, kBias, kRelu, kRow, kLayout, kProcessors, kFactors };
using EpilogueChoice = Choice<kFactors>;
constexpr EpilogueChoice kChoices = {static_cast<int>(Mode::kEps) + 1,
                                     Kinds::kSize,
                                     4,
                                     static_cast<int>(std::size(kShapes)),
                                     static_cast<int>(Levels::kCount),
                                     static_cast<int>(std::size(kBiasParts)),
                                     2,
                                     static_cast<int>(std::size(kRows)),
                                     static_cast<int>(std::size(kLayouts)),
                                     2};

// Every mode, kind, type, shape, levels, bias and ReLU, with the other factors at random.
std::vector<EpilogueChoice> all_choices(Random& r) {
  std::vector<EpilogueChoice> list;
  EpilogueChoice c = {};
  for (int f = 0; f <= kRelu;) {
    const EpilogueChoice rest = random_choice(r, kChoices);
    std::copy(rest.begin() + kRelu + 1, rest.end(), c.begin() + kRelu + 1);
    list.push_back(c);
    for (f = 0; f <= kRelu && ++c[f] == kChoices[f]; ++f) c[f] = 0;
  }
  return list;
}

template <class C>
Level make_levels(Random& r, Levels kind, const Rows& rows, int64_t n, std::vector<C>& data) {
  if (kind == Levels::kBad) return random_strides<C>(r, rows.D, rows.B, n, true, data);
  Level l;
  l.item_stride = kind == Levels::kPerItem;
  l.row_stride = kind == Levels::kPerRow ? 1 : 0;
  l.draw_stride = kind == Levels::kPerDraw ? 1 : 0;
  data.resize(static_cast<size_t>(kind == Levels::kPerItem   ? n
                                  : kind == Levels::kPerRow  ? rows.B
                                  : kind == Levels::kPerDraw ? rows.D
                                                             : 1));
  for (C& v : data) v = random_level<C>(r, false);
  return l;
}

template <class T>
Case<T> make_case(Random& r, const EpilogueChoice& choice) {
  Case<T> c;
  Epilogue& e = c.e;
  NoiseParams& p = e.noise;
  const Rows rows = kRows[choice[kRow]];
  const bool hostile = choice[kLevels] == static_cast<int>(Levels::kBad);
  e.dtype = TypeOf<T>::kDType, e.n = kShapes[choice[kShape]].n, e.channels = kShapes[choice[kShape]].channels;
  e.shared = rows.shared, e.relu = choice[kRelu] != 0;
  p.D = rows.D, p.B = rows.B, p.mode = static_cast<Mode>(choice[kMode]), p.kind = choice[kKind];
  p.site = static_cast<uint32_t>(r.below(1 << 24)),
  p.operand = static_cast<Operand>(r.below(static_cast<int>(Operand::kCount)));
  c.seed = static_cast<int64_t>(r.bits()), p.first_row = r.below(int64_t{1} << 32);
  c.x.resize(static_cast<size_t>((rows.shared ? 1 : rows.D) * rows.B * e.n));
  c.bias.resize(static_cast<size_t>(kBiasParts[choice[kBias]] < 0 ? e.n : kBiasParts[choice[kBias]]));
  if (rows.D == 1) p.first_draw = random_id(r, rows.bad);
  c.numbers = static_cast<typename Case<T>::Numbers>(r.below(3));
  if (rows.listed) c.draws.resize(static_cast<size_t>(rows.D)), c.rows.resize(static_cast<size_t>(rows.B));
  for (T& v : c.x) v = random_value<T>(r, hostile);
  for (T& v : c.bias) v = random_value<T>(r, false);
  for (int64_t& v : c.draws) v = random_id(r, rows.bad);
  for (int64_t& v : c.rows) v = random_id(r, rows.bad);
  p.add = make_levels(r, static_cast<Levels>(choice[kLevels]), rows, e.n, c.add);
  p.mul = make_levels(r, static_cast<Levels>(choice[kLevels]), rows, e.n, c.mul);
  c.point();
  return c;
}

template <class T>
void check_choice(Random& r, const EpilogueChoice& choice) {
  Case<T> c = make_case<T>(r, choice);
  std::vector<T> want = blank<T>(c.total());
  c.e.y = want.data();
  cpu::run(*levels().front(), c.e, 1);
  const Layout layout = kLayouts[choice[kLayout]];
  const bool in_place = layout.in_place && !c.e.shared && c.e.noise.mode != Mode::kEps;
  in_every_order(1 + 2 * choice[kProcessors], [&](const char* how) {
    DeviceCase<T> d(c, layout.shift_x);
    OnDevice<T> other(blank<T>(c.total()), layout.shift_y);
    OnDevice<T>& y = in_place ? d.x : other;
    d.e.y = y.data();
    compare(d.e, y, want, c.e, how);
  });
}

template <class T>
void check_pool(Random& r, PoolCase<T>& c) {
  std::vector<T> want = blank<T>(c.out_total());
  c.pool.noise.y = want.data();
  cpu::run(*levels().front(), c.pool, 1);
  in_every_order(1 + static_cast<int>(r.below(2)), [&](const char* how) {
    DeviceCase<T> d(c, static_cast<size_t>(r.below(3)));
    OnDevice<T> y(blank<T>(c.out_total()), static_cast<size_t>(r.below(3)));
    PoolEpilogue pool = c.pool;
    pool.noise = d.e, pool.noise.y = y.data();
    compare(pool, y, want, c.e, how);
  });
}

}  // namespace

// -------------------------------------------------------------------------------------------------------------- tests

TEST(cuda_epilogues) {
  Random r{11};
  const std::vector<EpilogueChoice> list = g_full ? all_choices(r) : pairwise(r, kChoices);
  for (const EpilogueChoice& choice : list) {
    int type = 0;
    for_each_type([&]<class T>() {
      if (type++ == choice[kType]) check_choice<T>(r, choice);
    });
  }
  std::printf("%zu cases\n", list.size());
}

TEST(cuda_max_pool) {
  Random r{12};
  for (int round = 0; round < (g_full ? 50 : 1); ++round) {
    for_each_type([&]<class T>() {
      for (int mode = 0; mode <= static_cast<int>(Mode::kEps); ++mode) {
        for (int kind = 0; kind < Kinds::kSize; ++kind) {
          PoolCase<T> c(r, static_cast<Mode>(mode), kind, (kind + round) % 2 == 0);
          check_pool(r, c);
        }
      }
    });
  }
}

// Wide planes, whose lines are cut, and windows larger than what is drawn at a time.
TEST(cuda_max_pool_geometry) {
  Random r{13};
  struct Geometry {
    int64_t planes, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
  };
  for (const Geometry& g : {Geometry{1, 5, 1300, 2, 2, 2, 2, 0, 0}, Geometry{2, 7, 700, 3, 5, 2, 1, 1, 2},
                            Geometry{2, 40, 50, 40, 50, 1, 1, 0, 0}, Geometry{3, 24, 24, 2, 2, 2, 2, 0, 0},
                            Geometry{1, 1, 515, 1, 2, 1, 2, 0, 1}, Geometry{5, 300, 3, 7, 3, 1, 3, 3, 0}}) {
    PoolCase<float> c(r, Mode::kMulAdd, 0);
    PoolEpilogue& p = c.pool;
    p.planes = g.planes, p.height = g.height, p.width = g.width, p.kernel_h = g.kernel_h, p.kernel_w = g.kernel_w;
    p.stride_h = g.stride_h, p.stride_w = g.stride_w, p.pad_h = g.pad_h, p.pad_w = g.pad_w;
    p.out_height = (g.height + 2 * g.pad_h - g.kernel_h) / g.stride_h + 1;
    p.out_width = (g.width + 2 * g.pad_w - g.kernel_w) / g.stride_w + 1;
    static_cast<Case<float>&>(c) = random_case<float>(r, Mode::kMulAdd, 0, g.planes * g.height * g.width, false);
    c.e.channels = 1;
    c.point();
    p.noise = c.e;
    check_pool(r, c);
  }
}

// The eps given: where a study's levels part.
TEST(cuda_expand_levels) {
  Random r{14};
  for (int round = 0; round < (g_full ? 200 : 20); ++round) {
    PoolCase<float> c(r, Mode::kAdd, 0);
    std::vector<float> given(static_cast<size_t>(c.e.n * (r.one_in(2) ? c.e.noise.D * c.e.noise.B : 1)));
    for (float& v : given) v = random_value<float>(r, false);
    c.add.resize(static_cast<size_t>(c.e.noise.D));
    for (float& v : c.add) v = r.uniform() - 0.5f;
    c.x.resize(static_cast<size_t>(c.e.noise.B * c.e.n)), c.bias.clear(), c.draws.clear(), c.rows.clear();
    c.point();
    c.e.shared = true, c.e.noise.add = {c.add.data(), 1, 0, 0};
    c.e.noise.given = given.data(), c.e.noise.given_rows = static_cast<int64_t>(given.size()) / c.e.n;
    c.pool.noise = c.e;
    std::vector<float> want = blank<float>(c.total()), pooled = blank<float>(c.out_total());
    c.e.y = want.data(), c.pool.noise.y = pooled.data();
    cpu::run(*levels().front(), c.e, 1);
    cpu::run(*levels().front(), c.pool, 1);
    in_every_order(1, [&](const char* how) {
      DeviceCase<float> d(c, static_cast<size_t>(r.below(2)));
      OnDevice<float> y(want), y_pooled(pooled), eps(given, static_cast<size_t>(r.below(2)));
      d.e.noise.given = eps.data(), d.e.noise.seed = nullptr;
      PoolEpilogue pool = c.pool;
      pool.noise = d.e, d.e.y = y.data(), pool.noise.y = y_pooled.data();
      compare(d.e, y, want, c.e, how);
      compare(pool, y_pooled, pooled, c.e, how);
    });
  }
}

TEST(cuda_empty) {
  Epilogue e;
  for (auto [d, b, n] : {std::array<int64_t, 3>{0, 3, 3}, {3, 0, 3}, {3, 3, 0}}) {
    e.noise.D = d, e.noise.B = b, e.n = n;
    PoolEpilogue pool;
    pool.noise = e;
    CHECK(cuda::run(e, nullptr) == nullptr && cuda::run(pool, nullptr) == nullptr);
  }
}

TEST(cuda_divisor) {
  Random r{15};
  const auto number = [&] {  // of every size, and the ends of the ranges
    const int64_t power = int64_t{1} << r.below(63);
    return r.one_in(3) ? power - r.below(2) : r.one_in(20) ? INT64_MAX - r.below(2) : power + r.below(power);
  };
  for (int i = 0; i < 1000000; ++i) {
    const int64_t d = std::max<int64_t>(1, number()), a = r.one_in(2) ? number() : number() / d * d - r.below(2);
    if (a < 0) continue;
    const auto [quotient, remainder] = cuda::Divisor(d)(a);
    CHECK(quotient == a / d && remainder == a % d, "%lld / %lld", static_cast<long long>(a), static_cast<long long>(d));
  }
}

#if !defined(NK_SIMT)

// A captured launch reads seed and levels when it is replayed.
TEST(gpu_graph) {
  Random r{16};
  auto c = random_case<float>(r, Mode::kMulAdd, 0, 5000, false);
  std::vector<float> want = blank<float>(c.total());
  DeviceCase<float> d(c, 0);
  OnDevice<float> y(want);
  d.e.y = y.data();
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamCreate(&stream) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cuda::run(d.e, stream) == nullptr);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  for (c.seed = 1; c.seed < 4; ++c.seed) {
    for (float& v : c.add) v += 0.25f;
    CHECK(cudaMemcpy(d.seed.data(), &c.seed, sizeof c.seed, cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaMemcpy(d.add.data(), c.add.data(), sizeof(float) * c.add.size(), cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
    c.e.y = want.data();
    cpu::run(*levels().front(), c.e, 1);
    const std::vector<float> got = y.copy();
    for (size_t k = 0; k < want.size(); ++k) CHECK(same(got[k], want[k]), "replay %d", static_cast<int>(c.seed));
  }
}

// One row as long as the counter allows, if there is the memory for it.
TEST(gpu_element_beyond_32_bits) {
  const int64_t n = int64_t{1} << 34;
  Float16* y = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&y), n * sizeof(Float16)) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    std::puts("skipped: 34 GB are not free");
    return;
  }
  const std::vector<int64_t> seed = {77};
  OnDevice<int64_t> on_device(seed);
  Epilogue e;
  e.y = y, e.dtype = DType::kFloat16, e.n = n, e.noise.B = 1, e.noise.mode = Mode::kEps;
  e.noise.seed = on_device.data();
  CHECK(cuda::run(e, nullptr) == nullptr && cudaDeviceSynchronize() == cudaSuccess);
  for (int64_t at : {int64_t{0}, (int64_t{1} << 31) - 7, (int64_t{1} << 32) - 500, n - 1001}) {
    std::vector<Float16> part(1001);
    CHECK(cudaMemcpy(part.data(), y + at, part.size() * sizeof(Float16), cudaMemcpyDefault) == cudaSuccess);
    for (int64_t i = 0; i < 1001; ++i) {
      CHECK(same(part[i], narrow<Float16>(eps_at(0, seed[0], 0, Operand::kAdd, 0, 0, at + i))), "element %lld",
            static_cast<long long>(at + i));
    }
  }
  CHECK(cudaFree(y) == cudaSuccess);
}

#endif
