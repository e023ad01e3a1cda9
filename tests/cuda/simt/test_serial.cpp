// Roundings to formats, serial sums and their gradients on CUDA against the CPU kernels: bit for bit, but for the
// gradients, whose order of summation is not defined. On the host's emulated device in three orders of its threads, or,
// compiled with the CUDA toolkit, on a GPU.
#include "../../native/serial_cases.h"
#include "on_device.h"

using namespace noisykernels;
using namespace noisykernels::test;

namespace {

template <class T>
void compare(const std::vector<T>& got, const std::vector<T>& want, const char* how, const std::string& what) {
  for (size_t k = 0; k < want.size(); ++k) {
    if (same(got[k], want[k])) continue;
    CHECK(false, "%s: %s: value %zu is %.17g, not %.17g", how, what.c_str(), k, static_cast<double>(widen(got[k])),
          static_cast<double>(widen(want[k])));
    return;
  }
}

// Ids, seed and level on the device, where a case does not give them by value.
struct DeviceNumbers {
  OnDevice<int64_t> draws, rows, seed;
  OnDevice<double> one;
  template <class Case>
  DeviceNumbers(const Case& c, const std::vector<double>& level)
      : draws(c.draws), rows(c.rows), seed(c.seed), one(level) {}
  void place(NoiseParams& p) const {
    p.draws = draws.data_or_null(), p.rows = rows.data_or_null(), p.seed = seed.data_or_null();
    p.add.one = one.data_or_null();
  }
};

template <class C>
std::vector<C> on_cpu(const SumCase<C>& c) {
  std::vector<C> y = blank<C>(c.total());
  Serial s = c.s;
  s.y = y.data();
  cpu::run(*levels().front(), s, kMostOpenMpThreads);
  return y;
}
template <class T>
std::vector<T> on_cpu(const QuantizeCase<T>& c) {
  std::vector<T> y = blank<T>(c.total());
  Quantize q = c.q;
  q.y = y.data();
  cpu::run(*levels().front(), q, kMostOpenMpThreads);
  return y;
}

template <class C>
void check_case(Random& r, const SumCase<C>& c) {
  const std::vector<C> want = on_cpu(c);
  const size_t shift = static_cast<size_t>(r.below(2));
  in_every_order(1, [&](const char* how) {
    const OnDevice<C> a(c.a, shift), b(c.b, shift), y(blank<C>(c.total()), shift);
    const OnDevice<int32_t> order(c.order);
    const DeviceNumbers numbers(c, c.one);
    Serial s = c.s;
    s.a = a.data(), s.b = b.data(), s.y = y.data(), s.order = order.data_or_null();
    numbers.place(s.noise);
    run_to_the_end(s, how);
    compare(y.copy(), want, how, text(c.s));
  });
}

template <class T>
void check_case(Random& r, const QuantizeCase<T>& c) {
  const std::vector<T> want = on_cpu(c);
  const size_t shift = static_cast<size_t>(r.below(2));
  in_every_order(1, [&](const char* how) {
    const OnDevice<T> x(c.x, shift), y(blank<T>(c.total()), shift);
    const DeviceNumbers numbers(c, {});
    Quantize q = c.q;
    q.x = x.data(), q.y = y.data();
    numbers.place(q.noise);
    run_to_the_end(q, how);
    compare(y.copy(), want, how, text(c.q.format));
  });
}

template <class C>
void check_case(const GradientCase<C>& c) {
  const auto close = [](const char* how, const std::vector<C>& got, const std::vector<double>& want,
                        const std::vector<double>& bound) {
    for (size_t k = 0; k < want.size(); ++k) {
      CHECK(std::fabs(static_cast<double>(got[k]) - want[k]) <= bound[k], "%s: %zu is %.9g, not %.9g", how, k,
            static_cast<double>(got[k]), want[k]);
    }
  };
  in_every_order(1, [&](const char* how) {
    const OnDevice<C> grad(c.grad), last(c.last), a(c.a), b(c.b), a_grad(blank<C>(c.a.size())),
        b_grad(blank<C>(c.b.size()));
    const OnDevice<int32_t> position(c.position);
    SerialGradient g = c.g;
    g.grad = grad.data(), g.last = last.data(), g.a = a.data(), g.b = b.data(), g.position = position.data();
    g.a_grad = a_grad.data(), g.b_grad = b_grad.data();
    run_to_the_end(g, how);
    close(how, a_grad.copy(), c.a_want, c.a_bound);
    close(how, b_grad.copy(), c.b_want, c.b_bound);
  });
}

void check_sums(Random& r, const std::vector<SumChoice>& list) {
  for (const SumChoice& choice : list) {
    with_type(choice, [&]<class C>() { check_case(r, SumCase<C>(r, choice)); });
  }
}

}  // namespace

TEST(cuda_serial_plain) {
  Random r{41};
  for (int round = 0; round < (g_full ? 20 : 2); ++round) check_sums(r, plain_sums(r));
}

// All pairs of factors, but of the formats only some, which are others every time.
TEST(cuda_serial_sums) {
  Random r{42};
  for (int round = 0; round < (g_full ? 2 : 1); ++round) {
    SumChoice counts = kSumChoices;
    if (!g_full) counts[SumFactor::kProduct] = counts[SumFactor::kSum] = 6;
    std::vector<SumChoice> list = pairwise(r, counts);
    for (SumChoice& c : list) {
      for (const int factor : {SumFactor::kProduct, SumFactor::kSum}) {
        if (!g_full && c[factor] > 0) c[factor] = 1 + static_cast<int>(r.below(kSumChoices[factor] - 1));
      }
    }
    check_sums(r, list);
  }
}

