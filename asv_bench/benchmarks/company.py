"""Means in company: a matmul between the calls, busy processes beside. Alone is what all other benchmarks are.

`cbnorm bench --company` shows the same next to PyTorch and NumPy.
"""

import os
import subprocess
import sys
import time

import numpy as np

import cbnorm

from .common import skip_without

SECONDS = 1.0
SHAPES = ((128, 256), (256, 1024), (4096, 1024))
BUSY = "import os, sys\nparent = int(sys.argv[1])\nwhile os.getppid() == parent: pass"


class Company:
    """With the threads that a user gets who sets nothing, and with one."""

    param_names = ("shape", "threads")
    params = (SHAPES, ("default", 1))
    unit = "seconds"
    timeout = 60

    def setup(self, shape, threads):
        skip_without("batchnorm_forward", "set_num_threads")
        if threads != "default":
            cbnorm.set_num_threads(threads)
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal(shape, "float32")
        self.weights = rng.standard_normal((shape[1], shape[1]), "float32") / shape[1]
        self.out = np.ones_like(self.x)

    def mean(self, call, between):
        """Seconds of a call, over a second; what is between the calls is not counted."""
        made, spent = 0, 0.0
        call()
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            x = between()
            start = time.perf_counter()
            call(x)
            spent += time.perf_counter() - start
            made += 1
        return spent / made

    def forward(self, x=None):
        cbnorm.batchnorm_forward(self.x if x is None else x, out=self.out)


class BetweenMatmuls(Company):
    def track_mean_between_matmuls(self, shape, threads):
        return self.mean(self.forward, lambda: self.x @ self.weights)


class BesideBusyProcesses(Company):
    param_names = ("shape", "threads", "processes")
    params = (*Company.params, (1, 2))

    def setup(self, shape, threads, processes):
        super().setup(shape, threads)
        command = [sys.executable, "-c", BUSY, str(os.getpid())]
        self.processes = [subprocess.Popen(command) for _ in range(processes)]

    def teardown(self, shape, threads, processes):
        for process in self.processes:
            process.kill()
            process.wait()

    def track_mean_beside_busy_processes(self, shape, threads, processes):
        return self.mean(self.forward, lambda: None)
