# Turns the CUDA syntax that C++ does not have into calls of tests/cuda/simt/cuda_runtime.h, line by line: launches of
# kernels and __shared__ declarations. Everything else of a .cu file is compiled as it is.
s/([A-Za-z_]+(<[^<>;]*>)?)<<<([^;]*)>>>\(/::simt::start(\3, \1, /g
s/extern __shared__ ([A-Za-z_0-9]+) ([a-z_]+)\[\];/auto* const \2 = ::simt::dynamic_shared<\1>();/
s/__shared__ ([A-Za-z_0-9]+) ([a-z_]+)\[([^;]*)\];/auto\& \2 = ::simt::shared<\1[\3], __LINE__>();/