TEST(cuda_quantize) {
  Random r{43};
  for_each_type([&]<class T>() {
    for (int round = 0; round < (g_full ? 20 : 1); ++round) {
      for (const Format& f : formats<typename TypeOf<T>::Compute>()) {
        const int64_t n = r.one_in(2) ? 1 + r.below(9) : 200 + r.below(9);
        check_case(r, QuantizeCase<T>(r, f, n, r.one_in(3)));
      }
    }
  });
}

TEST(cuda_serial_gradients) {
  Random r{44};
  for (int round = 0; round < (g_full ? 20 : 1); ++round) {
    for (const auto [T, I, J, K] :
         {std::array<int64_t, 4>{1, 1, 1, 1}, {2, 17, 3, 4}, {1, 20, 33, 21}, {3, 2, 70, 5}}) {
      check_case(GradientCase<float>(r, T, I, J, K));
      check_case(GradientCase<double>(r, T, I, J, K));
    }
  }
}

TEST(cuda_serial_empty) {
  for (const auto [T, I, J, K] : {std::array<int64_t, 4>{0, 3, 3, 3}, {3, 0, 3, 3}, {3, 3, 0, 3}}) {
    Serial s;
    s.T = s.Ta = s.Tb = T, s.I = I, s.J = J, s.K = K;
    SerialGradient g;
    g.T = T, g.I = I, g.J = J;
    Quantize q;
    q.noise.D = T, q.noise.B = I, q.n = J;
    CHECK(cuda::run(s, nullptr) == nullptr && cuda::run(g, nullptr) == nullptr && cuda::run(q, nullptr) == nullptr);
  }
}

#if !defined(NK_SIMT)

namespace {

// A case of other sizes, one matrix by one; values of random size.
template <class C>
void resize(Random& r, SumCase<C>& c, int64_t I, int64_t J, int64_t K) {
  c.s.T = c.s.Ta = c.s.Tb = 1, c.s.I = I, c.s.J = J, c.s.K = K, c.s.n = I * J, c.s.order_of_each = false;
  c.s.a_i = K, c.s.a_k = 1, c.s.b_k = J, c.s.b_j = 1, c.s.noise.B = 1, c.s.noise.first_row = 3,
  c.s.noise.first_draw = 1;
  c.a.resize(I * K), c.b.resize(J * K), c.order.clear(), c.draws.clear(), c.rows.clear();
  for (std::vector<C>* v : {&c.a, &c.b}) {
    for (C& x : *v) x = (static_cast<C>(r.uniform()) - C(0.5)) * (r.one_in(9) ? 8 : 1);
  }
  c.point();
}

}  // namespace

TEST(gpu_serial_large) {
  Random r{45};
  for (const SumChoice& choice : plain_sums(r)) {
    with_type(choice, [&]<class C>() {
      SumCase<C> c(r, choice);
      resize(r, c, 300, 520, 700);
      check_case(r, c);
    });
  }
}

// More outputs and values than a grid has threads.
TEST(gpu_serial_strided) {
  Random r{46};
  SumChoice choice = {};
  choice[SumFactor::kNoise] = 1;
  SumCase<float> c(r, choice);
  resize(r, c, 4200, 4099, 2);
  check_case(r, c);
  const GradientCase<float> g(r, 1, 1000000, 2, 20);
  check_case(g);
  QuantizeCase<BFloat16> q(r, float_format(3, 4, kStochastic, true, false), 35000000, false);
  q.q.noise.D = 1, q.q.noise.B = 2, q.x.resize(70000000);
  q.rows.clear(), q.draws.clear(), q.q.noise.first_draw = 1, q.point();
  check_case(r, q);
}

// A captured launch reads seed and level when it is replayed.
TEST(gpu_serial_graph) {
  Random r{47};
  SumChoice choice = {};
  choice[SumFactor::kShape] = 9, choice[SumFactor::kNoise] = 1;
  SumCase<float> c(r, choice);
  c.s.sum = float_format(4, 5, kStochastic, true, false);
  c.seed = {1}, c.one = {0.25}, c.point();
  const OnDevice<float> a(c.a), b(c.b), y(blank<float>(c.total()));
  const DeviceNumbers numbers(c, c.one);
  Serial s = c.s;
  s.a = a.data(), s.b = b.data(), s.y = y.data();
  numbers.place(s.noise);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamCreate(&stream) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
  CHECK(cuda::run(s, stream) == nullptr);
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess);
  for (c.seed[0] = 1; c.seed[0] < 4; ++c.seed[0]) {
    c.one[0] += 0.25;
    CHECK(cudaMemcpy(numbers.seed.data(), c.seed.data(), sizeof(int64_t), cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaMemcpy(numbers.one.data(), c.one.data(), sizeof(double), cudaMemcpyDefault) == cudaSuccess);
    CHECK(cudaGraphLaunch(exec, stream) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
    compare(y.copy(), on_cpu(c), "replay", text(c.s));
  }
}

#endif
