"""Peak memory of the whole process. What a call takes is its figure less that of its inputs alone."""

import numpy as np

import cbnorm

from . import twin
from .common import LAYOUTS, skip_without


class Arrays:
    params = ("ND 4096x1024", "NCHW 32x64x56x56", "NHWC 32x56x56x64")  # 16, 26, 26 MB
    param_names = ("layout",)

    def setup(self, layout):
        skip_without("batchnorm_forward", "batchnorm_backward")
        shape, self.axis = LAYOUTS[layout]
        self.x = np.random.default_rng(0).standard_normal(shape, "float32")
        self.gamma, self.beta = np.ones((2, shape[self.axis]), "float32")
        self.reduced = tuple(axis for axis in range(len(shape)) if axis != self.axis % len(shape))


class ForwardInputs(Arrays):
    def peakmem_forward_inputs(self, layout):
        """Only what `setup` made."""


class Forward(Arrays):
    def peakmem_forward(self, layout):
        self.results = cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis)


class NumPyForward(Arrays):
    def peakmem_numpy_forward(self, layout):
        self.results = twin.forward_train(self.x, self.gamma, self.beta, self.axis, self.reduced)


class BackwardArrays(Arrays):
    def setup(self, layout):
        super().setup(layout)
        self.dout = np.empty_like(self.x)  # y first: a forward result of its own would be in the peak
        self.cache = cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis, out=self.dout)[1]


class BackwardInputs(BackwardArrays):
    def peakmem_backward_inputs(self, layout):
        """Only what `setup` made."""


class Backward(BackwardArrays):
    def peakmem_backward(self, layout):
        self.results = cbnorm.batchnorm_backward(self.dout, self.cache)


class NumPyBackward(BackwardArrays):
    def peakmem_numpy_backward(self, layout):
        cache = self.x, self.gamma, np.float32(1)  # x, standard normal, stands for xhat
        self.results = twin.backward(self.dout, cache, self.axis, self.reduced)
