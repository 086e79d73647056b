# The kernels for x86-64-v3: AVX2.
include "module.pxi"
