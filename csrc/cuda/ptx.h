// The machine's instructions that CUDA C++ has no words for: asynchronous copies, matrix loads and the tensor cores,
// all of them inline PTX of sm_80, each with its equivalent on the emulated device of tests/cuda/simt. (noise.h, which
// must stand alone, and half.h have three more beside their equivalents.)
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "../half.h"

namespace noisykernels::cuda {
namespace {

// Four values of 4 bytes, or eight of 2, of a warp's matrix: which lane holds which is the instruction's own order.
using Fragment = uint32_t[4];

#if defined(NK_SIMT)

inline void copy_async(void* shared, const void* global, bool wanted) { simt::copy_async(shared, global, 16, wanted); }
inline void commit_copies() { simt::commit_copies(); }
template <int Open>
void wait_for_copies() {
  simt::wait_for_copies(Open);
}

// What every lane of the warp gives, by lane; it must live as long as this.
template <class T>
struct OfWarp {
  const uint64_t* lanes;
  explicit OfWarp(const T& mine) : lanes(simt::exchange(~0u, &mine, __LINE__)) {}
  ~OfWarp() { simt::exchange(~0u, 0, __LINE__); }  // all have read
  T operator[](unsigned lane) const {
    const simt::tsan::Ignored own;
    return *reinterpret_cast<const T*>(lanes[lane]);
  }
};

inline void load_matrices(Fragment& to, const void* row) {
  const OfWarp<const void*> rows(row);
  for (unsigned k = 0; k < 4; ++k) {
    to[k] = static_cast<const uint32_t*>(rows[8 * k + simt::lane() / 4])[simt::lane() % 4];
  }
}

struct Operands {
  uint32_t a[4], b[2];
};

// A 16-bit half of a register, or all of it, as a number.
inline float number(BFloat16, uint32_t word, int half) {
  return widen_value(BFloat16{static_cast<uint16_t>(word >> 16 * half)});
}
inline float number(Float16, uint32_t word, int half) {
  return widen_value(Float16{static_cast<uint16_t>(word >> 16 * half)});
}
inline float number(float, uint32_t word, int) { return bits_float(word & 0xffffe000u); }  // what tf32 reads of it

template <class T>
void multiply(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  const OfWarp<Operands> warp(mine);
  const unsigned row = simt::lane() / 4, column = simt::lane() % 4 * 2;
  for (unsigned k = 0; k < 4; ++k) {
    double sum = c[k];
    for (unsigned j = 0; j < 4; ++j) {
      const Operands left = warp[4 * row + j], right = warp[4 * (column + k % 2) + j];
      for (int part = 0; part < 2; ++part) {
        for (int half = 0; half < (sizeof(T) == 2 ? 2 : 1); ++half) {
          sum += static_cast<double>(number(T{}, left.a[k / 2 + 2 * part], half)) *
                 static_cast<double>(number(T{}, right.b[part], half));
        }
      }
    }
    c[k] = static_cast<float>(sum);
  }
}

inline uint32_t round_to_tf32(uint32_t v) {  // to nearest, ties away; infinities and NaN as they are
  return (v & 0x7f800000u) == 0x7f800000u ? v : (v + 0x1000u) & 0xffffe000u;
}

#else

// Built for older processors, and never run: see is_built_for_device().
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define NK_ASM(...) __trap()
#else
#define NK_ASM(...) asm volatile(__VA_ARGS__)
#endif

// 16 bytes, or zeros, to shared memory: there when the group of copies that it belongs to has been waited for.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool wanted) {
  NK_ASM("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
         "l"(global), "r"(wanted ? 16 : 0) : "memory");
}
// Ends a group of copies of this thread.
__device__ __forceinline__ void commit_copies() { NK_ASM("cp.async.commit_group;" :: : "memory"); }
// Waits for all but the last `Open` groups of this thread.
template <int Open>
__device__ __forceinline__ void wait_for_copies() {
  NK_ASM("cp.async.wait_group %0;" ::"n"(Open) : "memory");
}

// Four matrices of 8 rows of 16 bytes; lane k names row k % 8 of matrix k / 8. A lane gets 4 bytes of each: those at
// 4 * (lane % 4) of row lane / 4.
__device__ __forceinline__ void load_matrices(Fragment& to, const void* row) {
  NK_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]),
         "=r"(to[3]) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))) : "memory");
}

#define NK_MMA(shape, types)                                        \
  NK_ASM("mma.sync.aligned." shape ".row.col.f32." types            \
         ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, " \
         "%1, %2, %3};" : "+f"(c[0]),                               \
         "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// c += a b for a of 16 rows and b of 8 columns, over 32 bytes of them; a float counts as its tf32.
template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, BFloat16>) NK_MMA("m16n8k16", "bf16.bf16");
  if constexpr (std::is_same_v<T, Float16>) NK_MMA("m16n8k16", "f16.f16");
  if constexpr (std::is_same_v<T, float>) NK_MMA("m16n8k8", "tf32.tf32");
}

__device__ __forceinline__ uint32_t round_to_tf32(uint32_t v) {
  uint32_t rounded = 0;
  NK_ASM("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(bits_float(v)));
  return rounded;
}

#endif

}  // namespace
}  // namespace noisykernels::cuda
