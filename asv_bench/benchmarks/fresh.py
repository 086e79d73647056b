"""Fresh results, and `out=` beside them, where others take and free large blocks between two calls."""

import numpy as np

import cbnorm

from .common import LAYOUTS, THREADS, skip_without, use_threads

BETWEEN = ("nothing", "a temporary of the same size", "64 MB")


class Arrays:
    """A sample is one call. What happens between is in `setup`, which asv-runner 0.3 runs before every call."""

    params = (("ND 256x1024", "ND 4096x1024", "NHWC 32x14x14x256", "ND 16384x1024"), BETWEEN, THREADS)
    param_names = ("layout", "between", "threads")
    number = 1
    repeat = (10, 200, 2.0)
    layouts = LAYOUTS | {"NHWC 32x14x14x256": ((32, 14, 14, 256), -1), "ND 16384x1024": ((16384, 1024), 1)}

    def setup(self, layout, between, threads):
        if not hasattr(self, "x"):
            skip_without("batchnorm_forward", "batchnorm_backward")
            use_threads(threads)
            shape, self.axis = self.layouts[layout]
            rng = np.random.default_rng(0)
            self.x, self.dout = (rng.standard_normal(shape, "float32") for _ in range(2))
            self.out = np.ones_like(self.x)
            self.gamma, self.beta = np.ones((2, shape[self.axis]), "float32")
            self.cache = cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis)[1]
            self.other = self.x if between == BETWEEN[1] else np.ones(16 << 20, "float32")
        if between != "nothing":
            self.other * 2


class ForwardTrain(Arrays):
    def time_fresh_forward_train(self, layout, between, threads):
        cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis)


class ForwardTrainOut(Arrays):
    def time_fresh_forward_train_out(self, layout, between, threads):
        cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis, out=self.out)


class Backward(Arrays):
    def time_fresh_backward(self, layout, between, threads):
        cbnorm.batchnorm_backward(self.dout, self.cache)


class BackwardOut(Arrays):
    def time_fresh_backward_out(self, layout, between, threads):
        cbnorm.batchnorm_backward(self.dout, self.cache, out=self.out)
