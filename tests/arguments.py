"""Arguments of batch normalization, the forms that their arrays may have, and whether these stay as they are."""

import numpy as np

SHAPE = (4, 3)
NAN, INF = float("nan"), float("inf")


def make_arguments(dtype=np.float64, shape=SHAPE):
    """Every argument of a forward call but `mode`, all arrays in one dtype."""
    random = np.random.default_rng(0)
    channels = shape[1]
    return {
        "x": (random.standard_normal(shape) * 3 + 20).astype(dtype),
        "gamma": np.linspace(-1, 2, channels).astype(dtype),
        "beta": np.linspace(3, 4, channels).astype(dtype),
        "eps": 1e-3,
        "momentum": 0.75,
        "moving_mean": np.linspace(18, 21, channels).astype(dtype),
        "moving_var": np.linspace(4, 8, channels).astype(dtype),
        "axis": 1,
        "ddof": 0,
    }


def make_dout(dtype=np.float64, shape=SHAPE):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def bits(value):
    """The bytes of an array, and of the array that it is a view of."""
    owner = value.base if isinstance(value.base, np.ndarray) else value
    return np.asarray(value).tobytes(), np.asarray(owner).tobytes()


def arrays_in(arguments):
    """The arrays among the arguments, those of a cache too."""
    cache = arguments.get("cache")
    inside = [cache.x, cache.gamma, cache.mean, cache.inv_std] if hasattr(cache, "inv_std") else []
    return [value for value in [*arguments.values(), *inside] if isinstance(value, np.ndarray)]


def read_only(values):
    values.flags.writeable = False
    return values


def unaligned(values):
    """The same values one byte off."""
    memory = np.empty(values.nbytes + 1, np.uint8)
    moved = memory[1:].view(values.dtype).reshape(values.shape)
    moved[...] = values
    return moved


def mapped(values, folder, mode="r+"):
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    values.tofile(path)
    return np.memmap(path, values.dtype, mode, shape=values.shape)
