"""No bit of any result changes: every function's results hash to what `bits.json` holds.

The table is the same for each kernel build, number of threads, compiler and machine. `python tests/test_bits.py` writes
it anew; a commit that does so says which bits changed, and why.
"""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import cbnorm
from cbnorm import _kernels
from cbnorm._cpu import last_level_cache

TABLE = Path(__file__).with_name("bits.json")
DTYPES = ("float16", "float32", "float64")

# Shape, channel axis. Narrow and wide, folded columns and their tail, planes short and long, one value a channel.
CHANNELS = {
    "64x3": ((64, 3), 1),
    "1x5": ((1, 5), 1),
    "2x1000": ((2, 1000), 1),
    "1000x1": ((1000, 1), 1),
    "1000x17": ((1000, 17), 1),
    "33x31": ((33, 31), 1),
    "700x256": ((700, 256), 1),
    "130x1030": ((130, 1030), 1),
    "9x16x33": ((9, 16, 33), 1),
    "3x5x7": ((3, 5, 7), 1),
    "4x6x7x7": ((4, 6, 7, 7), 1),
    "2x3x64x65": ((2, 3, 64, 65), 1),
    "1x4x150x151": ((1, 4, 150, 151), 1),
    "32x8x1": ((32, 8, 1), 1),
    "5x9x8x3@-1": ((5, 9, 8, 3), -1),
    "6x5x4x3x2@0": ((6, 5, 4, 3, 2), 0),
    "2x3x4x5x6@2": ((2, 3, 4, 5, 6), 2),
}
# Shape, where the normalized axes begin.
TRAILING = {
    "1000": ((1000,), 0),
    "64x3": ((64, 3), 1),
    "1000x1": ((1000, 1), 1),
    "7x1000": ((7, 1000), 1),
    "300x64": ((300, 64), 1),
    "33x31": ((33, 31), 1),
    "2x4500": ((2, 4500), 1),
    "20x5x6x7": ((20, 5, 6, 7), 2),
}
# Shape, number of groups.
GROUPS = {
    "4x6x7x7/3": ((4, 6, 7, 7), 3),
    "3x8x16/8": ((3, 8, 16), 8),
    "5x12/4": ((5, 12), 4),
    "2x4x90x91/2": ((2, 4, 90, 91), 2),
    "70x6x5/1": ((70, 6, 5), 1),
}

# The same with channels last.
SAMPLES = {
    "4x7x7x6/3": ((4, 7, 7, 6), 3),
    "3x16x8/8": ((3, 16, 8), 8),
    "1x31x33x64/32": ((1, 31, 33, 64), 32),
    "70x5x6/1": ((70, 5, 6), 1),
    "2x300x300/5": ((2, 300, 300), 5),
}


def uniform(seed, shape, dtype, spread=2.0, offset=0.0):
    """Numbers that are the same to the bit everywhere: arithmetic alone, of a generator that never changes."""
    random = np.random.RandomState(seed)
    return ((random.random_sample(shape) - 0.5) * spread + offset).astype(dtype)


class Arrays:
    """What the functions are called with."""

    def __init__(self, shape, parameters, dtype):
        self.x = uniform(0, shape, dtype, 4.0, 3.0)
        self.dout = uniform(1, shape, dtype)
        self.gamma, self.beta = uniform(2, parameters, dtype, 1.0, 1.0), uniform(3, parameters, dtype)
        self.moving = {"moving_mean": uniform(4, parameters, "float64", 1.0, 3.0)}
        self.moving["moving_var"] = uniform(5, parameters, "float64", 1.0, 2.0)


def batchnorm(shape, axis, dtype, mode):
    """All results of a forward and a backward call, each with its name, and of the calls that leave something out."""
    a = Arrays(shape, (shape[axis],), dtype)
    y, cache, *moving = cbnorm.batchnorm_forward(a.x, a.gamma, a.beta, **a.moving, mode=mode, axis=axis)
    plain, plain_cache, *_ = cbnorm.batchnorm_forward(a.x, **a.moving, mode=mode, axis=axis, eps=1e-3)
    in_place = a.dout.copy()
    yield from zip(("y", "moving_mean", "moving_var"), (y, *moving), strict=True)
    yield from (("mean", cache.mean), ("inv_std", cache.inv_std), ("xhat", cache.xhat), ("plain y", plain))
    yield from gradients(cbnorm.batchnorm_backward, a.dout, cache, in_place)
    yield "plain dx", cbnorm.batchnorm_backward(a.dout, plain_cache)[0]


def gradients(backward, dout, cache, in_place):
    names = ("dx", "dgamma", "dbeta")
    results = backward(dout, cache)
    yield from zip(names, results, strict=False)
    for wanted, name in enumerate(names[: len(results)]):
        need = tuple(index == wanted for index in range(len(results)))
        yield name, backward(dout, cache, need=need)[wanted]
    yield "dx", backward(in_place, cache, out=in_place)[0]


