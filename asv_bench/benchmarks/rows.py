"""Time of layer, group, instance and RMS normalization, beside a plain copy of the same array."""

from functools import partial

import numpy as np

import cbnorm

from .common import DTYPES, THREADS, skip_without, use_threads

CASES = {  # name: functions, shape, shape of the parameters, options
    "layer 64x128": ("layernorm", (64, 128), (128,), {}),  # tiny: the cost of a call
    "layer 4096x768": ("layernorm", (4096, 768), (768,), {}),
    "layer 32768x64": ("layernorm", (32768, 64), (64,), {}),
    "rms 4096x768": ("rmsnorm", (4096, 768), (768,), {}),
    "group 16x256x28x28, 32": ("groupnorm", (16, 256, 28, 28), (256,), {"num_groups": 32}),
    "instance 8x64x128x128": ("instancenorm", (8, 64, 128, 128), (64,), {}),
}


class Rows:
    params = (DTYPES, tuple(CASES), THREADS)
    param_names = ("dtype", "case", "threads")
    repeat = (5, 20, 2.0)  # fewest and most samples, seconds

    def setup(self, dtype, case, threads):
        kind, shape, parameter_shape, options = CASES[case]
        skip_without(f"{kind}_forward", f"{kind}_backward")
        use_threads(threads)
        if hasattr(self, "x"):  # since asv-runner 0.3 setup runs before each single call
            return
        rng = np.random.default_rng(0)
        self.x, self.dout = rng.standard_normal((2, *shape), dtype)
        self.out = np.ones_like(self.x)
        parameters = rng.uniform(0.5, 1.5, (1 if kind == "rmsnorm" else 2, *parameter_shape)).astype(dtype)
        self.number = max(1, 2**22 // self.x.size)  # calls a sample; asv-runner 0.3 would make it 1
        self.forward = partial(getattr(cbnorm, f"{kind}_forward"), self.x, *parameters, **options)
        self.backward = partial(getattr(cbnorm, f"{kind}_backward"), self.dout, self.forward()[1])


class Forward(Rows):
    def time_rows_forward(self, dtype, case, threads):
        self.forward()


class ForwardOut(Rows):
    def time_rows_forward_out(self, dtype, case, threads):
        self.forward(out=self.out)


class Backward(Rows):
    def time_rows_backward(self, dtype, case, threads):
        self.backward()


class BackwardOut(Rows):
    def time_rows_backward_out(self, dtype, case, threads):
        self.backward(out=self.out)


class Copy(Rows):
    params = (DTYPES, tuple(CASES), (1,))

    def time_rows_copy(self, dtype, case, threads):
        np.copyto(self.out, self.x)
