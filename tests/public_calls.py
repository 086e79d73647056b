"""Every public function that computes, as a call without arguments: what the tests of limits do to each in turn."""

import numpy as np

import cbnorm

SHAPE = (12, 16, 24)


def make_input(shape=SHAPE, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + 2).astype(dtype)


def forward_arguments(x, gamma, beta, moving):
    """The arguments of each forward function: rows are the last axis, channels the second one."""
    along_rows = [np.resize(values, x.shape[-1:]) for values in (gamma, beta)]
    return {
        "batchnorm": (x, gamma, beta, 1e-5, 0.9, *moving),
        "layernorm": (x, *along_rows),
        "groupnorm": (x, gamma, beta, 2),
        "instancenorm": (x, gamma, beta),
        "rmsnorm": (x, along_rows[0]),
    }


def public_calls(x, dout):
    """A dictionary of calls; each returns its results in a list, the same bits each time."""
    channels, row, parts = x.shape[1], x.shape[-1], cbnorm.parts
    gamma, beta = make_input((2, channels), np.float64)
    moving = np.linspace(-1, 2, channels), np.linspace(0.5, 3, channels)
    calls = {}
    for name, arguments in forward_arguments(x, gamma, beta, moving).items():
        forward, backward = (getattr(cbnorm, f"{name}_{direction}") for direction in ("forward", "backward"))
        cache = forward(*arguments)[1]
        calls[f"{name}_forward"] = lambda forward=forward, arguments=arguments: without_cache(forward(*arguments))
        calls[f"{name}_backward"] = lambda backward=backward, cache=cache: backward(dout, cache)
        calls[f"{name} cache"] = lambda cache=cache: [cache.mean, cache.inv_std, cache.xhat]
    layers = {
        "BatchNorm": lambda: cbnorm.BatchNorm(channels),
        "LayerNorm": lambda: cbnorm.LayerNorm(row),
        "GroupNorm": lambda: cbnorm.GroupNorm(2, channels),
        "InstanceNorm": lambda: cbnorm.InstanceNorm(channels),
        "RMSNorm": lambda: cbnorm.RMSNorm(row),
    }
    for name, make in layers.items():
        calls[name] = lambda make=make: life(make(), x, dout)
    whole = parts.moments(x)
    sums = parts.gradient_sums(dout, x, whole)
    weight, layer = make_input((channels, 5), np.float64), cbnorm.BatchNorm(channels)
    return calls | {
        "batchnorm_forward, test": lambda: without_cache(
            cbnorm.batchnorm_forward(x, gamma, beta, 1e-5, 0.9, *moving, "test")
        ),
        "moments": lambda: record(cbnorm.moments(x)),
        "Moments +": lambda: record(whole + whole),
        "PopulationStats": lambda: population(x),
        "parts.moments": lambda: record(parts.moments(x)),
        "parts.normalize": lambda: [parts.normalize(x, whole, gamma, beta)],
        "parts.gradient_sums": lambda: [getattr(parts.gradient_sums(dout, x, whole), name) for name in SUMS],
        "parts.input_gradient": lambda: [parts.input_gradient(dout, x, whole, sums, gamma)],
        "fold_batchnorm": lambda: cbnorm.fold_batchnorm(weight, None, layer, channel_axis=0),
        "recompute_stats": lambda: recomputed(cbnorm.BatchNorm(channels), x),
    }


SUMS = ("dout", "dout_xhat")


def without_cache(results):
    return [each for each in results if isinstance(each, np.ndarray)]


def record(moments):
    return [moments.mean, moments.mean_lo, moments.m2, moments.var()]


def life(layer, x, dout):
    return [layer.forward(x), layer.backward(dout), *layer.grads.values(), *layer.state_dict().values()]


def population(x):
    gathered = cbnorm.PopulationStats()
    for batch in (x, x[:3]):
        gathered.update(batch)
    return [gathered.mean, gathered.var(), *gathered.batch_average()]


def recomputed(layer, x):
    cbnorm.recompute_stats(layer, [x, x[:3]])
    return list(layer.state_dict().values())


def bits_of(results):
    """The bytes of all arrays in a list of results, one after the other."""
    return b"".join(np.asarray(each).tobytes() for each in results)
