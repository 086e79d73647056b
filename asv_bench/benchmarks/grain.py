"""From how many numbers on two threads pay: what `grain` in the kernels' module.pxi stands on."""

import numpy as np

import cbnorm

from .common import skip_without, use_threads

NUMBERS = (8192, 16384, 32768, 65536, 131072, 262144)


class Grain:
    """Train forward of (N, 128) float32, with as many threads as are asked for, however few the numbers are."""

    params = (NUMBERS, (1, 2))
    param_names = ("numbers", "threads")
    repeat = (5, 20, 1.0)  # fewest and most samples, seconds

    def setup(self, numbers, threads):
        skip_without("batchnorm_forward")
        use_threads(threads)
        kernels = getattr(getattr(cbnorm, "_kernels", None), "active", None)
        if not hasattr(kernels, "set_grain"):
            raise NotImplementedError("not in this commit: set_grain")
        if hasattr(self, "x"):  # since asv-runner 0.3 setup runs before each single call
            return
        kernels.set_grain(1)
        if hasattr(kernels, "set_judging"):
            kernels.set_judging(False)  # else calls go alone where threads do not pay, which is to be seen
        self.x = np.random.default_rng(0).standard_normal((numbers // 128, 128), "float32")
        self.out = np.ones_like(self.x)
        self.number = max(1, 2**22 // numbers)  # calls a sample; asv-runner 0.3 would make it 1
        self.time_forward_train(numbers, threads)

    def time_forward_train(self, numbers, threads):
        cbnorm.batchnorm_forward(self.x, out=self.out)
