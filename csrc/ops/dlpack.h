// What plain.cpp uses of DLPack (github.com/dmlc/dlpack), whose layout is fixed for a major version: the view of a
// tensor, and the table of functions that a library publishes. Not torch's copy of the header: older ones have no
// table.
#pragma once

#include <cstdint>

namespace noisykernels::dlpack {

inline constexpr const char* kCapsuleName = "dlpack_exchange_api";
inline constexpr uint32_t kMajor = 1;
inline constexpr int32_t kCpu = 1;
inline constexpr uint8_t kInt = 0, kFloat = 2;

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // in values
  uint64_t byte_offset;
};

struct Managed;  // what owns a tensor on its way from one library to another
using SetError = void (*)(void* context, const char* kind, const char* message);

// Of functions that return 0; if not, a Python error is set, or SetError was called.
struct ExchangeTable {
  uint32_t major, minor;
  ExchangeTable* previous;
  int (*allocate)(Tensor* prototype, Managed** out, void* context, SetError);
  void* share;  // not used here
  int (*to_python)(Managed* stolen, void** object);
  int (*view)(void* object, Tensor* out);  // of what the object owns
  void* stream;                            // not used here
};

}  // namespace noisykernels::dlpack
