"""The time of a call with a fresh result, as a multiple of the same call with `out=`: a table in docs/performance.md.

    CBNORM_POOL_BYTES=0 python examples/fresh_results.py; python examples/fresh_results.py

Between two calls comes nothing, PyTorch's batch normalization (where installed), or a NumPy temporary: both free large
blocks. Without the pool, and with it.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cbnorm

SHAPES = {"256x1024": 1, "4096x1024": 1, "32x14x14x256": -1, "16384x1024": 1}  # the channel axis of each


def between(x: NDArray[np.float32], axis: int) -> dict[str, Callable[[], object]]:
    """What comes between two calls, by name."""
    calls: dict[str, Callable[[], object]] = {"alone": lambda: None, "NumPy": lambda: x * 2}
    try:
        from torch import from_numpy
        from torch.nn.functional import batch_norm
    except ModuleNotFoundError:
        return calls
    tensor = from_numpy(np.moveaxis(x, axis, 1))
    return calls | {"PyTorch": lambda: batch_norm(tensor, None, None, training=True)}


def main() -> None:
    """Print the ratio of the mean times."""
    for text, axis in SHAPES.items():
        shape = tuple(map(int, text.split("x")))
        x, dout = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
        out = np.ones_like(x)
        cache = cbnorm.batchnorm_forward(x, axis=axis)[1]
        calls: dict[str, Callable[..., Any]] = {
            "train": partial(cbnorm.batchnorm_forward, x, axis=axis),
            "backward": partial(cbnorm.batchnorm_backward, dout, cache),
        }
        for name, call in calls.items():
            ratios = {}
            for other, meanwhile in between(x, axis).items():
                seconds = [0.0, 0.0]
                for turn in range(3 + max(12, min(150, 40_000_000 // x.size))):
                    for index, target in enumerate((None, out)):
                        meanwhile()
                        start = time.perf_counter()
                        result = call(out=target)
                        if turn >= 3:
                            seconds[index] += time.perf_counter() - start
                        del result
                ratios[other] = seconds[0] / seconds[1]
            print(f"{text:14} {name:9}", *(f"{other} {ratio:.2f}" for other, ratio in ratios.items()), flush=True)


if __name__ == "__main__":
    main()
