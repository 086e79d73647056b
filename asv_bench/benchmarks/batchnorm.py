"""Time of batch normalization, and of the same in plain NumPy."""

import cbnorm

from . import twin
from .common import LAYOUTS, THREADS, Arrays, NumPyArrays


class BatchNorm(Arrays):
    needs = ("batchnorm_forward", "batchnorm_backward")

    def prepare(self):
        self.cache = cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis)[1]


class ForwardTrain(BatchNorm):
    def time_forward_train(self, dtype, layout, threads):
        cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis)


class ForwardTest(BatchNorm):
    def time_forward_test(self, dtype, layout, threads):
        cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, **self.moving, mode="test", axis=self.axis)


class Backward(BatchNorm):
    def time_backward(self, dtype, layout, threads):
        cbnorm.batchnorm_backward(self.dout, self.cache)


class BatchNormOut(BatchNorm):
    """With `out=` no page is new: the kernels alone are timed. One dtype is enough."""

    params = (("float32",), tuple(LAYOUTS), THREADS)


class ForwardTrainOut(BatchNormOut):
    def time_forward_train_out(self, dtype, layout, threads):
        cbnorm.batchnorm_forward(self.x, self.gamma, self.beta, axis=self.axis, out=self.out)


class ForwardTestOut(BatchNormOut):
    def time_forward_test_out(self, dtype, layout, threads):
        cbnorm.batchnorm_forward(
            self.x, self.gamma, self.beta, **self.moving, mode="test", axis=self.axis, out=self.out
        )


class BackwardOut(BatchNormOut):
    def time_backward_out(self, dtype, layout, threads):
        cbnorm.batchnorm_backward(self.dout, self.cache, out=self.out)


class NumPyBatchNorm(NumPyArrays):
    def prepare(self):
        self.cache = twin.forward_train(self.x, self.gamma, self.beta, self.axis, self.reduced)[1]


class NumPyForwardTrain(NumPyBatchNorm):
    def time_numpy_forward_train(self, dtype, layout):
        twin.forward_train(self.x, self.gamma, self.beta, self.axis, self.reduced)


class NumPyForwardTest(NumPyBatchNorm):
    def time_numpy_forward_test(self, dtype, layout):
        twin.forward_test(self.x, self.gamma, self.beta, **self.moving, axis=self.axis)


class NumPyBackward(NumPyBatchNorm):
    def time_numpy_backward(self, dtype, layout):
        twin.backward(self.dout, self.cache, self.axis, self.reduced)