def rows(name, shape, dtype, parameters, *arguments, **options):
    """The same of layer, group, instance and RMS normalization."""
    forward, backward = getattr(cbnorm, f"{name}_forward"), getattr(cbnorm, f"{name}_backward")
    a = Arrays(shape, parameters, dtype)
    given = (a.gamma,) if name == "rmsnorm" else (a.gamma, a.beta)
    y, cache = forward(a.x, *given, *arguments, **options)
    yield from (("y", y), ("mean", cache.mean), ("inv_std", cache.inv_std), ("xhat", cache.xhat))
    yield from gradients(backward, a.dout, cache, a.dout.copy())


def moments(shape, axis, dtype):
    x = Arrays(shape, (shape[axis],), dtype).x
    for reduced in (axis, tuple(each for each in range(len(shape)) if each != axis % len(shape)), None):
        m = cbnorm.moments(x, reduced)
        yield from ((f"mean over {reduced}", m.mean), (f"m2 over {reduced}", m.m2))


def weighted(shape, axis, dtype):
    """Batch normalization with weights, of which some are 0, and moments without what is missing."""
    a = Arrays(shape, (shape[axis],), dtype)
    places = [size for number, size in enumerate(shape) if number != axis % len(shape)]
    weights = np.maximum(uniform(6, places, "float64", 2.0, 0.4), 0)
    weights.flat[0] = 1.0  # there is one
    y, cache, *moving = cbnorm.batchnorm_forward(a.x, a.gamma, a.beta, **a.moving, axis=axis, weights=weights)
    yield from zip(("y", "moving_mean", "moving_var"), (y, *moving), strict=True)
    yield from gradients(cbnorm.batchnorm_backward, a.dout, cache, a.dout.copy())
    others = tuple(number for number in range(len(shape)) if number != axis % len(shape))
    holes = np.where(uniform(7, shape, "float64") < 0.7, a.x, a.x.dtype.type(np.nan))
    y, m = cbnorm.standardize(holes, others, nan_policy="omit")
    yield from (("standardized", np.nan_to_num(y)), ("count", m.count.astype("int64")), ("m2 of what is there", m.m2))


CASES = {}
for text, (shape, axis) in CHANNELS.items():
    CASES[f"batchnorm train {text}"] = lambda dtype, s=shape, a=axis: batchnorm(s, a, dtype, "train")
    CASES[f"batchnorm test {text}"] = lambda dtype, s=shape, a=axis: batchnorm(s, a, dtype, "test")
    CASES[f"weighted {text}"] = lambda dtype, s=shape, a=axis: weighted(s, a, dtype)
    CASES[f"moments {text}"] = lambda dtype, s=shape, a=axis: moments(s, a, dtype)
for text, (shape, axis) in TRAILING.items():
    for name in ("layernorm", "rmsnorm"):
        CASES[f"{name} {text}"] = lambda dtype, n=name, s=shape, a=axis: rows(n, s, dtype, s[a:], axis=a)
for text, (shape, groups) in GROUPS.items():
    CASES[f"groupnorm {text}"] = lambda dtype, s=shape, g=groups: rows("groupnorm", s, dtype, s[1:2], g)
    CASES[f"instancenorm {text.partition('/')[0]}"] = lambda dtype, s=shape: rows("instancenorm", s, dtype, s[1:2])
for text, (shape, groups) in SAMPLES.items():
    CASES[f"groupnorm {text}@-1"] = lambda dtype, s=shape, g=groups: rows("groupnorm", s, dtype, s[-1:], g, axis=-1)
    CASES[f"instancenorm {text.partition('/')[0]}@-1"] = lambda dtype, s=shape: rows(
        "instancenorm", s, dtype, s[-1:], axis=-1
    )


def hashes(case):
    """One for each dtype, of all results; the same result computed in another way must have the same bytes."""
    found = {}
    for dtype in DTYPES:
        results = {}
        for name, array in CASES[case](dtype):
            content = array.dtype.str.encode() + str(array.shape).encode() + np.ascontiguousarray(array).tobytes()
            assert results.setdefault(name, content) == content, f"{name} is not the same in two calls"
        joined = b"".join(name.encode() + content for name, content in results.items())
        found[dtype] = hashlib.sha256(joined).hexdigest()[:16]
    return found


@contextmanager
def every_size_is_split(cache_bytes):
    """Threads take part in the smallest calls; results go past the caches if `cache_bytes` is 0."""
    build = _kernels.active
    grain = build.set_grain(1)
    build.set_cache_bytes(cache_bytes)
    try:
        yield
    finally:
        build.set_grain(grain)
        build.set_cache_bytes(last_level_cache())


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_as_it_was(case, num_threads, kernels):
    with every_size_is_split(last_level_cache() if num_threads % 2 else 0):
        assert hashes(case) == json.loads(TABLE.read_text())[case]


if __name__ == "__main__":
    TABLE.write_text(json.dumps({case: hashes(case) for case in CASES}, indent=0) + "\n")
