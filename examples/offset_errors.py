"""The largest error of y in training mode, float32, when the mean is far from 0: the table in README.md.

Every library gets the same (4096, 256) array of std 1 around a mean; the truth is the same formula in
float64. Run as `python examples/offset_errors.py`; PyTorch's columns appear where it is installed.
"""

import numpy as np

import cbnorm
from cbnorm._cli import formulas


def libraries():
    """Name of each library and its call: x -> y."""
    calls = {
        "NumPy": lambda x: formulas.forward(x, np.float32(1), np.float32(0), axes=0, eps=1e-5)[0],
        "cbnorm": lambda x: cbnorm.batchnorm_forward(x)[0],
    }
    try:
        import torch
    except ModuleNotFoundError:
        return calls

    def batch_norm(x):
        return torch.nn.functional.batch_norm(torch.from_numpy(x), None, None, training=True).numpy()

    calls["PyTorch (N, C)"] = batch_norm
    calls["PyTorch NCHW"] = lambda x: (
        batch_norm(x.reshape(16, 256, 256).swapaxes(1, 2).copy()).swapaxes(1, 2).reshape(x.shape)
    )
    return calls


def main():
    """Print a row for each offset."""
    calls = libraries()
    noise = np.random.default_rng(0).standard_normal((4096, 256))
    print("mean".ljust(8), *(name.rjust(16) for name in calls))
    for offset in (0, 1e2, 1e4, 1e6):
        x = (noise + offset).astype(np.float32)
        exact = x.astype(np.float64)
        truth = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-5)
        errors = (np.abs(call(x) - truth).max() for call in calls.values())
        print(f"{offset:<8g}", *(f"{error:16.1e}" for error in errors))


if __name__ == "__main__":
    main()
