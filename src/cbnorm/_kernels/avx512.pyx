# The kernels for x86-64-v4: AVX-512.
include "module.pxi"
