"""Every normalization as hostile tests call it: arguments that are right, in any form, and whether results are."""

from typing import NamedTuple

import exact
import numpy as np
from exact import mp
from guarded import call
from hypothesis import strategies as st
from strategies import EPS, FLOATS, MOMENTUM, Given, arrays, axes, parameters, shapes

import cbnorm

KINDS = ("batch", "batch test", "layer", "group", "instance", "rms")
Y = {"float16": 2e-6, "float32": 2e-6, "float64": 1e-12}
DX = {"float16": 4e-6, "float32": 4e-6, "float64": 1e-12}


def computed_in(x):
    """The dtype of the arithmetic, and of results."""
    if x.dtype.kind != "f":
        return np.dtype("float64"), np.dtype("float64")
    return np.dtype("float64" if x.dtype.itemsize == 8 else "float32"), x.dtype.newbyteorder("=")


def cast(given, dtype):
    with np.errstate(all="ignore"):
        return None if given.means is None else given.means.astype(dtype)


class Case(NamedTuple):
    """A forward call: its function, its arguments, and what these mean."""

    kind: str
    arguments: dict  # of Given, or of plain values
    where: exact.Places

    @property
    def name(self):
        return "batchnorm" if self.kind.startswith("batch") else f"{self.kind}norm"

    @property
    def forward(self):
        return getattr(cbnorm, f"{self.name}_forward")

    @property
    def backward(self):
        return getattr(cbnorm, f"{self.name}_backward")

    @property
    def x(self):
        return self.arguments["x"].means

    @property
    def keywords(self):
        return {name: getattr(value, "thing", value) for name, value in self.arguments.items()}

    def numbers(self, name):
        """A parameter in the arithmetic's dtype, as fractions."""
        given = self.arguments.get(name, Given(None, None))
        values = cast(given, computed_in(self.x)[0])
        return None if values is None else exact.numbers(values)

    def statistics(self):
        eps = float(self.arguments["eps"])
        if self.kind == "batch test":
            moving = [exact.numbers(cast(self.arguments[n], float)) for n in ("moving_mean", "moving_var")]
            return exact.given(*moving, eps)
        return exact.all_statistics(exact.numbers(cast(self.arguments["x"], computed_in(self.x)[0])), self.where, eps)


@st.composite
def cases(draw, kinds=KINDS, recipes=None, forms=None):
    """A forward call whose arguments are all right."""
    kind = draw(st.sampled_from(kinds))
    shape = draw(shapes(1 if kind in ("layer", "rms") else 2))
    x = draw(arrays(shape, recipes=recipes, **({} if forms is None else {"forms": forms})))
    arguments = {"x": x, "eps": draw(EPS)}
    if kind in ("layer", "rms"):
        axis = arguments["axis"] = draw(axes(len(shape)))
        where = exact.rows(shape, int(axis), kind == "layer")
    elif kind == "instance":
        where = exact.groups(shape, shape[1])
    elif kind == "group":
        divisors = [n for n in range(1, max(shape[1], 3) + 1) if shape[1] % n == 0]
        arguments["num_groups"] = draw(st.sampled_from(divisors))
        where = exact.groups(shape, arguments["num_groups"])
    else:
        axis = arguments["axis"] = draw(axes(len(shape)))
        where = exact.channels(shape, int(axis))
        channels = where.parameter_shape
        moving = st.one_of(st.just(Given(None, None, "none")), arrays(channels, FLOATS, ["plain", "constant"]))
        if kind == "batch test":
            arguments["mode"] = "test"
            moving = arrays(channels, FLOATS, ["plain", "constant", "one NaN"])
        else:
            arguments["momentum"] = draw(MOMENTUM)
            arguments["ddof"] = draw(st.sampled_from([0, 1] if x.means.size > channels[0] else [0]))
        arguments["moving_mean"] = draw(moving)
        var = draw(moving)
        if var.means is not None:  # the absolute numbers, in the same form's dtype
            var = Given(np.abs(var.means), np.abs(var.means), "absolute")
        arguments["moving_var"] = var
    arguments["gamma"] = draw(parameters(where.parameter_shape))
    if kind != "rms":
        arguments["beta"] = draw(parameters(where.parameter_shape))
    return Case(kind, arguments, where)


def hardness(found, where, size):
    """Of each number: that of its set."""
    hard = [1.0] * size
    for key, own in where.sets.items():
        for i in own:
            hard[i] = 1.0 if found[key] is None else found[key].hardness
    return hard


def check_forward(case, y, cache):
    """Y, and the cache's statistics and xhat, within the bounds; found statistics and xhat, for backward."""
    dtype, result_dtype = computed_in(case.x)
    assert y.dtype == result_dtype
    assert y.shape == case.x.shape
    found = case.statistics()
    x = exact.numbers(cast(case.arguments["x"], dtype))
    xhat = exact.normalized(x, case.where, found)
    bound, hard = Y[dtype.name], hardness(found, case.where, len(x))
    want, size = exact.scaled(xhat, case.numbers("gamma"), case.numbers("beta"), case.where)
    exact.assert_near(
        "y", y, want, [None if s is None else bound * max(1, s) * h for s, h in zip(size, hard, strict=True)]
    )
    one = [None if v is None else bound * max(1, abs(v)) * h for v, h in zip(xhat, hard, strict=True)]
    if cache is not None and cache.x is not None:
        again = call(get_xhat, cache=cache)
        exact.assert_near("cache.xhat", again, xhat, one)
        assert again.dtype == result_dtype
    if cache is not None:
        check_statistics(case, cache, found)
    check_contained(case, y, found)
    return found, xhat


