// What the tests of the CUDA kernels share: device memory, and running a kernel in every order of its threads.
#pragma once

#include <cuda_runtime.h>

#include "../../../csrc/cuda/launch.h"
#include "../../native/check.h"

namespace noisykernels::test {

// A copy of a vector in device memory, from its element `shift` on, so that it need not be aligned.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& v, size_t shift = 0) : size_(v.size()) {
    CHECK(cudaMalloc(reinterpret_cast<void**>(&memory_), (shift + size_ + 1) * sizeof(T)) == cudaSuccess);
    data_ = memory_ + shift;
    CHECK(cudaMemcpy(data_, v.data(), size_ * sizeof(T), cudaMemcpyDefault) == cudaSuccess);
  }
  ~OnDevice() {
    const cudaError_t error = cudaFree(memory_);
    CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error));
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* data() const { return data_; }
  const T* data_or_null() const { return size_ == 0 ? nullptr : data_; }
  std::vector<T> copy() const {
    std::vector<T> v(size_);
    CHECK(cudaMemcpy(v.data(), data_, size_ * sizeof(T), cudaMemcpyDefault) == cudaSuccess);
    return v;
  }

 private:
  size_t size_;
  T *memory_ = nullptr, *data_ = nullptr;
};

// f(name) in every order of threads, on a small device.
template <class Fn>
void in_every_order(int processors, Fn&& f) {
#if defined(NK_SIMT)
  for (const auto& [name, order] : simt::kOrders) {
    if (simt::tsan::kOn && order != simt::Order::kForward) continue;  // it notices the same in all of them
    simt::options = {order, simt::options.seed + 1, processors, order != simt::Order::kForward};
    f(name);
  }
#else
  static_cast<void>(processors);
  f("GPU");
#endif
}

// The memory of a case on the device, and its epilogue with pointers to there.
template <class T>
struct DeviceCase {
  using C = typename TypeOf<T>::Compute;
  OnDevice<T> x, bias;
  OnDevice<C> add, mul;
  OnDevice<int64_t> draws, rows, seed;
  OnDevice<double> ones;
  Epilogue e;
  DeviceCase(Case<T> c, size_t shift)
      : x(c.x, shift),
        bias(c.bias),
        add(c.add),
        mul(c.mul),
        draws(c.draws),
        rows(c.rows),
        seed({c.seed}),
        ones({c.one[0], c.one[1]}),
        e(c.e) {
    e.x = x.data(), e.bias = bias.data_or_null();
    e.noise.draws = draws.data_or_null(), e.noise.rows = rows.data_or_null();
    c.place(e.noise, seed.data(), ones.data(), add.data(), mul.data());
  }
};

// Runs a kernel's entry point, to its end.
template <class Work>
void run_to_the_end(const Work& work, const char* how) {
  const char* error = cuda::run(work, nullptr);
  if (error == nullptr && cudaDeviceSynchronize() != cudaSuccess) error = cudaGetErrorString(cudaGetLastError());
  CHECK(error == nullptr, "%s: %s", how, error);
}

}  // namespace noisykernels::test
