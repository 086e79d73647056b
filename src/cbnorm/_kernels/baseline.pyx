# The kernels for any CPU of the architecture; on x86-64 that is x86-64-v2.
include "module.pxi"
