"""The peer `jax` of `cbnorm bench`: the formulas compiled by XLA, which fuses their loops."""

import os
from functools import partial

import numpy as np

from cbnorm._cli.bench.peers.numpy import NumPy
from cbnorm._cli.bench.peers.peer import Calls


class Jax(NumPy):
    """JAX on the CPU. Its arrays cannot be written to, so that it has no out=."""

    name = pool = "jax"
    note = "the formulas under jax.jit"

    def __init__(self, num_threads):
        super().__init__(num_threads)
        # XLA reads the size of its pool when the first array is made, and never again.
        before = os.environ.get("PJRT_NPROC")
        os.environ["PJRT_NPROC"] = str(num_threads)
        import jax

        self.jax = jax
        try:
            self.device = jax.devices("cpu")[0]
        finally:
            if before is None:
                del os.environ["PJRT_NPROC"]
            else:
                os.environ["PJRT_NPROC"] = before
        self._x64 = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)

    def close(self):
        """Give back the width of its floats."""
        self.jax.config.update("jax_enable_x64", self._x64)

    def _bind(self, formula, *arrays, **settings):
        arrays = self.jax.device_put(arrays, self.device)
        compiled = self.jax.jit(partial(formula, **settings)).lower(*arrays).compile()
        return Calls(lambda: self.jax.block_until_ready(compiled(*arrays)), None, partial(map, np.asarray))
