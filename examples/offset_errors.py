"""The largest error of y in training mode, float32, when the mean is far from 0: the table in README.md.

Every library gets the same (4096, 256) array of std 1 around a mean; the truth is the same formula in
float64. Run as `python examples/offset_errors.py`; PyTorch's columns appear where it is installed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cbnorm


def numpy_formula(x: NDArray[Any]) -> NDArray[Any]:
    """Training mode as one writes it down, in the dtype of x."""
    y: NDArray[Any] = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + x.dtype.type(1e-5))
    return y


def libraries() -> dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]]:
    """Name of each library and its call: x -> y."""
    calls: dict[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
        "NumPy": numpy_formula,
        "cbnorm": lambda x: cbnorm.batchnorm_forward(x)[0],
    }
    try:
        import torch
    except ModuleNotFoundError:
        return calls

    def batch_norm(x: NDArray[np.float32]) -> NDArray[Any]:
        y: NDArray[Any] = torch.nn.functional.batch_norm(torch.from_numpy(x), None, None, training=True).numpy()
        return y

    calls["PyTorch (N, C)"] = batch_norm
    calls["PyTorch NCHW"] = lambda x: (
        batch_norm(x.reshape(16, 256, 256).swapaxes(1, 2).copy()).swapaxes(1, 2).reshape(x.shape)
    )
    return calls


def main() -> None:
    """Print a row for each offset."""
    calls = libraries()
    noise = np.random.default_rng(0).standard_normal((4096, 256))
    print("mean".ljust(8), *(name.rjust(16) for name in calls))
    for offset in (0, 1e2, 1e4, 1e6):
        x = (noise + offset).astype(np.float32)
        exact = x.astype(np.float64)
        truth = numpy_formula(exact)
        errors = (np.abs(call(x) - truth).max() for call in calls.values())
        print(f"{offset:<8g}", *(f"{error:16.1e}" for error in errors))


if __name__ == "__main__":
    main()
