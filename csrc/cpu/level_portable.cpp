// The portable CPU level: scalar lanes, any architecture.
#include "kernels.inl"

namespace noisykernels::cpu {
namespace {

struct Portable {
  using Key = uint32_t;
  static constexpr int kStep = 1, kSteps = 1, kLanes = 1, kSquare = 1;

  template <int>
  static void words_in_row(const RoundKeys<Key>& keys, const RowConstants<Key>& constants, uint32_t block,
                           uint32_t* w) {
    philox_in_row(keys, constants, block, w);
  }
  static void words_listed(const RoundKeys<Key>& keys, const RowConstants<Key>& constants, const uint32_t* block,
                           uint32_t* w) {
    philox_in_row(keys, constants, *block, w);
  }
  static void words(const RoundKeys<Key>& keys, const uint32_t* block, const uint32_t* row, const uint32_t* draw,
                    uint32_t word3, uint32_t* w) {
    w[0] = *block, w[1] = *row, w[2] = *draw, w[3] = word3;
    philox(keys, w);
  }
  template <class Kind>
  static void sample(const uint32_t* w, float* z) {
    Kind::sample(w[0], w[1], z[0], z[1]);
    Kind::sample(w[2], w[3], z[2], z[3]);
  }
  static void copy(float* to, const float* from, int n) { std::copy_n(from, n, to); }
  static void transpose(const float* z, const int* first, float* to, int64_t) { *to = z[*first]; }

  template <class C>
  struct Lanes {
    using V = C;
    static constexpr int kWidth = 1;
    template <class T>
    static V load(const T* p) {
      return widen_value(*p);
    }
    static V load_eps(const float* p) { return *p; }
    template <class T>
    static void store(T* p, V v) {
      *p = narrow_value<T>(v);
    }
    static V splat(C v) { return v; }
    static V pair_max(V a, V b) { return max_or_nan(a, b); }
    template <class T>
    static C widen(T v) {
      return widen_value(v);
    }
    template <class T>
    static T narrow(C v) {
      return narrow_value<T>(v);
    }
  };
};

}  // namespace

constinit const Kernels kPortable = kernels_of<Portable>("portable");

}  // namespace noisykernels::cpu
