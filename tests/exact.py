"""Truth for small arrays: the equations number by number, in fractions and 300-bit floats, apart from reference.py.

A set is a list of the flat positions that share their statistics; `Places` says which set and which parameter each
number of x has. Where a set holds a NaN or an infinity there is no exact truth, and None stands for it.
"""

import math
from collections import defaultdict
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import mpmath

mp = mpmath.MPContext()
mp.prec = 300


class Places(NamedTuple):
    """Where the numbers of an array belong: their set, and their gamma and beta."""

    sets: dict  # of the set: flat positions
    parameters: list  # of the flat position: which parameter
    statistics_shape: tuple
    parameter_shape: tuple
    centred: bool = True


def places(shape, set_of, parameter_of, statistics_shape, parameter_shape, centred=True):
    sets, parameters = defaultdict(list), []
    for position, index in enumerate(product(*map(range, shape))):
        sets[set_of(index)].append(position)
        parameters.append(flat(parameter_of(index), parameter_shape))
    return Places(sets, parameters, statistics_shape, parameter_shape, centred)


def flat(index, shape):
    position = 0
    for number, length in zip(index, shape, strict=True):
        position = position * length + number
    return position


def channels(shape, axis):
    axis %= len(shape)
    own = (shape[axis],)
    return places(shape, lambda index: (index[axis],), lambda index: (index[axis],), own, own)


def rows(shape, axis, centred=True):
    axis %= len(shape)
    return places(shape, lambda i: i[:axis], lambda i: i[axis:], shape[:axis], shape[axis:], centred)


def groups(shape, number):
    each = max(shape[1] // number, 1) if number else 1
    return places(shape, lambda i: (i[0], i[1] // each), lambda i: (i[1],), (shape[0], number), (shape[1],))


def numbers(array):
    """Every number of an array, in C order, as a fraction; None for NaN and infinities."""
    return [Fraction(value) if math.isfinite(value) else None for value in array.ravel().tolist()]


def real(fraction):
    return mp.mpf(fraction.numerator) / fraction.denominator


class Statistics(NamedTuple):
    """Of one set: exact mean and mean square deviation, and what follows from them."""

    count: int
    mean: Fraction
    var: Fraction
    inv_std: object

    @property
    def hardness(self):
        """By how much |mean| / std goes beyond 10^6, up to where the bounds are promised."""
        if self.var == 0:
            return 1.0
        return max(1.0, float(abs(real(self.mean)) / mp.sqrt(real(self.var)) / 10**6))


def inverse(var, eps):
    total = var + Fraction(eps)
    return 1 / mp.sqrt(real(total)) if total else mp.mpf(0)


def statistics(values, eps=0, centred=True):
    """Of fractions; None where one of them is not there."""
    if any(value is None for value in values):
        return None
    mean = sum(values, Fraction()) / len(values) if centred else Fraction()
    var = sum(((value - mean) ** 2 for value in values), Fraction()) / len(values)
    return Statistics(len(values), mean, var, inverse(var, eps))


def given(means, variances, eps):
    """Statistics that are constants, such as the moving ones, by set."""
    return {
        (channel,): None if mean is None or var is None else Statistics(1, mean, var, inverse(var, eps))
        for channel, (mean, var) in enumerate(zip(means, variances, strict=True))
    }


def all_statistics(x, where, eps):
    return {key: statistics([x[i] for i in own], eps, where.centred) for key, own in where.sets.items()}


def normalized(x, where, found):
    """xhat of each number, 300 bits."""
    xhat = [None] * len(x)
    for key, own in where.sets.items():
        if found[key] is not None:
            for i in own:
                xhat[i] = None if x[i] is None else real(x[i] - found[key].mean) * found[key].inv_std
    return xhat


def scaled(xhat, gamma, beta, where):
    """Y, and the size of its two terms, of which it may be a small difference."""
    y, size = [None] * len(xhat), [None] * len(xhat)
    for i, value in enumerate(xhat):
        g = Fraction(1) if gamma is None else gamma[where.parameters[i]]
        b = Fraction(0) if beta is None else beta[where.parameters[i]]
        if value is not None and g is not None and b is not None:
            y[i], size[i] = value * real(g) + real(b), abs(value * real(g)) + abs(real(b))
    return y, size


def input_gradient(dout, xhat, gamma, where, found, constant):
    """Dx by the Jacobian, dx_i = Σ_j g_j ∂xhat_j/∂x_i, and the scale of each: max |g| inv_std of its set."""
    dx, scale = [None] * len(xhat), [None] * len(xhat)
    for key, own in where.sets.items():
        g = [gamma[where.parameters[i]] if gamma is not None else Fraction(1) for i in own]
        if found[key] is None or any(each is None for each in g):
            continue
        if constant:
            for i, factor in zip(own, g, strict=True):
                if dout[i] is not None:
                    dx[i] = real(dout[i] * factor) * found[key].inv_std
                    scale[i] = abs(dx[i])
            continue
        if any(dout[i] is None or xhat[i] is None for i in own):
            continue
        g = [real(dout[i] * factor) for i, factor in zip(own, g, strict=True)]
        largest = max(map(abs, g)) * found[key].inv_std
        for i in own:
            total = mp.mpf(0)
            for j, each in zip(own, g, strict=True):
                shared = (1 if where.centred else 0) + xhat[i] * xhat[j]  # ∂xhat_j/∂x_i = inv_std (δ_ij - shared / M)
                total += each * ((i == j) - shared / len(own))
            dx[i], scale[i] = found[key].inv_std * total, largest
    return dx, scale


def parameter_gradient(terms, where):
    """Σ of terms by parameter, and Σ of their sizes; None where one is None."""
    count = math.prod(where.parameter_shape)
    total, size = [mp.mpf(0)] * count, [mp.mpf(0)] * count
    for term, p in zip(terms, where.parameters, strict=True):
        if term is None or total[p] is None:
            total[p] = None
        else:
            total[p], size[p] = total[p] + term, size[p] + abs(term)
    return total, size


LEAST = {"float16": 2.0**-24, "float32": 2.0**-149, "float64": 5e-324}
MOST = {"float16": 65504.0, "float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
HALF_ULP = {"float16": 2.0**-11, "float32": 0.0, "float64": 0.0}  # of results that are rounded once more


def assert_near(what, got, want, bounds, dtype=None):
    """Every number within its bound of the truth; as good as infinite where no number of its dtype is as large."""
    name = str(got.dtype) if dtype is None else dtype
    assert got.size == len(want), what
    for i, (value, truth, bound) in enumerate(zip(got.ravel().tolist(), want, bounds, strict=True)):
        if truth is None:
            continue
        bound = bound + HALF_ULP[name] * abs(truth) + 4 * LEAST[name]
        if abs(truth) + bound >= MOST[name] and math.isinf(value) and (value > 0) == (truth > 0):
            continue
        assert math.isfinite(value), f"{what}[{i}]: {value} for {mp.nstr(truth, 20)}"
        error = abs(mp.mpf(value) - truth)
        assert error <= bound, (
            f"{what}[{i}]: {value!r} for {mp.nstr(truth, 20)}, {mp.nstr(error / bound, 4)} bounds off"
        )
