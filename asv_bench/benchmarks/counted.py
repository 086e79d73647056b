"""Weights, missing values, halves and channels last, beside what they are compared with."""

import numpy as np

import cbnorm

from .common import THREADS


class Counted:
    """(N, C) batches: plain, with a mask, and without what is missing."""

    params = (("plain", "mask", "omit"), ((256, 1024), (65536, 64)))
    param_names = ("numbers", "shape")

    def setup(self, numbers, shape):
        cbnorm.set_num_threads(THREADS[0])
        random = np.random.default_rng(0)
        self.x = random.standard_normal(shape, np.float32)
        self.options = {}
        if numbers == "mask":
            self.options = {"weights": random.random(shape[0]) < 0.7}
        elif numbers == "omit":
            self.x[random.random(shape) < 0.1] = np.nan
            self.options = {"nan_policy": "omit"}

    def time_moments(self, numbers, shape):
        cbnorm.moments(self.x, **self.options)


class Storage:
    """Layer and batch normalization of arrays in 4 and 2 bytes."""

    params = (("float32", "float16"), ((64, 768), (4096, 768)))
    param_names = ("dtype", "shape")

    def setup(self, dtype, shape):
        cbnorm.set_num_threads(THREADS[0])
        self.x = np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)
        self.out = np.empty_like(self.x)
        self.cache = cbnorm.layernorm_forward(self.x)[1]

    def time_layernorm_forward(self, dtype, shape):
        cbnorm.layernorm_forward(self.x, out=self.out)

    def time_layernorm_backward(self, dtype, shape):
        cbnorm.layernorm_backward(self.x, self.cache, out=self.out)

    def time_batchnorm_forward(self, dtype, shape):
        cbnorm.batchnorm_forward(self.x, out=self.out)


class ChannelsLast:
    """Group normalization of the same images in both layouts."""

    params = ((1, -1),)
    param_names = ("axis",)

    def setup(self, axis):
        cbnorm.set_num_threads(THREADS[0])
        shape = (8, 256, 28, 28) if axis == 1 else (8, 28, 28, 256)
        self.x = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.out = np.empty_like(self.x)
        self.cache = cbnorm.groupnorm_forward(self.x, num_groups=32, axis=axis)[1]

    def time_groupnorm_forward(self, axis):
        cbnorm.groupnorm_forward(self.x, num_groups=32, axis=axis, out=self.out)

    def time_groupnorm_backward(self, axis):
        cbnorm.groupnorm_backward(self.x, self.cache, out=self.out)
