// Compile check, no GPU needed: noise.h in device code, the eps of every kind and every formula in float and double.
#include "../../csrc/noise.h"

namespace nk = noisykernels;

template <class Kind>
__global__ void eps_kernel(float* out, uint32_t count, uint64_t seed, uint32_t row, uint32_t draw, uint32_t site) {
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
  if (block >= count) return;
  const uint32_t word3 = nk::counter_word3(site, nk::Operand::kAdd);
  uint32_t words[4];
  nk::philox_in_row(nk::RoundKeys<uint32_t>(seed), nk::RowConstants<uint32_t>(seed, row, draw, word3), block, words);
  float z[4];
  Kind::sample(words[0], words[1], z[0], z[1]);
  Kind::sample(words[2], words[3], z[2], z[3]);
  for (int i = 0; i < 4; ++i) out[4 * block + i] = z[i];
}

template <nk::Mode M, class F>
__global__ void formula_kernel(const F* x, F* y, F a, F m, const F* ea, const F* em) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = nk::apply_noise<M>(x[i], a, m, ea[i], em[i]);
}

template <nk::Mode M>
void formulas() {
  formula_kernel<M, float><<<1, 1>>>(nullptr, nullptr, 0.0f, 0.0f, nullptr, nullptr);
  formula_kernel<M, double><<<1, 1>>>(nullptr, nullptr, 0.0, 0.0, nullptr, nullptr);
}

template <class... Ks>
void kinds(nk::KindList<Ks...>) {
  (eps_kernel<Ks><<<1, 1>>>(nullptr, 0, 0, 0, 0, 0), ...);
}

void instantiate() {
  kinds(nk::Kinds{});
  formulas<nk::Mode::kAdd>();
  formulas<nk::Mode::kMul>();
  formulas<nk::Mode::kMulAdd>();
  formulas<nk::Mode::kAddMul>();
  formulas<nk::Mode::kFold>();
}
