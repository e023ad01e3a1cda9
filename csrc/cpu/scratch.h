// Scratch memory of the CPU kernels. Here as in all headers that the CPU levels share, every function is always
// inlined: a shared out-of-line copy could be the one compiled for a wider instruction set than the machine has.
#pragma once

#include <new>

#include "../noise.h"

namespace noisykernels::cpu {

// Uninitialised memory, aligned for vectors.
class Scratch {
 public:
  NK_HD explicit Scratch(int64_t bytes) : memory_(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})) {}
  NK_HD ~Scratch() { ::operator delete(memory_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  template <class T>
  NK_HD T* as() const {
    return static_cast<T*>(memory_);
  }

 private:
  void* memory_;
};

}  // namespace noisykernels::cpu
