"""What the benchmarks share: their parameters, and arrays that are filled once a process."""

import os

import numpy as np

import cbnorm

DTYPES = ("float32", "float64")
LAYOUTS = {  # name: shape, channel axis
    "ND 64x128": ((64, 128), 1),  # tiny: the cost of a call
    "ND 256x1024": ((256, 1024), 1),  # in cache
    "ND 4096x1024": ((4096, 1024), 1),
    "NCHW 32x64x56x56": ((32, 64, 56, 56), 1),
    "NHWC 32x56x56x64": ((32, 56, 56, 64), -1),
}
THREADS = (2, 1)  # the history has two: the page shows first what stands first


class NumPyArrays:
    """The inputs of every benchmark, all pages filled."""

    params = (DTYPES, tuple(LAYOUTS))
    param_names = ("dtype", "layout")
    repeat = (5, 20, 2.0)  # fewest and most samples, seconds

    def setup(self, dtype, layout):
        if hasattr(self, "x"):  # since asv-runner 0.3 setup runs before each single call
            return
        shape, self.axis = LAYOUTS[layout]
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal(shape, dtype)
        self.dout = rng.standard_normal(shape, dtype)
        self.out = np.ones_like(self.x)
        channels = shape[self.axis]
        self.gamma, self.beta = rng.uniform(0.5, 1.5, (2, channels)).astype(dtype)
        self.moving = dict(zip(("moving_mean", "moving_var"), rng.uniform(0.5, 1.5, (2, channels)), strict=True))
        self.reduced = tuple(axis for axis in range(len(shape)) if axis != self.axis % len(shape))
        self.number = max(1, 2**22 // self.x.size)  # calls a sample; asv-runner 0.3 would make it 1
        self.prepare()

    def prepare(self):
        """Keep what the timed call needs; make the first call, which starts OpenMP's threads."""


class Arrays(NumPyArrays):
    """The same for cbnorm, which takes a number of threads."""

    params = (DTYPES, tuple(LAYOUTS), THREADS)
    param_names = ("dtype", "layout", "threads")
    needs = ()  # public names; a commit that has not got them yet skips the benchmark

    def setup(self, dtype, layout, threads):
        skip_without(*self.needs)
        use_threads(threads)
        super().setup(dtype, layout)


def use_threads(threads):
    skip_without("set_num_threads")
    if threads > len(os.sched_getaffinity(0)):
        raise NotImplementedError(f"{threads} threads on fewer CPUs")
    cbnorm.set_num_threads(threads)
    if cbnorm.get_num_threads() != threads:
        raise RuntimeError("cbnorm runs one thread in a forked process: pass --launch-method spawn")


def skip_without(*names):
    missing = [name for name in names if not hasattr(cbnorm, name)]
    if missing:
        raise NotImplementedError(f"not in this commit: {', '.join(missing)}")