def get_xhat(cache):
    return cache.xhat


def check_statistics(case, cache, found):
    assert cache.mean.shape == cache.inv_std.shape == case.where.statistics_shape
    for key, each in found.items():
        if each is not None and case.x.size:
            mean, inv_std = cache.mean[key], cache.inv_std[key]
            bound = 1e-12 * mp.sqrt(exact.real(each.var)) * each.hardness + abs(exact.real(each.mean)) * 2.0**-52
            exact.assert_near("cache.mean", mean, [exact.real(each.mean)], [bound], "float64")
            exact.assert_near("inv_std", inv_std, [each.inv_std], [1e-12 * each.inv_std * each.hardness], "float64")


def check_contained(case, y, found):
    """A constant set gives beta, to the bit; one with a NaN or an infinity gives NaN, where it is centred."""
    flat, beta = y.ravel(), case.arguments.get("beta", Given(None, None)).means
    with np.errstate(all="ignore"):
        beta = None if beta is None else beta.astype(computed_in(case.x)[0]).astype(y.dtype).ravel()
    gamma = case.numbers("gamma")
    for key, own in case.where.sets.items():
        for i in own:
            p = case.where.parameters[i]
            if found[key] is None and case.kind not in ("batch test", "rms"):
                assert np.isnan(flat[i]), f"y[{i}]: {flat[i]} of a set with a NaN or an infinity"
            elif found[key] is not None and found[key].var == 0 and case.kind not in ("batch test", "rms"):
                want = 0.0 if beta is None else beta[p]
                if gamma is None or gamma[p] is not None:
                    assert flat[i] == want or np.isnan(want), f"y[{i}]: {flat[i]} for beta {want}, of a constant set"


def check_backward(case, dout, got, need, found, xhat):
    """Gradients within the bounds, of the right dtypes and shapes, or None."""
    dtype, result_dtype = computed_in(case.x)
    d, gamma = exact.numbers(cast(dout, dtype)), case.numbers("gamma")
    hard = hardness(found, case.where, len(d))
    shape = case.where.parameter_shape
    assert [each is not None for each in got] == [bool(want) for want in need]
    if need[0]:
        assert (got[0].dtype, got[0].shape) == (result_dtype, case.x.shape)
        dx, scale = exact.input_gradient(d, xhat, gamma, case.where, found, case.kind == "batch test")
        bounds = [s if s is None else DX[dtype.name] * s * h for s, h in zip(scale, hard, strict=True)]
        exact.assert_near("dx", got[0], dx, bounds)
    hardest = max(hard, default=1.0)
    terms = [None if u is None or v is None else u * exact.real(v) for u, v in zip(xhat, d, strict=True)]
    if need[1]:
        assert (got[1].dtype, got[1].shape) == (dtype, shape)
        total, size = exact.parameter_gradient(terms, case.where)
        # Where numbers are subnormal, x - mean is a multiple of the least.
        steepest = max((each.inv_std for each in found.values() if each is not None), default=0)
        lost = exact.LEAST[dtype.name] * steepest * sum(abs(exact.real(v)) for v in d if v is not None)
        exact.assert_near("dgamma", got[1], total, [Y[dtype.name] * s * hardest + lost for s in size])
    if len(need) > 2 and need[2]:
        assert (got[2].dtype, got[2].shape) == (dtype, shape)
        total, size = exact.parameter_gradient([None if v is None else exact.real(v) for v in d], case.where)
        exact.assert_near("dbeta", got[2], total, [Y[dtype.name] * s for s in size])


def check_moving(case, mean, var, found):
    """The moving averages of a training call; where a weight is 0, its side is not read."""
    momentum, ddof = exact.Fraction(float(case.arguments["momentum"])), case.arguments["ddof"]
    for name, got in (("moving_mean", mean), ("moving_var", var)):
        old = case.arguments[name].means
        if old is None:
            assert got is None
            continue
        assert (got.dtype, got.shape) == (np.float64, old.shape)
        for channel, before in enumerate(exact.numbers(old.astype(float))):
            each = found.get((channel,))
            if not case.x.size:
                assert np.array_equal(got[channel], old[channel], equal_nan=True)
            elif each is not None and before is not None:
                batch = each.mean if name == "moving_mean" else each.var * each.count / (each.count - ddof)
                parts = exact.real(momentum * before), exact.real((1 - momentum) * batch)
                bound = 1e-12 * (abs(parts[0]) + abs(parts[1]) * each.hardness) + 1e-12 * mp.sqrt(exact.real(each.var))
                exact.assert_near(name, got[channel], [sum(parts)], [bound], "float64")


def run(case, out=None):
    """The call itself, which must succeed: y, cache and moving averages."""
    return call(case.forward, **case.keywords, **({} if out is None else {"out": out}))
